//! A packet at TC.

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes},
    programs::TcContext,
};

use ws_guard_common::frame::PING_TO_PONG;

use crate::{
    packet::{Parsed, Segment, TCP_CHECK, parse},
    payload::{self, Hook, Payload},
    report::Side,
};

/// Longest headers that are parsed, in bytes: Ethernet with two tags, IPv6 with some extensions, TCP
/// with all its options.
const HEADERS: u32 = 192;

/// Find the TCP segment of a packet at TC.
#[inline(always)]
pub fn parse_skb(ctx: &TcContext, side: Side) -> Parsed {
    let (data, end) = (ctx.data(), ctx.data_end());
    let linear = end - data;
    let wanted = if ctx.len() < HEADERS { ctx.len() } else { HEADERS };
    if linear < wanted as usize {
        // SAFETY: the context outlives the program's run. On failure the parser finds too little,
        // and says so.
        unsafe { bpf_skb_pull_data(ctx.as_ptr().cast(), wanted) };
    }
    parse(ctx.data(), ctx.data_end(), side)
}

/// The context of a TC program.
pub struct Skb(*mut __sk_buff);

/// The payload of either side.
pub type SkbPayload = Payload<Skb>;

impl SkbPayload {
    #[inline(always)]
    pub fn new(ctx: &TcContext, segment: &Segment, side: Side) -> Self {
        Payload::at(Skb(ctx.as_ptr().cast()), segment, side)
    }
}

/// [`payload::cover`]. Its name is in the object's BTF: the verifier checks it on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_cover_skb(ctx: *mut __sk_buff, at: u32, len: u32) -> u32 {
    payload::cover(&Skb(ctx), at, len)
}

/// [`payload::byte`], likewise.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_byte_skb(ctx: *mut __sk_buff, at: u32) -> u32 {
    payload::byte(&Skb(ctx), at)
}

/// [`payload::defuse`], likewise.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_defuse_skb(ctx: *mut __sk_buff, at: u32) -> u32 {
    payload::defuse(&Skb(ctx), at)
}

impl Hook for Skb {
    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        // SAFETY: the context outlives the program's run.
        unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) }
    }

    #[inline(always)]
    fn cover(&self, at: u32, len: u32) -> u32 {
        ws_guard_cover_skb(self.0, at, len)
    }

    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller vouches for `to`; the helper checks the packet's bounds.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to.cast(), len) == 0 }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u32 {
        ws_guard_byte_skb(self.0, at)
    }

    #[inline(always)]
    fn defuse(&self, at: u32) -> u32 {
        ws_guard_defuse_skb(self.0, at)
    }

    /// By the helper: a program that writes directly has every cloned packet copied before it runs,
    /// and between local namespaces that is each one.
    #[inline(always)]
    fn flip(&self, offset: u32) -> bool {
        let mut byte = 0u8;
        let pointer = &raw mut byte;
        // SAFETY: one byte on the stack; the helpers check the packet's bounds.
        unsafe {
            if !self.load(offset, pointer, 1) {
                return false;
            }
            byte ^= PING_TO_PONG;
            bpf_skb_store_bytes(self.0, offset, pointer.cast(), 1, 0) == 0
        }
    }

    #[inline(always)]
    fn seal(&self, segment: &Segment, even: u32, odd: u32) {
        // Each rewrite adds one to its byte. The helper leaves a field alone that holds only the
        // pseudo header's sum (CHECKSUM_PARTIAL); with a size of 0 it adds a difference.
        let difference = ((even << 8) + odd).to_be();
        // SAFETY: the helper checks the packet's bounds.
        unsafe {
            bpf_l4_csum_replace(self.0, segment.tcp + TCP_CHECK, 0, difference.into(), 0);
        }
    }
}
