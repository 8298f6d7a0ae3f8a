//! Chunked bodies: their framing is followed, so that they hide no request.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::chunks::{DONE, VAGUE};

use crate::{cpu, opening::pending_upgrades, packet::Packet, stream::walk::Walker};

/// Bytes of framing that are read in a segment, which may be many merged ones: those of 1,000 chunks.
const MOST: u32 = 8192;

/// Follow the framing in the segment. `false` where it is not certain that the rest of the segment belongs to
/// the body.
#[inline(never)]
pub fn follow<P: Packet>(packet: P) -> bool {
    let (Some((chunks, from)), Some(state)) = (pending_upgrades::chunks(), cpu::resume()) else {
        return false;
    };
    (state.reading.chunks, state.reading.at, state.reading.until) = (chunks, from, from);
    state.reading.read = 0;
    let mut walker = Walker { state, packet };
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = framing::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(MOST, turn as *mut c_void, (&raw mut walker).cast(), 0);
    }
    let bytes = walker.packet.bytes();
    let Some(state) = cpu::resume() else {
        return false;
    };
    let (at, read) = (state.reading.at, state.reading.read);
    let known = if read == DONE { at == bytes } else { read != VAGUE && at >= bytes };
    known && pending_upgrades::keep_chunks(from, state.reading.until, state.reading.chunks, at)
}

/// A byte of the framing; 1 ends the loop.
unsafe extern "C" fn framing<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `follow`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let at = walker.state.reading.at;
    let Some(byte) = walker.packet.u8_at(at) else {
        return 1;
    };
    let data = walker.state.reading.chunks.push(byte);
    (walker.state.reading.at, walker.state.reading.until) = (at + 1, at + 1);
    if data == DONE || data == VAGUE {
        walker.state.reading.read = data;
        return 1;
    }
    walker.state.reading.at += data;
    0
}
