//! Heartbeats of both sides: pings that wait, and the pongs that answer them.
//!
//! A ping waits from when it is passed on; one that is defused does not. A frame that a segment's
//! end cuts is not followed.

use aya_ebpf::{
    bindings::BPF_ANY, btf_maps::PerCpuArray, helpers::bpf_ktime_get_ns, macros::btf_map,
};
use ws_guard_common::{
    flow::Flow,
    frame::{LEN7, MAX_CONTROL_PAYLOAD},
    heartbeat::{Heartbeats, WORDS, digest, micros, ticks},
};

use core::{
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg},
};

use crate::{
    cpu::{self, Beats},
    maps::HEARTBEATS,
    packet::{self, Packet, payload::Hook},
    report::Side,
    servers,
};

/// Payload of a control frame.
#[btf_map]
static PAYLOAD: PerCpuArray<[u64; WORDS], 1> = PerCpuArray::new();

/// The time in ticks.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: no arguments, no effects.
    ticks(unsafe { bpf_ktime_get_ns() })
}

/// Digest of the payload of the control frame at payload offset `at` of the current segment; 0 where
/// the segment does not hold it whole.
#[inline(always)]
fn digest_at<H: Hook>(hook: &H, at: u32, masked: u32) -> u32 {
    let Some(segment) = packet::segment() else {
        return 0;
    };
    let key = masked.wrapping_neg();
    let header = 2 + (key & 4);
    let offset = segment.payload.wrapping_add(at);
    if at >= segment.len || segment.len - at < header {
        return 0;
    }
    let mut bytes = [0u8; 6];
    let (data, end) = hook.linear();
    match packet::at::<[u8; 6]>(data, end, offset as usize) {
        // SAFETY: `at` checked the bounds; bytes need no alignment.
        Some(direct) => bytes = unsafe { direct.read_unaligned() },
        // SAFETY: two or six bytes on the stack; the helper checks the packet's bounds.
        None if unsafe { !hook.load(offset, bytes.as_mut_ptr(), header) } => return 0,
        None => {}
    }
    let [_, second, a, b, c, d] = bytes;
    let len = (second & LEN7) as u32;
    if segment.len - at - header < len {
        return 0;
    }
    // A server's frame has no key.
    let mask = (u32::from_le_bytes([a, b, c, d]) & key) as u64;
    let mask = mask << 32 | mask;
    let Some(words) = PAYLOAD.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's element.
    let words = unsafe { &mut *words };
    words[(len / 8) as usize % WORDS] = mask;
    // The verifier has to see both bounds, and LLVM would leave one out.
    let last = black_box(len.wrapping_sub(1));
    if last < MAX_CONTROL_PAYLOAD as u32 {
        // SAFETY: the words have room for the longest payload.
        if !unsafe { hook.load(offset + header, words.as_mut_ptr().cast(), last + 1) } {
            return 0;
        }
    }
    digest(words, mask, len)
}

/// Kind of a control frame, in two bits: the side whose ping it is or answers, and [`ASKS`].
///
/// The client's ping, which was passed on.
pub const CLIENT_ASKS: u32 = Side::Client as u32 | ASKS;
/// The client's pong.
pub const CLIENT_ANSWERS: u32 = Side::Server as u32;
/// The server's ping.
const SERVER_ASKS: u32 = Side::Server as u32 | ASKS;
/// The server's pong.
const SERVER_ANSWERS: u32 = Side::Client as u32;
/// It is a ping.
const ASKS: u32 = 1 << 1;

/// Handle what the walk of the client's segment found: its first and its last ping, its last pong.
#[inline(always)]
pub fn client_walked<P: Packet>(packet: &P, flow: &mut Flow) {
    let Some(state) = cpu::resume() else {
        return;
    };
    let Beats { first_ping, ping, pong, .. } = state.counted.beats;
    if first_ping & pong == Beats::NOWHERE {
        return;
    }
    let passed = if state.gap.whole == 0 { state.counted.passed } else { 0 };
    if passed > 0 {
        packet.heartbeat(first_ping, CLIENT_ASKS, flow);
    }
    if passed > 1 && passed >= state.walk.pings {
        packet.heartbeat(ping, CLIENT_ASKS, flow);
    }
    if pong != Beats::NOWHERE {
        packet.heartbeat(pong, CLIENT_ANSWERS, flow);
    }
}

