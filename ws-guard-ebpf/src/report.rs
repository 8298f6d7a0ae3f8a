//! Counters and events.

use ws_guard_common::{
    frame::{Violation, Violations},
    maps::{Counter, Counters, EVENTS_PER_SECOND, Event, EventKind, FlowKey, SourceKey},
    tracker::Walk,
};

use crate::maps::{COUNTERS, EVENTS};

/// This CPU's counters.
///
/// Programs of one CPU do not interrupt each other here: XDP and TC run with bottom halves off.
#[inline(always)]
pub fn counters() -> Option<&'static mut Counters> {
    // SAFETY: the element is this CPU's alone, and lives as long as the map.
    COUNTERS.get_ptr_mut(0).map(|counters| unsafe { &mut *counters })
}

/// Count one.
#[inline(always)]
pub fn count(counter: Counter) {
    add(counter, 1);
}

/// Count `n`.
#[inline(always)]
pub fn add(counter: Counter, n: u64) {
    if let Some(counters) = counters() {
        counters.events[counter as usize] += n;
    }
}

/// Sender of frames.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    Client = 0,
    Server = 1,
}

impl From<u32> for Side {
    #[inline(always)]
    fn from(number: u32) -> Side {
        if number == Side::Client as u32 { Side::Client } else { Side::Server }
    }
}

/// Count a header's violations by kind.
#[inline(always)]
pub fn violations(side: Side, kinds: Violations) {
    if kinds.is_empty() {
        return;
    }
    let Some(counters) = counters() else {
        return;
    };
    let by_kind = match side {
        Side::Client => &mut counters.violations_in,
        Side::Server => &mut counters.violations_out,
    };
    let mut kind = 0;
    while kind < Violation::COUNT {
        by_kind[kind] += (kinds.0 >> kind & 1) as u64;
        kind += 1;
    }
}

/// Send an event about a walk's violations.
#[inline(always)]
pub fn violation_event(side: Side, key: &FlowKey, walk: &Walk, now: u64) {
    if walk.violations > 0 {
        let (side, kinds) = (side as u8, walk.kinds.0);
        send(EventKind::Violation, now, |event| {
            event.value = walk.violations as u64;
            event.flow = *key;
            event.side = side;
            event.detail = kinds;
        });
    }
}

/// Send an event about a connection.
#[inline(always)]
pub fn flow_event(kind: EventKind, key: &FlowKey, now: u64, value: u64) {
    send(kind, now, |event| {
        event.value = value;
        event.flow = *key;
    });
}

/// Send an event about a source, and the connection that caused it, if any.
#[inline(always)]
pub fn source_event(
    kind: EventKind,
    source: &SourceKey,
    flow: Option<&FlowKey>,
    now: u64,
    value: u64,
    detail: u16,
) {
    send(kind, now, |event| {
        event.value = value;
        event.source = *source;
        if let Some(flow) = flow {
            event.flow = *flow;
        }
        event.detail = detail;
    });
}

/// Send an event, unless this CPU's budget for the kind is used up in this second: an attacker must
/// not be able to flood the log.
///
/// Written in place in the ring buffer: the stack has no room for it.
#[inline(always)]
fn send(kind: EventKind, now: u64, fill: impl FnOnce(&mut Event)) {
    if !may_send(kind as u32, now) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        count(Counter::EventsLost);
        return;
    };
    // SAFETY: an event is plain data, for which all zero is valid; every byte is written here.
    let event = unsafe {
        let words = entry.as_mut_ptr().cast::<[u64; size_of::<Event>() / 8]>();
        *words = [0; size_of::<Event>() / 8];
        &mut *entry.as_mut_ptr()
    };
    event.time = now;
    event.kind = kind as u8;
    fill(event);
    entry.submit(0);
}

/// Use one of this CPU's budget for the kind in this second.
#[cold]
#[inline(never)]
fn may_send(kind: u32, now: u64) -> bool {
    let Some(counters) = counters() else {
        return false;
    };
    // Close enough to a second, and no division.
    let second = now >> 30;
    if counters.event_second != second {
        counters.event_second = second;
        counters.event_budget = [0; EventKind::ROOM];
    }
    let Some(budget) = counters.event_budget.get_mut(kind as usize) else {
        return false;
    };
    let may = *budget < EVENTS_PER_SECOND;
    *budget += may as u64;
    if !may {
        count(Counter::EventsSuppressed);
    }
    may
}
