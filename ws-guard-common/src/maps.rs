//! The layout of everything that crosses between kernel and user space: map names, keys, values,
//! counters, events, and the requests of the control program.
//!
//! All types are `repr(C)`, have no padding that is not named, and their sizes are asserted: a
//! pinned map outlives the daemon that made it. Change one, and raise [`SCHEMA_VERSION`].
//!
//! Addresses and ports are in network byte order, as in the packet; all other numbers in the
//! machine's.

use crate::{flow::Flow, source::Source, window::Rate};

/// Version of the layouts, kept in the pin directory.
pub const SCHEMA_VERSION: u32 = 4;

/// Names of the maps, as in the object and in the pin directory.
pub mod name {
    /// Hash: [`super::FlowKey`] → [`super::Flow`], connections whose handshake the server answered.
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash: [`super::FlowKey`] → [`super::Pending`], requests without an answer yet.
    pub const PENDING: &str = "PENDING";
    /// LRU hash: [`super::FlowKey`] → [`super::Pending`], the same of connections that the server has
    /// spoken on.
    pub const PROVEN: &str = "PROVEN";
    /// LRU hash: [`super::FlowKey`] → [`super::Stranger`], connections that a server speaks on and
    /// nobody saw begin.
    pub const STRANGERS: &str = "STRANGERS";
    /// Array of [`super::BORDERS`] [`super::Border`]: where the stream stood between two segments that
    /// a flow has no checkpoint for.
    pub const BORDERS: &str = "BORDERS";
    /// Array of [`crate::held::SLOTS`] [`crate::held::Held`]: copies of what came behind a gap.
    pub const HELD: &str = "HELD";
    /// Hash: [`super::SourceKey`] → [`super::Source`], who has sent a ping.
    pub const SOURCES: &str = "SOURCES";
    /// Hash: [`crate::flood::FloodKey`] → [`crate::flood::Flood`], who sends too much else. Takes memory only for
    /// what is in it.
    pub const FLOODS: &str = "FLOODS";
    /// LPM trie: prefix of a [`super::Address`] → [`super::Rule`].
    pub const RULES: &str = "RULES";
    /// Array of two sets of [`super::SCOPES`] [`super::Policy`]: the set in force, and the one being
    /// written.
    pub const POLICY: &str = "POLICY";
    /// Array of one `u32`: which set of [`POLICY`] and which of [`PORTS`] is in force.
    pub const ACTIVE: &str = "ACTIVE";
    /// Array of two [`super::Ports`]: which ports are protected, and under which policy.
    pub const PORTS: &str = "PORTS";
    /// Array of one [`super::Shared`]: what all CPUs have to know.
    pub const SHARED: &str = "SHARED";
    /// Per-CPU array of one [`super::Counters`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";
}

/// Names of the programs in the object.
pub mod program {
    /// XDP, client side.
    pub const XDP_INGRESS: &str = "ws_guard_xdp";
    /// TC, client side: where XDP's slot is taken or XDP is not to be had.
    pub const TC_INGRESS: &str = "ws_guard_in";
    /// TC, server side.
    pub const TC_EGRESS: &str = "ws_guard_out";
    /// Run by the daemon with a [`super::Request`] as its packet, never attached: what changes a
    /// source has to take the source's lock.
    pub const CONTROL: &str = "ws_guard_control";
}

/// What the kernel verifier knows as a spin lock, by the name of its type.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct bpf_spin_lock {
    pub val: u32,
}

/// A lock in a map value. User space reads it as zero and writes it as whatever it likes.
pub type SpinLock = bpf_spin_lock;

/// An IPv6 address, or an IPv4 one mapped into ::ffff:0:0/96.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// Third word of a mapped IPv4 address, in network byte order.
    pub const MAPPED: u32 = 0xFFFF_u32.to_be();

    /// `a.b.c.d` as it stands in the packet, mapped.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Address {
        Address([0, 0, Self::MAPPED, word])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// The address with the bits outside `mask` cleared.
    #[inline(always)]
    pub const fn masked(&self, mask: &Address) -> Address {
        let (a, m) = (self.0, mask.0);
        Address([a[0] & m[0], a[1] & m[1], a[2] & m[2], a[3] & m[3]])
    }

    /// A mask of the first `bits` bits, at most 128. For IPv4, count the 96 before it.
    pub const fn mask(bits: u32) -> Address {
        let mut words = [0u32; 4];
        let mut i = 0;
        while i < 4 {
            let from = i as u32 * 32;
            let here = if bits <= from {
                0
            } else if bits - from > 32 {
                32
            } else {
                bits - from
            };
            words[i] = if here == 0 { 0 } else { (u32::MAX << (32 - here)).to_be() };
            i += 1;
        }
        Address(words)
    }
}

