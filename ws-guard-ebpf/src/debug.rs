//! Debug log for developers of the programs: `ws-guard run --kernel-debug`.
//!
//! Each message is a function of its own, so that it takes no stack when it is off: the level is a
//! constant at load, and the verifier removes the code.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use ws_guard_common::maps::Address;

use crate::packet;

/// Log a dropped segment of a client.
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

/// Log a flow opened by the server's 101.
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
