//! TCP options of handshakes: Multipath TCP, window scale and timestamps.

use core::{
    ffi::{c_long, c_void},
    intrinsics::{AtomicOrdering, atomic_cxchg},
};

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_loop};
use ws_guard_common::{
    maps::{Counter, FlowKey, Syn, stamp, syns},
    pace::scale,
};

use crate::{
    context::Context,
    cpu,
    maps::SYNS,
    opening,
    packet::{self, Packet, SYN, Segment, TCP_HEADER},
    report,
    stream::walk::Walker,
};

/// Option kinds, RFC 9293, 3.1, RFC 7323, 2.2, and RFC 8684, 3.
const END: u8 = 0;
const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const TIMESTAMPS: u8 = 8;
const MPTCP: u8 = 30;
/// Maximum length of a header's options.
const MAX_OPTIONS: u32 = 40;

/// Read the options of a client's segment in the handshake.
///
/// Of a SYN, note the window scale until the SYN-ACK leaves, and refuse Multipath TCP.
/// MPTCP (RFC 8684) could spread frames over several connections, which the guard follows
/// separately. So where the guard enforces, MPTCP options get the next number, which is reserved: a
/// server skips unknown options (RFC 9293, MUST-6), and both sides go on with plain TCP (RFC 8684,
/// 3.7).
///
/// As with a PING that becomes a PONG, a byte grows by one, and the checksum is fixed in the same
/// way.
///
/// Of others, the timestamp that they echo: [`Beginning::echoes`](ws_guard_common::maps::Beginning::echoes).
#[cold]
#[inline(never)]
pub fn client<P: Packet>(context: &Context, payload: impl Fn(&Segment) -> P) {
    let is_syn = context.segment.flags & SYN != 0;
    let (Some(Walker { state, mut packet }), Some(segment)) =
        (read(payload, !is_syn || !context.enforces()), packet::segment())
    else {
        return;
    };
    if !is_syn {
        opening::scale::echoes(state.reading.echoed);
        return;
    }
    opening::scale::asks_again(state.reading.scale);
    ws_guard_note_syn(state.reading.scale, context.now);
    if state.rewrite.even + state.rewrite.odd > 0 {
        packet.fix_checksum(segment, state.rewrite.even, state.rewrite.odd);
        report::count(Counter::MptcpRefused);
    }
}

/// The two places of a connection's SYN.
#[inline(always)]
fn places(key: &FlowKey) -> Option<[*mut Syn; 2]> {
    let pair = syns::syn_pair(key);
    Some([SYNS.get_ptr_mut(pair)?, SYNS.get_ptr_mut(pair | 1)?])
}

/// Note the current segment, a SYN with this `scale`.
///
/// A global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_note_syn(scale: u32, now: u64) -> u32 {
    let Some(segment) = packet::segment() else {
        return 0;
    };
    let Some([first, second]) = places(&segment.key) else {
        return 0;
    };
    let syn = (&segment.key, segment.seq);
    let mut tries = 0;
    while tries < 4 {
        // SAFETY: words of map values, which stay mapped while the program runs.
        let pair = unsafe { [first.read_volatile(), second.read_volatile()] };
        let (place, word) = syns::note(pair, syn, scale, segment.len, now);
        let (at, old) = if place == 0 { (first, pair[0]) } else { (second, pair[1]) };
        // Another CPU may note the same SYN with another scale meanwhile.
        if replace(at, old, word) {
            return 0;
        }
        tries += 1;
    }
    // SAFETY: as above.
    unsafe { first.write_volatile(Syn::uncertain(syn, now)) };
    0
}

/// Window scale in a server's SYN-ACK, encoded as in [`scale`], and above that byte its [`stamp`].
#[inline(always)]
pub fn server<P: Packet>(payload: impl Fn(&Segment) -> P) -> u32 {
    read(payload, true).map_or(scale::UNKNOWN, |walker| {
        walker.state.reading.scale | u32::from(walker.state.reading.stamp) << 8
    })
}