/// A connection: key of the flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    pub client: Address,
    pub server: Address,
    pub client_port: u16,
    pub server_port: u16,
}

/// A source in a scope: key of the source table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceKey {
    /// Masked as the policy says.
    pub address: Address,
    /// [`Policy::scope`].
    pub scope: u32,
}

/// What an over-limit ping leads to.
pub mod action {
    /// Count and report.
    pub const OBSERVE: u8 = 0;
    /// Turn it into an unsolicited pong, which the server ignores (RFC 6455, 5.5.3).
    pub const DEFUSE: u8 = 1;
    /// Drop the source's segments to protected ports.
    pub const DROP: u8 = 2;

    /// The name in options and JSON.
    pub const fn name(action: u8) -> &'static str {
        match action {
            OBSERVE => "observe",
            DEFUSE => "defuse",
            _ => "drop",
        }
    }
}

/// [`Policy::flags`]: with a full flow table, refuse the connection (drop its 101) instead of
/// letting it through untracked.
pub const FLOWS_FAIL_CLOSED: u8 = 1 << 0;
/// [`Policy::flags`]: with a full source table, treat a newcomer's pings as over the limit instead
/// of letting them pass.
pub const SOURCES_FAIL_CLOSED: u8 = 1 << 1;

/// [`Policy::flags`]: let packets pass that may carry TCP to a protected port and cannot be
/// followed: first fragments, and headers that hide it.
pub const UNREADABLE_PASSES: u8 = 1 << 2;

/// [`Policy::flags`]: some source may be dropped although [`Policy::action`] is not
/// [`action::DROP`]: a rule says so, or sources climb to it.
pub const MAY_DROP: u8 = 1 << 3;

/// [`Policy::flags`]: some class of frames has a limit, [`Policy::class_limits`].
pub const LIMITS_CLASSES: u8 = 1 << 4;

/// [`Policy::flags`]: the scope's ports speak TLS. Records are followed, not frames; bytes are never
/// changed, and nothing is dropped but under [`action::DROP`].
pub const TLS: u8 = 1 << 5;

/// Policies that can be in force side by side. Scope 0 is that of all ports without settings of
/// their own; each port with some has a scope, in which its sources are counted for themselves.
pub const SCOPES: u32 = 32;

/// The policy of one scope. A packet sees one policy whole: user space writes the set that is not in
/// force and then switches [`name::ACTIVE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// Pings a source may send in any window.
    pub rate: Rate,
    /// Pings a connection may send in any window; the same window. Limit 0: no such limit.
    pub connection_rate: Rate,
    /// Pings that a connection of a throttled source is answered in any
    /// [`Rate::share_window_ms`]: at most 8.
    pub share: u32,
    /// Raised whenever a policy or a rule changes, and never 0: what a source knows of them may be
    /// out of date. The same in all scopes.
    pub generation: u32,
    /// How many rules there are; with none there is nothing to look up.
    pub rules: u32,
    /// One of [`action`].
    pub action: u8,
    /// [`FLOWS_FAIL_CLOSED`], [`SOURCES_FAIL_CLOSED`], [`UNREADABLE_PASSES`], [`MAY_DROP`],
    /// [`LIMITS_CLASSES`], [`TLS`].
    pub flags: u8,
    pub _pad: [u8; 2],
    /// What of a mapped IPv4 address makes a source.
    pub mask_v4: Address,
    /// What of an IPv6 address makes a source.
    pub mask_v6: Address,
    /// Which scope this is.
    pub scope: u32,
    /// A throttling lasts so many milliseconds at the least; 0: as long as the window.
    pub min_throttle_ms: u32,
    /// Pings over the limit in one window after which a source is dropped where it would be
    /// defused; 0: never.
    pub escalate_after: u32,
    /// Which settings the scope has of its own, the others being those of scope 0; [`own`]. For
    /// people: the kernel does not look at it.
    pub own: u32,
    /// Frames that a source may send in any window, by [`crate::flood::Class`]; the same window. Limit
    /// 0: no such limit.
    pub class_limits: [Rate; crate::flood::CLASSES],
    /// Longest payload of a data frame that is tiny.
    pub tiny_bytes: u32,
    /// Shortest and longest TLS record that may hold a ping, as its header has it: with what the cipher
    /// adds, without the header.
    pub record_min: u16,
    pub record_max: u16,
}

