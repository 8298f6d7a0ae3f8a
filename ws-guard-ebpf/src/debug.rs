//! The debug log, for who debugs the programs: `ws-guard run --kernel-debug`.
//!
//! Each message is a function of its own, so that what it needs of the stack is not there when it is
//! off; then the level is a constant at load, and the verifier takes the code out.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use ws_guard_common::maps::Address;

use crate::packet;

/// A segment of a client is dropped.
#[cold]
#[inline(never)]
pub fn dropped<C: EbpfContext>(ctx: &C) {
    if let Some(segment) = packet::segment() {
        let port = u16::from_be(segment.key.client_port);
        debug!(
            ctx,
            "dropped seq={} len={} of {:i}:{}",
            segment.seq,
            segment.len,
            octets(&segment.key.client),
            port
        );
    }
}

/// The server's 101 opened a flow.
#[cold]
#[inline(never)]
pub fn opened<C: EbpfContext>(ctx: &C) {
    if let Some(segment) = packet::segment() {
        let port = u16::from_be(segment.key.client_port);
        debug!(ctx, "opened seq={} of {:i}:{}", segment.ack, octets(&segment.key.client), port);
    }
}

#[inline(always)]
fn octets(address: &Address) -> [u8; 16] {
    // SAFETY: four words in network byte order are sixteen octets.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(address.0) }
}
