//! Counters.

use super::EventKind;

/// Counted events of packets, frames, flows and sources; index into [`Counters::events`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Packets seen by the client-side program.
    Seen = 0,
    /// Client packets to a protected port.
    Protected,
    /// Client segments with payload on a tracked flow.
    Tracked,
    /// Packets that may carry TCP and are not readable: fragments, too many headers, malformed.
    Unparsed,
    /// Packets seen by the server-side program.
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
    /// Segments past the cursor that were dropped.
    DroppedGap,
    /// Segments dropped because their provisional headers are not traced, or there is no room to trace more.
    DroppedUntraced,
    /// Retransmissions dropped because their frames differ from the first transmission.
    DroppedChanged,
    /// Segments dropped because their payload could not be read, or was changed by two CPUs at once.
    DroppedUnreadable,
    /// Segments dropped because their flow is out of sync while its source is throttled.
    DroppedUnsynced,
    /// Segments with data after a request, before its answer (forbidden by RFC 6455, 4.1).
    DroppedEarly,
    /// Dropped answers to unread requests of throttled sources.
    DroppedUnseen,
    /// Segments dropped because the server would not accept them: no ACK, or an acknowledgement out
    /// of range.
    DroppedForged,
    /// Packets dropped because of the urgent flag, which takes bytes out of the stream.
    DroppedUrgent,
    /// First fragments to a protected port.
    DroppedFragment,
    /// Packets whose headers hide the port.
    DroppedHeaders,
    /// Segments of unacknowledged bytes walked again.
    Rewalked,
    /// Segments past the cursor.
    Gaps,
    /// Segments in which more than one frame began. Of out-of-order bytes it counts pieces, like the two
    /// below: where their segments ended is not kept.
    Coalesced,
    /// Headers split across segments.
    SplitHeaders,
    /// Frames split across segments.
    SplitFrames,
    /// Flows opened by a 101.
    FlowsOpened,
    /// Flows ended by RST or FIN.
    FlowsClosed,
    /// Closed flows whose client continued.
    FlowsReopened,
    /// Flows picked up midstream.
    FlowsJoined,
    /// Flows that went out of sync.
    FlowsUnsynced,
    /// Flows resynchronised.
    FlowsResynced,
    /// Flows refused because the table was full.
    FlowsRefused,
    /// Idle or closed flows reclaimed under pressure.
    FlowsReclaimed,
    /// Sources refused because the table was full.
    SourcesRefused,
    /// Idle sources reclaimed under pressure.
    SourcesReclaimed,
    /// Sources throttled.
    Throttled,
    /// Throttles that ended.
    Released,
    /// Pings answered although their source was throttled.
    Spared,
    /// Unseen pings that only their pongs reveal.
    Witnessed,
    /// Handshakes with a seen answer and an unseen request.
    RequestsUnseen,
    /// Events that did not fit the ring buffer.
    EventsLost,
    /// Events suppressed by the rate limit.
    EventsSuppressed,
    /// Frames over the limit of their class.
    FramesOver,
    /// TLS records that began in client streams, on TLS ports.
    Records,
    /// Small records that may hold a ping; counted where they have a limit.
    SmallRecords,
    /// Clients' SYNs whose Multipath TCP option was removed.
    MptcpRefused,
    /// Connections over the limit whose pacing began.
    Paced,
    /// Connections whose pacing ended.
    Unpaced,
    /// Servers' segments with a lowered window field.
    WindowsHeld,
    /// Zero-window probes of one new byte beyond a held edge that passed.
    Probes,
    /// Segments dropped because they end beyond the held edge.
    DroppedBeyond,
    /// Segments dropped because their connection is paced and its window cannot be held.
    DroppedPoliced,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: usize = Counter::DroppedPoliced as usize + 1;
    /// Room for them in [`Counters`]: a version with more takes over the maps of an older one.
    pub const ROOM: usize = 128;
}

/// Counters of one CPU. They only grow.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Counters {
    /// By [`Counter`].
    pub events: [u64; Counter::ROOM],
    /// Client frames by kind of violation, index [`crate::frame::Violation`].
    pub violations_in: [u64; crate::frame::Violation::COUNT],
    /// Server frames by kind of violation.
    pub violations_out: [u64; crate::frame::Violation::COUNT],
    /// Of schema 11 and before: the heartbeats of all servers, now in [`super::Server`].
    pub retired: [u64; 21],
    /// Second of the clock that `event_budget` is for.
    pub event_second: u64,
    /// Events sent in that second, by [`EventKind`].
    pub event_budget: [u64; EventKind::ROOM],
}

impl Counters {
    /// Nothing counted yet.
    pub const ZERO: Counters = Counters {
        events: [0; Counter::ROOM],
        violations_in: [0; crate::frame::Violation::COUNT],
        violations_out: [0; crate::frame::Violation::COUNT],
        retired: [0; 21],
        event_second: 0,
        event_budget: [0; EventKind::ROOM],
    };
}

const _: () = assert!(Counter::COUNT <= Counter::ROOM && EventKind::COUNT <= EventKind::ROOM);