impl Policy {
    /// The least [`action`] under which packets are dropped or changed: on a TLS port nothing can be
    /// defused, and what is small there may be anything.
    #[inline(always)]
    pub const fn least_action(&self) -> u8 {
        action::DEFUSE + (self.flags & TLS != 0) as u8
    }
}

/// Which settings a scope or a rule has of its own.
pub mod own {
    /// The limit of [`super::Policy::rate`].
    pub const LIMIT: u32 = 1 << 1;
    /// Its window.
    pub const WINDOW: u32 = 1 << 2;
    pub const ACTION: u32 = 1 << 3;
    pub const MIN_THROTTLE: u32 = 1 << 4;
    pub const ESCALATE: u32 = 1 << 5;
    /// The limit of [`super::Policy::connection_rate`]; not in rules.
    pub const CONNECTION_LIMIT: u32 = 1 << 6;
    /// [`super::Policy::share`]; not in rules.
    pub const SHARE: u32 = 1 << 7;
    /// [`super::TLS`]; not in rules.
    pub const TLS: u32 = 1 << 8;
    /// The limit of [`crate::flood::Class::SmallRecord`]; not in rules.
    pub const RECORD_LIMIT: u32 = 1 << 9;
    /// [`super::Policy::record_min`] and the longest; not in rules.
    pub const RECORD_BYTES: u32 = 1 << 10;
}

/// What holds for a source: its scope's policy, and what the longest rule that covers it has
/// otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limits {
    /// As [`Policy::rate`].
    pub rate: Rate,
    /// As [`Policy::min_throttle_ms`].
    pub min_throttle_ms: u32,
    /// As [`Policy::escalate_after`].
    pub escalate_after: u32,
    /// One of [`action`].
    pub action: u8,
    pub _pad: [u8; 3],
}

impl Limits {
    /// Where no rule says otherwise.
    #[inline(always)]
    pub const fn of(policy: &Policy) -> Limits {
        Limits {
            rate: policy.rate,
            min_throttle_ms: policy.min_throttle_ms,
            escalate_after: policy.escalate_after,
            action: policy.action,
            _pad: [0; 3],
        }
    }

    /// With what `rule` has otherwise.
    ///
    /// Masks instead of branches: the kernel's verifier would follow each combination of them.
    #[inline(always)]
    pub fn with(self, rule: &Rule) -> Limits {
        let (own, other) = (&rule.limits, rule.flags);
        let limit = pick(other, own::LIMIT, own.rate.limit, self.rate.limit);
        let shift = pick(other, own::LIMIT, own.rate.shift, self.rate.shift);
        let window_ms = pick(other, own::WINDOW, own.rate.window_ms, self.rate.window_ms);
        let least = pick(other, own::MIN_THROTTLE, own.min_throttle_ms, self.min_throttle_ms);
        let after = pick(other, own::ESCALATE, own.escalate_after, self.escalate_after);
        let action = pick(other, own::ACTION, own.action as u32, self.action as u32);
        Limits {
            rate: Rate { limit, window_ms, shift },
            min_throttle_ms: least,
            escalate_after: after,
            action: action as u8,
            _pad: [0; 3],
        }
    }
}

/// `yes` where `flags` have the one bit, else `no`.
#[inline(always)]
fn pick(flags: u32, bit: u32, yes: u32, no: u32) -> u32 {
    let mask = (flags >> bit.trailing_zeros() & 1).wrapping_neg();
    no ^ (no ^ yes) & mask
}

/// What a rule in the LPM trie says of the addresses it covers. The longest prefix decides alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// [`Rule::ALLOW`], and which of `limits` the rule has ([`own`]). User space keeps notes of its
    /// own in the upper half.
    pub flags: u32,
    pub limits: Limits,
}

impl Rule {
    /// Count, never act.
    pub const ALLOW: u32 = 1 << 0;
}

/// The ports, by number in the machine's byte order: 0 where a port is not protected, else its
/// scope and 1, in the bits of [`Ports::SCOPE`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ports(pub [u8; 65_536]);

impl Ports {
    /// Bits of a port's byte that hold its scope and 1.
    pub const SCOPE: u8 = 0x3F;
}

/// Tunnels to look into. No map: a constant of the programs, [`global::TUNNELS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tunnels {
    /// UDP port of VXLAN, in the machine's byte order; 0 for none.
    pub vxlan: u16,
    /// UDP port of Geneve.
    pub geneve: u16,
    /// IPv4 and IPv6 in each other and in themselves: 1, or 0.
    pub ip_in_ip: u8,
    pub _pad: u8,
}

