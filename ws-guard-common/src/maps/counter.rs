//! What is counted.

use super::EventKind;

/// Everything that can happen to a packet or a frame; index into [`Counters::events`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Packets that the client-side program saw.
    Seen = 0,
    /// Client packets to a protected port.
    Protected,
    /// Client segments with payload on a tracked flow.
    Tracked,
    /// Packets that may carry TCP and could not be read: fragments, too many headers, malformed.
    Unparsed,
    /// Packets that the server-side program saw.
    EgressSeen,
    /// Server packets on a tracked flow.
    EgressTracked,
    /// Frames that began in client streams.
    Frames,
    /// Pings among them.
    Pings,
    /// Pongs among them.
    Pongs,
    /// Frames that began in server streams.
    FramesOut,
    /// Pongs among them.
    PongsOut,
    /// Pings turned into pongs, each once.
    Defused,
    /// Headers rewritten, retransmissions included.
    Rewritten,
    /// Packets dropped because their source is throttled (action drop).
    DroppedThrottled,
    /// Segments dropped because they came with a gap before them.
    DroppedGap,
    /// Segments dropped because they hold provisional headers and no checkpoint to judge them from.
    DroppedNoCheckpoint,
    /// Retransmissions dropped because their frames differ from what came first.
    DroppedChanged,
    /// Segments dropped because their payload could not be read, or was changed by two CPUs at once.
    DroppedUnreadable,
    /// Segments dropped because their flow lost step while its source is throttled.
    DroppedUnsynced,
    /// Segments with data behind a request, before its answer (RFC 6455, 4.1 forbids them).
    DroppedEarly,
    /// Answers dropped that would have opened a connection for a throttled source whose request
    /// nobody could read.
    DroppedUnseen,
    /// Segments dropped because the server would not take them as this connection's: no ACK, or an
    /// acknowledgement out of range.
    DroppedForged,
    /// Packets dropped because of the urgent flag: it takes bytes out of the stream.
    DroppedUrgent,
    /// First fragments to a protected port.
    DroppedFragment,
    /// Packets whose headers hide whether they are for a protected port.
    DroppedHeaders,
    /// Segments walked again from a checkpoint.
    Rewalked,
    /// Segments past the cursor.
    Gaps,
    /// Segments in which more than one frame began.
    Coalesced,
    /// Headers cut by a segment border.
    SplitHeaders,
    /// Frames cut by a segment border.
    SplitFrames,
    /// Flows opened by a 101.
    FlowsOpened,
    /// Flows ended by RST or FIN.
    FlowsClosed,
    /// Closed flows whose client went on.
    FlowsReopened,
    /// Flows of connections whose beginning nobody saw.
    FlowsJoined,
    /// Flows that lost step.
    FlowsUnsynced,
    /// Flows that found it again.
    FlowsResynced,
    /// Flows that the full table had no room for.
    FlowsRefused,
    /// Idle or closed flows reclaimed under pressure.
    FlowsReclaimed,
    /// Sources that the full table had no room for.
    SourcesRefused,
    /// Idle sources reclaimed under pressure.
    SourcesReclaimed,
    /// Sources throttled.
    Throttled,
    /// Throttlings that ended.
    Released,
    /// Pings answered although their source was throttled.
    Spared,
    /// Pings that only their pongs told of.
    Witnessed,
    /// Handshakes whose answer was seen but not the request.
    RequestsUnseen,
    /// Events that did not fit the ring buffer.
    EventsLost,
    /// Events held back by the rate limit.
    EventsSuppressed,
    /// Frames over the limit of their class.
    FramesOver,
    /// TLS records that began in client streams, on TLS ports.
    Records,
    /// Those among them that may hold a ping; counted where they have a limit.
    SmallRecords,
    /// SYNs of clients that asked for Multipath TCP and were kept from it.
    MptcpRefused,
    /// Connections over the limit whose window was held from then on.
    Paced,
    /// Those that were released.
    Unpaced,
    /// Segments of servers whose window field was lowered.
    WindowsHeld,
    /// Zero-window probes of one new byte beyond a held edge that passed.
    Probes,
    /// Segments dropped because they end beyond the held edge.
    DroppedBeyond,
    /// Segments dropped because their connection is paced and its window cannot be held.
    DroppedPoliced,
}

impl Counter {
    /// How many there are.
    pub const COUNT: usize = Counter::DroppedPoliced as usize + 1;
}

/// Buckets of the heartbeat histogram: bucket `n` counts times below 2^n × 64 µs, the last all
/// others.
pub const HEARTBEAT_BUCKETS: usize = 20;

/// The counters of one CPU. They only ever grow.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Counters {
    /// By [`Counter`].
    pub events: [u64; Counter::COUNT],
    /// Client frames by kind of violation, index [`crate::frame::Violation`].
    pub violations_in: [u64; crate::frame::Violation::COUNT],
    /// Server frames by kind of violation.
    pub violations_out: [u64; crate::frame::Violation::COUNT],
    /// Ping-to-pong times by bucket, not cumulative.
    pub heartbeat: [u64; HEARTBEAT_BUCKETS],
    /// Sum of the ping-to-pong times, nanoseconds.
    pub heartbeat_sum_ns: u64,
    /// Second of the clock that `event_budget` is for.
    pub event_second: u64,
    /// Events sent in that second, by [`EventKind`].
    pub event_budget: [u64; EventKind::COUNT],
}
