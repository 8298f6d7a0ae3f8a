//! What is told when it happens.

use super::{FlowKey, SourceKey};

/// Events of one kind that one CPU may send in a second; the rest is counted.
pub const EVENTS_PER_SECOND: u64 = 100;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A connection went over the limit, and so its source. `value`: pings in the segment that did it.
    Throttled = 0,
    /// A source's throttling ended.
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
    /// An untrusted peer's requests carry the addresses of many clients. `value`: how many, about.
    ProxySuspected,
    /// A source is banned.
    Banned,
    /// The window of a connection over the limit is held from now on.
    Paced,
    /// It no longer is. `value`: bytes granted meanwhile.
    Unpaced,
}

impl EventKind {
    pub const COUNT: usize = 11;
    pub const ALL: [EventKind; Self::COUNT] = [
        EventKind::Throttled,
        EventKind::Released,
        EventKind::Violation,
        EventKind::FlowOpened,
        EventKind::FlowClosed,
        EventKind::Unsynced,
        EventKind::TableFull,
        EventKind::ProxySuspected,
        EventKind::Banned,
        EventKind::Paced,
        EventKind::Unpaced,
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
            EventKind::ProxySuspected => "proxy_suspected",
            EventKind::Banned => "banned",
            EventKind::Paced => "paced",
            EventKind::Unpaced => "unpaced",
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
    /// The connection; all zero where the event is about none.
    pub flow: FlowKey,
    /// The source, for events that are about one; otherwise all zero.
    pub source: SourceKey,
    /// One of [`EventKind`].
    pub kind: u8,
    /// The side a violation is on: 0 client, 1 server.
    pub side: u8,
    pub detail: u16,
    pub _pad: u32,
}