/// Constants of the programs that the loader sets.
pub mod global {
    /// [`super::Tunnels`].
    pub const TUNNELS: &str = "TUNNELS";
}

/// What all CPUs have to know.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Shared {
    pub lock: SpinLock,
    pub _pad: u32,
    /// The latest [`Source::throttled_until`] of all: past it nobody is throttled, and nothing has
    /// to be looked up.
    pub throttled_until: u64,
    /// When a full table was last searched for entries to reclaim.
    pub swept: u64,
}

/// [`Pending::flags`]: the request's head is longer than [`crate::handshake::MAX_HEAD`], so that
/// nobody knows where it ends.
pub const LOST: u8 = 1 << 0;

/// A request whose answer has not been seen: value of [`name::PENDING`] and [`name::PROVEN`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Pending {
    /// How far the request's head was read.
    pub head: crate::handshake::HeadScanner,
    /// How far the head of a 101 was read that one segment does not hold.
    pub answer: crate::handshake::HeadScanner,
    /// Sequence number of the next byte to read.
    pub next: u32,
    /// Bytes of the head so far.
    pub length: u32,
    /// [`LOST`] or 0.
    pub flags: u8,
    /// Whose programs read the request, one of [`owner`](crate::flow::owner).
    pub owner: u8,
    pub _pad: [u8; 2],
    /// Bytes of the 101's head so far; 0 when there is no unfinished one.
    pub answer_length: u32,
    /// Sequence number of its next byte.
    pub answer_next: u32,
    /// Acknowledgement number of the latest segment that was read of the request.
    pub claimed: u32,
    /// On a TLS port: where the client's records stand, as far as they were followed.
    pub records: crate::tracker::Tracker,
}

impl Pending {
    /// There is a request, or the beginning of an answer. A connection without either keeps its place
    /// only.
    #[inline(always)]
    pub const fn is_under_way(&self) -> bool {
        self.length | self.answer_length != 0
    }
}

/// How many requests of connections are kept at most that the server has spoken on.
pub const PROVEN: u32 = 16_384;

/// How many [`Stranger`]s there are at most.
pub const STRANGERS: u32 = 16_384;

/// How many [`Border`]s there are at most, a power of two.
pub const BORDERS: u32 = 65_536;

/// Where a segment of a flow began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BorderName {
    /// Made of [`crate::flow::Flow::generation`], which nobody can guess.
    pub generation: u32,
    /// Sequence number of its first byte.
    pub seq: u32,
}

impl BorderName {
    /// Its place in the array, which it shares with others: the latest one has it. (A hash table that
    /// forgets the oldest would be as good, and ten times as slow to write.)
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        let mixed = (self.generation ^ self.seq).wrapping_mul(0x9E37_79B1);
        mixed >> (32 - BORDERS.trailing_zeros())
    }
}

/// A border, and where the stream stood there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Border {
    pub name: BorderName,
    pub start: crate::tracker::Tracker,
}

const _: () = assert!(size_of::<Border>() == 32 && BORDERS.is_power_of_two());

/// A connection without a flow on which the server sent data: value of the strangers' table.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Stranger {
    /// Where the client's next header may be.
    pub candidate: crate::search::Candidate,
    /// The client's bytes up to here were acknowledged by the server.
    pub acked: u32,
    /// The server's bytes up to here were sent.
    pub server_high: u32,
}

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
}

impl Counter {
    /// How many there are.
    pub const COUNT: usize = Counter::MptcpRefused as usize + 1;
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

/// Events of one kind that one CPU may send in a second; the rest is counted.
pub const EVENTS_PER_SECOND: u64 = 100;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A source went past the limit. `value`: pings in the segment that did it; `detail`: its scope.
    Throttled = 0,
    /// A throttling ended. `detail`: the source's scope.
    Released,
    /// Frame headers violate RFC 6455. `detail`: bits of [`crate::frame::Violations`]; `value`:
    /// frames.
    Violation,
    /// The server answered a handshake.
    FlowOpened,
    /// A connection ended. `value`: its client frames.
    FlowClosed,
    /// A flow lost step. `value`: bytes that were never seen.
    Unsynced,
    /// A table has no room. `detail`: 0 flows, 1 sources.
    TableFull,
}

