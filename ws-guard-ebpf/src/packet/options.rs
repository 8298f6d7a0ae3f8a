//! TCP options of handshakes: Multipath TCP, window scale and timestamps.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{
    maps::{Counter, FlowKey, stamp, syn_slot, syn_tag},
    pace::scale,
};

use crate::{
    context::Context,
    cpu,
    maps::SYNS,
    opening::pending_upgrades,
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
/// Length of a SYN's data once its SYN-ACK has left.
const ANSWERED: u32 = u32::MAX;
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
        pending_upgrades::echoes(state.reading.echoed);
        return;
    }
    if let Some(noted) = SYNS.get_ptr_mut(syn_slot(&segment.key)) {
        let tag = syn_tag(&segment.key, segment.seq);
        // SAFETY: a single word of a map value.
        unsafe { *noted = note(*noted, tag, state.reading.scale, segment.len) };
    }
    if state.rewrite.even + state.rewrite.odd > 0 {
        packet.fix_checksum(segment, state.rewrite.even, state.rewrite.odd);
        report::count(Counter::MptcpRefused);
    }
}

/// Word for a SYN in its slot: tag and scale, and in the high half the bytes of its data, or [`ANSWERED`].
/// `noted` is what is there.
#[inline(always)]
fn note(noted: u64, tag: u32, scale: u32, len: u32) -> u64 {
    let (known, data) = (noted as u32, (noted >> 32) as u32);
    if noted != 0 && known & !0xFF == tag {
        let least = if known & 0xFF < scale { known & 0xFF } else { scale };
        let data = if len > 0 || data == ANSWERED { len } else { data };
        return u64::from(data) << 32 | u64::from(tag | least);
    }
    // The server may take one with data (RFC 7413) for the end of another one.
    let pending = noted != 0 && data != ANSWERED;
    let scale = if pending && len > 0 { scale::NONE } else { scale };
    u64::from(len) << 32 | u64::from(tag | scale)
}

/// Window scale in a server's SYN-ACK, encoded as in [`scale`], and above that byte its [`stamp`].
#[inline(always)]
pub fn server<P: Packet>(payload: impl Fn(&Segment) -> P) -> u32 {
    read(payload, true).map_or(scale::UNKNOWN, |walker| {
        walker.state.reading.scale | walker.state.reading.stamp << 8
    })
}

/// Scale of the client's windows on a connection whose first byte is at `seq`, and whose SYN-ACK has `server` for
/// the server's: none if that has none (RFC 7323, 2.2), or if another SYN was noted since.
#[inline(always)]
pub fn client_scale(key: &FlowKey, seq: u32, server: u32) -> u32 {
    let Some(noted) = SYNS.get_ptr_mut(syn_slot(key)) else {
        return scale::NONE;
    };
    // SAFETY: a single word of a map value.
    let word = unsafe { *noted };
    let (tag, data) = (word as u32 & !0xFF, (word >> 32) as u32);
    let with_data = data != ANSWERED && tag == syn_tag(key, seq.wrapping_sub(data));
    if word != 0 && tag != syn_tag(key, seq) && !with_data {
        return scale::NONE;
    }
    // SAFETY: as above.
    unsafe { *noted = u64::from(ANSWERED) << 32 | u64::from(word as u32) };
    if server == scale::NONE { scale::NONE } else { word as u32 & 0xFF }
}

/// Smallest scale of the SYNs whose SYN-ACK is repeated, `known` before: a server with SYN cookies answers each
/// SYN by what that one says.
#[inline(always)]
pub fn least_scale(key: &FlowKey, seq: u32, known: u8) -> u8 {
    let Some(noted) = SYNS.get_ptr(syn_slot(key)) else {
        return known;
    };
    // SAFETY: a single word of a map value.
    let word = unsafe { *noted } as u32;
    let scale = word as u8;
    if word & !0xFF == syn_tag(key, seq) && scale < known { scale } else { known }
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
        (state.reading.stamp, state.reading.echoed) = (stamp::NONE.into(), stamp::NONE.into());
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
    if kind == TIMESTAMPS
        && length == 10
        && let (Some(value), Some(echoed)) =
            (walker.packet.u8_at(at + 5), walker.packet.u8_at(at + 9))
    {
        walker.state.reading.stamp = stamp::of(value).into();
        walker.state.reading.echoed = stamp::of(echoed).into();
    }
    walker.state.reading.at = at + u32::from(length);
    (length < 2) as c_long
}
