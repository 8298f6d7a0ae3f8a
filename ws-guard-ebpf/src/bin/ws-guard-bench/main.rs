//! Programs that `cargo xtask bench kernel` measures: the very code of the product, and the baselines.
//!
//! Each program first patches its packet, which must be Ethernet, IPv4 and TCP without options: so
//! all pay the same for it, and a ratio of two is one of what they do afterwards.
#![no_std]
#![no_main]

mod patch;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    btf_maps::Array,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use patch::Patch;
use ws_guard_common::flow::{Flow, state};
use ws_guard_ebpf::{
    control, egress, ingress,
    maps::{FLOWS, HEARTBEATS},
    opening::pending_upgrades,
    packet::{self, Parsed, skb, xdp},
    report::Side,
};

/// Offset of the IPv4 header's source, and of its destination.
const FROM: usize = 14 + 12;
const TO: usize = 14 + 16;
/// Offset of the TCP header.
const TCP: usize = 14 + 20;
const SEQ: usize = TCP + 4;
const ACK: usize = TCP + 8;
const WINDOW: usize = TCP + 14;
const CHECK: usize = TCP + 16;
const PAYLOAD: usize = TCP + 20;

#[btf_map]
static PATCH: Array<Patch, 1> = Array::new();

/// Make the packet the next one of its stream. `false` when it is too short, or there is no patch.
///
/// A function of its own, because the product's programs leave no room on the stack of their entry.
#[inline(never)]
fn prepare(data: usize, end: usize) -> bool {
    let Some(patch) = PATCH.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: an array element, used by one run at a time.
    let around = unsafe { (*patch).around } as usize;
    let Some(packet) = packet::at::<[u8; PAYLOAD + 1]>(data, end, around) else {
        return false;
    };
    let packet = packet.cast::<u8>().cast_mut();
    // SAFETY: an array element, used by one run at a time; `at` checked the packet's bounds, and
    // packet memory may be written unaligned.
    unsafe {
        let patch = &mut *patch;
        packet.add(SEQ).cast::<u32>().write_unaligned(patch.seq.to_be());
        packet.add(ACK).cast::<u32>().write_unaligned(patch.ack.to_be());
        packet.add(CHECK).cast::<u16>().write_unaligned(patch.check.to_be());
        packet.add(WINDOW).cast::<u16>().write_unaligned(patch.window.to_be());
        packet.add(PAYLOAD).write(patch.first);
        if patch.last > 0 {
            let client = packet.add(if patch.to_client > 0 { TO } else { FROM });
            let address = patch.client.wrapping_add(patch.flow);
            client.cast::<u32>().write_unaligned(address.to_be());
            patch.flow = patch.following();
        }
        patch.seq = patch.seq.wrapping_add(patch.seq_step);
        patch.ack = patch.ack.wrapping_add(patch.ack_step);
        patch.left = patch.left.wrapping_sub((patch.batch > 0) as u32);
        if patch.batch > 0 && patch.left == 0 {
            patch.left = patch.batch;
            acknowledge();
        }
        if patch.forget > 0 {
            pending_upgrades::forget();
        }
        if patch.digest > 0 {
            ask(patch.asks, patch.digest);
        }
    }
    true
}

/// The server acknowledges all that came of the flow whose segment was parsed last.
#[cold]
#[inline(never)]
fn acknowledge() {
    if let Some(flow) = look_up() {
        // SAFETY: map values stay mapped while a program runs, and this one has no other user.
        let flow = unsafe { &mut *flow };
        flow.acknowledge(flow.client.next);
    }
}

/// A ping of `side` waits on the connection whose segment was parsed last.
#[cold]
#[inline(never)]
fn ask(side: u32, digest: u32) {
    let Some(heartbeats) = packet::key().and_then(|key| HEARTBEATS.get_ptr_mut(key)) else {
        return;
    };
    // SAFETY: map values stay mapped while a program runs, and this one has no other user.
    let heartbeats = unsafe { &mut *heartbeats };
    heartbeats.waiting[(side & 1) as usize].ask(0, digest);
}

/// The flow of the segment that was parsed.
#[inline(always)]
fn look_up() -> Option<*mut Flow> {
    let key = &packet::segment()?.key;
    FLOWS.get_ptr_mut(key)
}

/// There is an open flow for the segment that was parsed.
#[inline(always)]
fn is_open() -> bool {
    match look_up() {
        // SAFETY: map values stay mapped while a program runs.
        Some(flow) => unsafe { (*flow).state == state::OPEN },
        None => false,
    }
}

/// The same, read under the flow's lock.
#[inline(always)]
fn is_open_under_lock() -> bool {
    let Some(flow) = look_up() else {
        return false;
    };
    // SAFETY: the lock guards the flow; nothing but plain code runs under it.
    unsafe {
        bpf_spin_lock((&raw mut (*flow).lock).cast());
        let open = (*flow).state == state::OPEN;
        bpf_spin_unlock((&raw mut (*flow).lock).cast());
        open
    }
}

/// The verdict that tells the benchmark whether a baseline did its work.
#[inline(always)]
fn xdp_verdict(worked: bool) -> u32 {
    if worked { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}

#[inline(always)]
fn tc_verdict(worked: bool) -> i32 {
    if worked { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

#[inline(always)]
fn parses_xdp(ctx: &XdpContext) -> bool {
    prepare(ctx.data(), ctx.data_end()) && xdp::parse_xdp(ctx) == Parsed::Tcp
}

#[inline(always)]
fn parses_tc(ctx: &TcContext) -> bool {
    prepare(ctx.data(), ctx.data_end()) && skb::parse_skb(ctx, Side::Server) == Parsed::Tcp
}

/// An empty program, to measure the cost of any: attached to an interface, not run on built packets.
#[xdp]
pub fn bench_xdp_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp]
pub fn bench_xdp_return(ctx: XdpContext) -> u32 {
    xdp_verdict(prepare(ctx.data(), ctx.data_end()))
}

#[xdp]
pub fn bench_xdp_parse(ctx: XdpContext) -> u32 {
    xdp_verdict(parses_xdp(&ctx))
}

#[xdp]
pub fn bench_xdp_look_up(ctx: XdpContext) -> u32 {
    xdp_verdict(parses_xdp(&ctx) && is_open())
}

#[xdp]
pub fn bench_xdp_lock(ctx: XdpContext) -> u32 {
    xdp_verdict(parses_xdp(&ctx) && is_open_under_lock())
}

#[xdp]
pub fn bench_xdp(ctx: XdpContext) -> u32 {
    if !prepare(ctx.data(), ctx.data_end()) {
        return xdp_action::XDP_ABORTED;
    }
    ingress::xdp(&ctx)
}

#[classifier]
pub fn bench_tc_return(ctx: TcContext) -> i32 {
    tc_verdict(prepare(ctx.data(), ctx.data_end()))
}

#[classifier]
pub fn bench_tc_parse(ctx: TcContext) -> i32 {
    tc_verdict(parses_tc(&ctx))
}

#[classifier]
pub fn bench_tc_look_up(ctx: TcContext) -> i32 {
    tc_verdict(parses_tc(&ctx) && is_open())
}

#[classifier]
pub fn bench_in(ctx: TcContext) -> i32 {
    if !prepare(ctx.data(), ctx.data_end()) {
        return TC_ACT_SHOT;
    }
    ingress::tc(&ctx)
}

#[classifier]
pub fn bench_out(ctx: TcContext) -> i32 {
    if !prepare(ctx.data(), ctx.data_end()) {
        return TC_ACT_SHOT;
    }
    egress::tc(&ctx)
}

/// Throttles the source for the rows that want one throttled.
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
