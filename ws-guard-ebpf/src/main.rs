//! The object that the daemon loads: four entry points, and nothing else.
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use ws_guard_ebpf::{control, egress, ingress};

/// Client side, XDP.
/// `frags`: packets may lie in several buffers (Linux 5.18); without it drivers refuse the program
/// at large MTUs.
#[xdp(frags)]
pub fn ws_guard_xdp(ctx: XdpContext) -> u32 {
    ingress::xdp(&ctx)
}

/// Client side, where XDP is not available.
#[classifier]
pub fn ws_guard_in(ctx: TcContext) -> i32 {
    ingress::tc(&ctx)
}

/// Server side.
#[classifier]
pub fn ws_guard_out(ctx: TcContext) -> i32 {
    egress::tc(&ctx)
}

/// Changes to sources on the daemon's behalf; run, never attached.
#[classifier]
pub fn ws_guard_control(ctx: TcContext) -> i32 {
    control::run(&ctx) as i32
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing here panics: the verifier would refuse a path that never ends.
    loop {}
}

/// The kernel lets only GPL-compatible programs call the helpers used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
