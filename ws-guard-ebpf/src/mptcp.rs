//! Multipath TCP (RFC 8684): frames could go over several connections, of which the guard follows each
//! by itself. So it is not agreed to.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::maps::Counter;

use crate::{
    packet::{self, Packet, Segment, TCP_HEADER},
    report,
    scene::Scene,
    walk::{self, Walker},
};

/// Option kinds, RFC 9293, 3.1, and RFC 8684, 3.
const END: u8 = 0;
const NOP: u8 = 1;
const MPTCP: u8 = 30;
/// The options of a header have at most so many bytes.
const MAX_OPTIONS: u32 = 40;

/// A SYN of a client. Where the guard enforces, its MPTCP options get the next number, which is
/// reserved: what a server does not know it skips (RFC 9293, MUST-6), and both sides go on with plain
/// TCP (RFC 8684, 3.7).
///
/// One is added to a byte, as where a PING becomes a PONG: the checksum is mended in the same way.
#[cold]
#[inline(never)]
pub fn refuse<P: Packet>(scene: &Scene, payload: impl Fn(&Segment) -> P) {
    if !scene.enforces() {
        return;
    }
    let (Some(current), Some(state)) = (packet::current(), walk::state()) else {
        return;
    };
    // SAFETY: this CPU's element, which nobody else uses meanwhile.
    let segment = unsafe { &raw mut (*current).segment };
    // SAFETY: as above. The options are read, and changed, as if they were the payload.
    let walker = unsafe {
        let (data, len) = ((*segment).payload, (*segment).len);
        let options = (*segment).tcp + TCP_HEADER;
        (*segment).payload = options;
        (*segment).len = data.wrapping_sub(options);
        state.at = 0;
        let mut walker = Walker { state, packet: payload(&*segment) };
        let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = option::<P>;
        bpf_loop(MAX_OPTIONS, turn as *mut c_void, (&raw mut walker).cast(), 0);
        ((*segment).payload, (*segment).len) = (data, len);
        walker
    };
    let Walker { state, mut packet } = walker;
    if state.even + state.odd > 0 {
        // SAFETY: as above.
        packet.seal(unsafe { &*segment }, state.even, state.odd);
        report::count(Counter::MptcpRefused);
    }
}

/// One option; 1 ends the loop.
unsafe extern "C" fn option<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: `refuse` passed it, and nobody else uses it during the loop.
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
    walker.state.at = at + u32::from(length);
    (length < 2) as c_long
}
