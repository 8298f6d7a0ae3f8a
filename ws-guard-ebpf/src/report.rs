//! Counters and events.

use ws_guard_common::{
    frame::{Violation, Violations},
    maps::{
        Address, Counter, Counters, EVENTS_PER_SECOND, Event, EventKind, FlowKey, HEARTBEAT_BUCKETS,
    },
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

/// Which side's frames a walk counted.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    Client = 0,
    Server = 1,
}

/// Count what a header violates, by kind.
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

/// Tell about the violations of a walk.
#[inline(always)]
pub fn violation_event(side: Side, key: &FlowKey, walk: &Walk, now: u64) {
    if walk.violations > 0 {
        let value = walk.violations as u64 | (walk.kinds.0 as u64) << 32 | (side as u64) << 48;
        send(EventKind::Violation, key, now, value);
    }
}

/// An event of a connection.
#[inline(always)]
pub fn flow_event(kind: EventKind, key: &FlowKey, now: u64, value: u64) {
    send(kind, key, now, value);
}

/// An event of a source.
#[inline(always)]
pub fn source_event(kind: EventKind, source: &Address, now: u64, value: u64) {
    let key = FlowKey { client: *source, ..FlowKey::default() };
    send(kind, &key, now, value);
}

/// Send an event, unless this CPU has sent its share of the kind in this second: an attacker must
/// not be able to flood the log.
///
/// A function of its own, because events are rare and stack is scarce.
#[cold]
#[inline(never)]
fn send(kind: EventKind, key: &FlowKey, now: u64, value: u64) {
    let Some(counters) = counters() else {
        return;
    };
    // Close enough to a second, and no division.
    let second = now >> 30;
    if counters.event_second != second {
        counters.event_second = second;
        counters.event_budget = [0; EventKind::COUNT];
    }
    let budget = &mut counters.event_budget[kind as usize % EventKind::COUNT];
    if *budget >= EVENTS_PER_SECOND {
        counters.events[Counter::EventsSuppressed as usize] += 1;
        return;
    }
    *budget += 1;
    let event = Event {
        time: now,
        value: value as u32 as u64,
        flow: *key,
        kind: kind as u8,
        side: (value >> 48) as u8,
        detail: (value >> 32) as u16,
    };
    if EVENTS.output(&event, 0).is_err() {
        counters.events[Counter::EventsLost as usize] += 1;
    }
}

/// Put a ping-to-pong time into the histogram.
#[inline(always)]
pub fn heartbeat(ns: u64) {
    let Some(counters) = counters() else {
        return;
    };
    counters.heartbeat_sum_ns += ns;
    // Bucket n holds times below 2^n × 64 µs; 64 µs is 65,536 ns to within 2.4 %, but the bounds
    // are decimal, and so is the comparison.
    let mut bound = 64_000u64;
    let mut bucket = 0usize;
    while bucket < HEARTBEAT_BUCKETS - 1 {
        if ns < bound {
            break;
        }
        bound <<= 1;
        bucket += 1;
    }
    if bucket < HEARTBEAT_BUCKETS {
        counters.heartbeat[bucket] += 1;
    }
}
