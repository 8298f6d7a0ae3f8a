//! TCP options of SYN and SYN-ACK: Multipath TCP and window scale.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{maps::Counter, pace::scale};

use crate::{
    context::Context,
    packet::{self, Packet, Segment, TCP_HEADER},
    report,
    stream::walk::{self, Walker},
};

/// Option kinds, RFC 9293, 3.1, RFC 7323, 2.2, and RFC 8684, 3.
const END: u8 = 0;
const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const MPTCP: u8 = 30;
/// Maximum length of a header's options.
const MAX_OPTIONS: u32 = 40;

/// Refuse Multipath TCP in a client's SYN.
/// MPTCP (RFC 8684) could spread frames over several connections, which the guard follows
/// separately. So where the guard enforces, MPTCP options get the next number, which is reserved: a
/// server skips unknown options (RFC 9293, MUST-6), and both sides go on with plain TCP (RFC 8684,
/// 3.7).
///
/// As with a PING that becomes a PONG, a byte grows by one, and the checksum is fixed in the same
/// way.
#[cold]
#[inline(never)]
pub fn refuse_mptcp<P: Packet>(context: &Context, payload: impl Fn(&Segment) -> P) {
    if !context.enforces() {
        return;
    }
    let (Some(Walker { state, mut packet }), Some(segment)) =
        (read(payload, false), packet::segment())
    else {
        return;
    };
    if state.even + state.odd > 0 {
        packet.fix_checksum(segment, state.even, state.odd);
        report::count(Counter::MptcpRefused);
    }
}

/// Window scale in a server's SYN-ACK, encoded as in [`scale`].
#[inline(always)]
pub fn window_scale<P: Packet>(payload: impl Fn(&Segment) -> P) -> u32 {
    read(payload, true).map_or(scale::UNKNOWN, |walker| walker.state.scale)
}

/// Read the options of the current segment, and refuse MPTCP unless it is only to be `looked` at.
#[inline(always)]
fn read<P: Packet>(payload: impl Fn(&Segment) -> P, looked: bool) -> Option<Walker<P>> {
    let (Some(current), Some(state)) = (packet::current(), walk::state()) else {
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
        (state.at, state.scale) = (0, scale::NONE);
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
    let at = walker.state.at;
    let Some(kind) = walker.packet.u8_at(at) else {
        return 1;
    };
    if kind == END {
        return 1;
    }
    if kind == NOP {
        walker.state.at = at + 1;
        return 0;
    }
    let Some(length) = walker.packet.u8_at(at + 1) else {
        return 1;
    };
    if kind == MPTCP {
        walker.packet.defuse(at);
    }
    if kind == WINDOW_SCALE
        && let Some(shift) = walker.packet.u8_at(at + 2)
    {
        walker.state.scale = scale::of(shift);
    }
    walker.state.at = at + u32::from(length);
    (length < 2) as c_long
}
