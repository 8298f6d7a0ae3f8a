//! Figures by server.
//!
//! Looked up where a heartbeat is measured, a connection ends or a segment is of note, not for each
//! segment.

use core::hint::black_box;

use ws_guard_common::{
    flow::{ENDED, Flow},
    frame::Violation,
    heartbeat::{Times, micros, ticks},
    maps::{End, FlowKey, Segments, Server, ServerKey},
};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_coarse_ns};

use crate::{
    cpu,
    maps::{FLOWS, HEARTBEATS, NEW_SERVER, OTHERS, SERVERS, locked},
    packet,
    report::Side,
    stream::heartbeat,
};

/// This CPU's figures of the server at `key`, or those of all without room, to be changed.
#[inline(always)]
fn of(key: &FlowKey) -> Option<&'static mut Server> {
    let key = ServerKey::from(key);
    let found = match SERVERS.get_ptr_mut(&key) {
        Some(found) => Some(found),
        None => {
            add(&key);
            SERVERS.get_ptr_mut(&key).or_else(|| OTHERS.get_ptr_mut(0))
        }
    };
    // SAFETY: map values stay mapped while a program runs, and no other runs on this CPU meanwhile.
    let server = unsafe { &mut *found? };
    // SAFETY: no arguments, no effects.
    server.last_ns = unsafe { bpf_ktime_get_coarse_ns() };
    Some(server)
}

/// Make room for the figures of a server, if there is any.
#[inline(always)]
fn add(key: &ServerKey) {
    let Some(empty) = NEW_SERVER.get_ptr(0) else {
        return;
    };
    // SAFETY: of the value's size and alignment, and all zero, which is an empty one.
    let _ = unsafe { SERVERS.insert(key, &*empty.cast::<Server>(), BPF_NOEXIST.into()) };
}

/// Count the time of a ping of `side` to its pong, in ticks.
#[inline(always)]
pub fn heartbeat(side: u32, waited: u32) {
    ws_guard_heartbeat(side, waited);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_heartbeat(side: u32, waited: u32) -> u32 {
    let Some(server) = packet::key().and_then(of) else {
        return 0;
    };
    let us = micros(waited);
    let bucket = Times::bucket(us);
    server.heartbeats[(side & 1) as usize].add(bucket, us);
    0
}

/// Count a ping of `side` that was not answered.
#[inline(always)]
pub fn unanswered(side: u32) {
    ws_guard_unanswered(side);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_unanswered(side: u32) -> u32 {
    let Some(server) = packet::key().and_then(of) else {
        return 0;
    };
    server.unanswered[(side & 1) as usize] += 1;
    0
}

/// Count the first sign of the current connection's end, and the pings that it leaves unanswered.
#[inline(always)]
pub fn ended(end: End) {
    ws_guard_ended(end as u32);
}

#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_ended(end: u32) -> u32 {
    let Some(flow) = packet::key().and_then(|key| FLOWS.get_ptr_mut(key)) else {
        return 0;
    };
    // SAFETY: map values stay mapped while a program runs; it is changed under its lock.
    let flow = unsafe { &mut *flow };
    // SAFETY: no arguments, no effects.
    let now = ticks(unsafe { bpf_ktime_get_coarse_ns() });
    let first = locked(
        flow,
        #[inline(always)]
        |flow| {
            let first = flow.ended != ENDED;
            flow.ended = ENDED;
            first
        },
    );
    if !first {
        return 0;
    }
    let (mut by_client, mut by_server) = (0, 0);
    if let Some(heartbeats) = packet::key().and_then(|key| HEARTBEATS.get_ptr_mut(key)) {
        heartbeat::alone(heartbeats, |heartbeats| {
            heartbeats.of(flow.generation);
            by_client = heartbeats.waiting[0].end(now);
            by_server = heartbeats.waiting[1].end(now);
        });
    }
    let Some(server) = packet::key().and_then(of) else {
        return 0;
    };
    if let Some(count) = server.ended.get_mut(end as usize) {
        *count += 1;
    }
    server.unanswered[0] += by_client as u64;
    server.unanswered[1] += by_server as u64;
    0
}

/// Count the connection at `key`, which makes room for others, if nothing has shown its end.
///
/// For the callback of a sweep, where a lock of the flow cannot be taken.
#[cold]
#[inline(never)]
pub fn silent(key: &FlowKey, flow: &Flow) {
    if flow.ended == ENDED {
        return;
    }
    let Some(server) = of(key) else {
        return;
    };
    server.ended[End::Silence as usize] += 1;
}

/// Count the segments of note that a walk of `side` found.
#[inline(always)]
pub fn walked(side: Side, coalesces: bool, splits_header: bool, violations: u32) {
    let what = coalesces as u32 | (splits_header as u32) << 1;
    if what | violations != 0 {
        ws_guard_walked(side as u32, what);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_walked(side: u32, what: u32) -> u32 {
    let Some(state) = cpu::resume() else {
        return 0;
    };
    let kinds = if state.walk.violations > 0 { state.walk.kinds.0 } else { 0 };
    let Some(server) = packet::key().and_then(of) else {
        return 0;
    };
    let segments: &mut Segments = &mut server.segments[(side & 1) as usize];
    segments.coalesced += (what & 1) as u64;
    segments.split_headers += (what >> 1 & 1) as u64;
    let mut kind = 0;
    while kind < Violation::COUNT {
        segments.violations[kind] += (kinds >> kind & 1) as u64;
        kind += 1;
    }
    0
}

/// Count a segment of `side` that begins at `seq`, unless that is the `expected` place.
#[inline(always)]
pub fn in_place(side: Side, seq: u32, expected: u32) {
    // Or the verifier follows what comes after it for both, knowing them equal or not.
    let ahead = black_box(seq.wrapping_sub(expected));
    if ahead != 0 {
        ws_guard_out_of_place(side as u32, ahead);
    }
}

#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_out_of_place(side: u32, ahead: u32) -> u32 {
    let Some(server) = packet::key().and_then(of) else {
        return 0;
    };
    let behind = ahead >> 31;
    let segments: &mut Segments = &mut server.segments[(side & 1) as usize];
    segments.retransmitted += behind as u64;
    segments.out_of_order += (behind ^ 1) as u64;
    0
}
