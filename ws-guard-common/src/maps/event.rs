//! What is told when it happens.

use super::FlowKey;

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
