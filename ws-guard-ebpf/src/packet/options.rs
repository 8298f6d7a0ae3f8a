//! TCP options of SYN and SYN-ACK: Multipath TCP, and the scale of windows.

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
/// The options of a header have at most so many bytes.
const MAX_OPTIONS: u32 = 40;

/// A SYN of a client. Multipath TCP (RFC 8684) could send frames over several connections, of which the
/// guard follows each by itself. So where the guard enforces, MPTCP options get the next number, which
/// is reserved: what a server does not know it skips (RFC 9293, MUST-6), and both sides go on with plain
/// TCP (RFC 8684, 3.7).
///
/// One is added to a byte, as where a PING becomes a PONG: the checksum is mended in the same way.
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
        packet.seal(segment, state.even, state.odd);
        report::count(Counter::MptcpRefused);
    }
}

/// The window scale that a server's SYN-ACK agrees to, as [`scale`] keeps it.
#[inline(always)]
pub fn window_scale<P: Packet>(payload: impl Fn(&Segment) -> P) -> u32 {
    read(payload, true).map_or(scale::UNKNOWN, |walker| walker.state.scale)
}

/// Read the options of the segment at hand; change nothing if it is only to be `looked` at.
#[inline(always)]
fn read<P: Packet>(payload: impl Fn(&Segment) -> P, looked: bool) -> Option<Walker<P>> {
    let (Some(current), Some(state)) = (packet::current(), walk::state()) else {
        return None;
    };
    // SAFETY: this CPU's element, which nobody else uses meanwhile.
    let segment = unsafe { &raw mut (*current).segment };
    // SAFETY: as above. The options are read, and changed, as if they were the payload.
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
    // SAFETY: `read` passed it, and nobody else uses it during the loop.
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