impl EventKind {
    pub const COUNT: usize = 7;
    pub const ALL: [EventKind; Self::COUNT] = [
        EventKind::Throttled,
        EventKind::Released,
        EventKind::Violation,
        EventKind::FlowOpened,
        EventKind::FlowClosed,
        EventKind::Unsynced,
        EventKind::TableFull,
    ];

    /// The name in logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::Throttled => "throttled",
            EventKind::Released => "released",
            EventKind::Violation => "violation",
            EventKind::FlowOpened => "flow_opened",
            EventKind::FlowClosed => "flow_closed",
            EventKind::Unsynced => "unsynced",
            EventKind::TableFull => "table_full",
        }
    }
}

/// A record in the ring buffer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC (coarse).
    pub time: u64,
    pub value: u64,
    /// The connection; for events of a source, `client` is the source and the rest is zero.
    pub flow: FlowKey,
    /// One of [`EventKind`].
    pub kind: u8,
    /// The side a violation is on: 0 client, 1 server.
    pub side: u8,
    pub detail: u16,
}

/// What the control program is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// Throttle `source` until `until`; the entry is made when there is none.
    Throttle = 0,
    /// Release `source`.
    Release = 1,
    /// Log `pings` pings that a terminator decrypted.
    Report = 2,
    /// Write the log of pings in groups of 2^`pings`, for a window of `until` milliseconds: the
    /// limit changes ([`crate::window::RateWindow::regroup`]).
    Regroup = 3,
}

/// A request to the control program: the payload of its packet, behind 14 bytes of Ethernet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Request {
    /// One of [`Operation`].
    pub operation: u32,
    /// For [`Operation::Report`] and [`Operation::Regroup`].
    pub pings: u32,
    /// For [`Operation::Throttle`]: nanoseconds of CLOCK_MONOTONIC, or
    /// [`crate::source::UNTIL_RELEASED`]. For [`Operation::Regroup`].
    pub until: u64,
    pub source: SourceKey,
    pub _pad: u32,
}

/// Answers of the control program.
pub mod answer {
    pub const DONE: u32 = 0;
    pub const NOT_FOUND: u32 = 1;
    pub const TABLE_FULL: u32 = 2;
    pub const BAD_REQUEST: u32 = 3;
}

const _: () = {
    assert!(size_of::<FlowKey>() == 36 && align_of::<FlowKey>() == 4);
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<Policy>() == 156);
    assert!(size_of::<Rule>() == 28);
    assert!(size_of::<Flow>() == 808);
    assert!(size_of::<Source>() == 640);
    assert!(size_of::<Event>() == 56);
    assert!(size_of::<Request>() == 40);
    assert!(size_of::<Pending>() == 80);
    assert!(size_of::<Stranger>() == 16);
    assert!(size_of::<Ports>() == 65_536);
};

#[cfg(any(test, feature = "user"))]
mod user {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::{Address, FlowKey};

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Address {
            let v6 = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let o = v6.octets();
            Address([0, 4, 8, 12].map(|i| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]])))
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> IpAddr {
            let mut octets = [0; 16];
            for (four, word) in octets.chunks_exact_mut(4).zip(address.0) {
                four.copy_from_slice(&word.to_ne_bytes());
            }
            if address.is_v4() {
                Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]).into()
            } else {
                Ipv6Addr::from(octets).into()
            }
        }
    }

    impl FlowKey {
        pub fn new(client: SocketAddr, server: SocketAddr) -> FlowKey {
            FlowKey {
                client: client.ip().into(),
                server: server.ip().into(),
                client_port: client.port().to_be(),
                server_port: server.port().to_be(),
            }
        }

        pub fn client_addr(&self) -> SocketAddr {
            SocketAddr::new(self.client.into(), u16::from_be(self.client_port))
        }

        pub fn server_addr(&self) -> SocketAddr {
            SocketAddr::new(self.server.into(), u16::from_be(self.server_port))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["10.77.0.1", "fd77::1", "::1", "255.255.255.255"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
        }
    }

    #[test]
    fn masks_cut_prefixes() {
        let v6: Address = "fd77:0:0:1:2:3:4:5".parse::<IpAddr>().unwrap().into();
        assert_eq!(
            IpAddr::from(v6.masked(&Address::mask(64))),
            "fd77:0:0:1::".parse::<IpAddr>().unwrap()
        );
        let v4: Address = "10.77.3.9".parse::<IpAddr>().unwrap().into();
        assert_eq!(
            IpAddr::from(v4.masked(&Address::mask(96 + 24))),
            "10.77.3.0".parse::<IpAddr>().unwrap()
        );
        assert_eq!(v4.masked(&Address::mask(128)), v4);
    }
}