/// Scale of the client's windows on a connection whose SYN-ACK has this `ack`, and `server` for the server's: none if
/// that has none (RFC 7323, 2.2), or if it is not certain. With it [`syns::HAS_DATA`], if the SYN-ACK may take data.
#[inline(always)]
pub fn syn(ack: u32, server: u32) -> u32 {
    // SAFETY: no arguments, no effects.
    let syn = ws_guard_answer_syn(ack, unsafe { bpf_ktime_get_coarse_ns() });
    if server == scale::NONE { syn & syns::HAS_DATA | scale::NONE } else { syn }
}

/// [`syns::answer`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_answer_syn(ack: u32, now: u64) -> u32 {
    let Some(segment) = packet::segment() else {
        return scale::NONE;
    };
    let Some([first, second]) = places(&segment.key) else {
        return scale::NONE;
    };
    // SAFETY: as above.
    let pair = unsafe { [first.read_volatile(), second.read_volatile()] };
    let (scale, place, word) = syns::answer(pair, &segment.key, ack, now);
    let (at, old) = match place {
        0 => (first, pair[0]),
        1 => (second, pair[1]),
        _ => return scale,
    };
    // One that was noted meanwhile may have another scale.
    if replace(at, old, word) { scale } else { scale & syns::HAS_DATA | scale::NONE }
}

/// Replace the SYN in a place, unless another CPU has meanwhile.
#[inline(always)]
fn replace(at: *mut Syn, old: Syn, new: Syn) -> bool {
    // SAFETY: a word of a map value, which stays mapped while the program runs.
    let (_, replaced) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            at.cast(),
            old.0,
            new.0,
        )
    };
    replaced
}

/// Read the options of the current segment, and refuse MPTCP unless it is only to be `looked` at.
#[inline(always)]
fn read<P: Packet>(payload: impl Fn(&Segment) -> P, looked: bool) -> Option<Walker<P>> {
    let (Some(current), Some(state)) = (packet::current(), cpu::state()) else {
        return None;
    };
    // SAFETY: this CPU's element, with no other user meanwhile.
    let segment = unsafe { &raw mut (*current).segment };
    // SAFETY: as above. The options are read and changed as if they were the payload.
    unsafe {
        let (data, len) = ((*segment).payload, (*segment).len);
        let options = (*segment).tcp + TCP_HEADER;
        (*segment).payload = options;
        (*segment).len = data.wrapping_sub(options);
        (state.reading.at, state.reading.scale) = (0, scale::NONE);
        (state.reading.stamp, state.reading.echoed) = (stamp::NONE, stamp::NONE);
        let mut walker = Walker { state, packet: payload(&*segment) };
        walker.packet.only_look(looked);
        let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = option::<P>;
        bpf_loop(MAX_OPTIONS, turn as *mut c_void, (&raw mut walker).cast(), 0);
        ((*segment).payload, (*segment).len) = (data, len);
        Some(walker)
    }
}

/// One option; 1 ends the loop.
unsafe extern "C" fn option<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `read`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let at = walker.state.reading.at;
    let Some(kind) = walker.packet.u8_at(at) else {
        return 1;
    };
    if kind == END {
        return 1;
    }
    if kind == NOP {
        walker.state.reading.at = at + 1;
        return 0;
    }
    let Some(length) = walker.packet.u8_at(at + 1) else {
        return 1;
    };
    if kind == MPTCP {
        walker.packet.defuse(at);
    }
    // Receivers skip one of another length.
    if kind == WINDOW_SCALE
        && length == 3
        && let Some(shift) = walker.packet.u8_at(at + 2)
    {
        walker.state.reading.scale = scale::of(shift);
    }
    if kind == TIMESTAMPS && length == 10 {
        read_timestamps(walker, at);
    }
    walker.state.reading.at = at + u32::from(length);
    (length < 2) as c_long
}

/// Read the timestamps' option at offset `at`.
#[inline(always)]
fn read_timestamps<P: Packet>(walker: &mut Walker<P>, at: u32) {
    // One after the other: together they would be kept on the stack, read or not.
    let Some(value) = walker.packet.u8_at(at + 5) else {
        return;
    };
    walker.state.reading.stamp = stamp::of(value);
    let Some(high) = walker.packet.u16_at(at + 6) else {
        return;
    };
    let Some(low) = walker.packet.u16_at(at + 8) else {
        return;
    };
    // Linux takes an echo of 0 for none, and of several options the last one.
    walker.state.reading.echoed = if high | low != 0 { stamp::of(low as u8) } else { stamp::NONE };
}
