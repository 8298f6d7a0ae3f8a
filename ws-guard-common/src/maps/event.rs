//! Events.

use super::{FlowKey, SourceKey};

/// Maximum of events of one kind per CPU and second; the rest is only counted.
pub const EVENTS_PER_SECOND: u64 = 100;

/// Kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A connection and its source went over the limit. `value`: pings in the segment that did it.
    Throttled = 0,
    /// A source's throttle ended.
    Released,
    /// Frame headers violate RFC 6455. `detail`: bits of [`crate::frame::Violations`]; `value`:
    /// frames.
    Violation,
    /// The server answered a handshake.
    FlowOpened,
    /// A connection ended. `value`: its client frames.
    FlowClosed,
    /// A flow went out of sync. `value`: unseen bytes.
    Unsynced,
    /// A table has no room. `detail`: 0 flows, 1 sources.
    TableFull,
    /// An untrusted peer's requests carry the addresses of many clients.
    /// `value`: their approximate number.
    ProxySuspected,
    /// A source is banned.
    Banned,
    /// Pacing of a connection over the limit began.
    Paced,
    /// Pacing of a connection ended. `value`: bytes granted meanwhile.
    Unpaced,
}

impl EventKind {
    pub const COUNT: usize = 11;
    /// Room for their budgets in [`super::Counters`], as [`super::Counter::ROOM`].
    pub const ROOM: usize = 32;
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