/// The same of the server's segment: its first and its last pong, its last ping.
#[inline(always)]
pub fn server_walked<P: Packet>(packet: &P, flow: &mut Flow) {
    let Some(state) = cpu::resume() else {
        return;
    };
    let Beats { ping, first_pong, pong, .. } = state.counted.beats;
    if first_pong & ping == Beats::NOWHERE {
        return;
    }
    if first_pong != Beats::NOWHERE {
        packet.heartbeat(first_pong, SERVER_ANSWERS, flow);
    }
    if pong != first_pong {
        packet.heartbeat(pong, SERVER_ANSWERS, flow);
    }
    if ping != Beats::NOWHERE {
        packet.heartbeat(ping, SERVER_ASKS, flow);
    }
}

/// Handle the control frame at payload offset `at` of the current segment, on the flow of `generation`.
/// Returns the ticks that a ping waited, plus 1, or one of [`NOTHING`] and [`GIVEN_UP`].
///
/// A pong that nothing waits for costs one look-up. The flow is not needed: its lock would take longer
/// than all the rest.
#[inline(always)]
pub fn at<H: Hook>(hook: &H, at: u32, what: u32, generation: u32) -> u32 {
    let (side, asks) = ((what & 1) as usize, what >> 1 & 1);
    let Some(key) = packet::key() else {
        return NOTHING;
    };
    let mut found = HEARTBEATS.get_ptr_mut(key);
    // SAFETY: single words of a map value, which stays mapped while a program runs.
    let waits = found.is_some_and(|found| unsafe { (*found).waiting[side].any() });
    if asks == 0 && !waits {
        return NOTHING;
    }
    if found.is_none() {
        let new = Heartbeats { generation, ..Heartbeats::default() };
        let _ = HEARTBEATS.insert(key, &new, BPF_ANY.into());
        found = HEARTBEATS.get_ptr_mut(key);
    }
    let Some(heartbeats) = found else {
        return NOTHING;
    };
    // A client's ping of its own, or its pong to the server's.
    let digest = digest_at(hook, at, asks ^ side as u32);
    if digest == 0 {
        return NOTHING;
    }
    let now = now();
    let result = alone(heartbeats, |heartbeats| {
        heartbeats.of(generation);
        let waiting = &mut heartbeats.waiting[side];
        if asks != 0 {
            return if waiting.ask(now, digest) { GIVEN_UP } else { NOTHING };
        }
        match waiting.answer(now, digest) {
            Some(ticks) if ticks < GIVEN_UP - 1 => ticks + 1,
            _ => NOTHING,
        }
    });
    result.unwrap_or(NOTHING)
}

/// Tries to have a connection's heartbeats alone: longer than an interrupt of the CPU that changes them.
const TRIES: u32 = 256;

/// Change a connection's heartbeats, as the only CPU to do so. `None` where another one has them for
/// longer than the change takes, because it is a virtual one that does not run: then the frame is not
/// measured.
///
/// The lock of the kernel is not allowed in a table that evicts, and the flow's takes several times as
/// long as the change. An entry may be reused for another connection meanwhile, and then the digest or
/// the generation does not match.
#[inline(always)]
pub(crate) fn alone<T>(
    heartbeats: *mut Heartbeats,
    change: impl FnOnce(&mut Heartbeats) -> T,
) -> Option<T> {
    let mut tries = 0;
    while tries < TRIES {
        // SAFETY: an aligned word of a map value, which stays mapped while a program runs.
        let (_, free) = unsafe {
            atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                &raw mut (*heartbeats).busy,
                0,
                1,
            )
        };
        if free {
            // SAFETY: as above, and acquired by this CPU alone.
            let result = change(unsafe { &mut *heartbeats });
            // SAFETY: as above.
            unsafe {
                atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*heartbeats).busy, 0)
            };
            return Some(result);
        }
        tries += 1;
    }
    None
}

/// Result of [`at`]: nothing to count.
const NOTHING: u32 = 0;
/// Result of [`at`]: a ping that was not answered. Others are the ticks that one waited, plus 1.
const GIVEN_UP: u32 = u32::MAX;

/// Count a result of [`at`]. Not there: both together have more stack than there is.
#[inline(always)]
pub fn count(flow: &mut Flow, what: u32, result: u32) {
    match result {
        NOTHING => {}
        GIVEN_UP => servers::unanswered(what & 1),
        waited => {
            if what & 1 == Side::Client as u32 {
                let us = micros(waited - 1) as u32;
                // A single word; 0 is none.
                flow.heartbeat_rtt_us = if us == 0 { 1 } else { us };
            }
            servers::heartbeat(what & 1, waited - 1);
        }
    }
}
