//! A segment's payload at TC: most of it is not in the linear part, so it is read by helpers.

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes},
    programs::TcContext,
};
use ws_guard_common::{
    frame::{Header, PING_TO_PONG, Violations},
    tracker,
};

use crate::{
    packet::{Packet, Parsed, Segment, parse},
    report::{self, Side},
    walk,
};

/// Longest headers that are parsed, in bytes: Ethernet with two tags, IPv6 with some extensions, TCP
/// with all its options.
const HEADERS: u32 = 192;
/// Offset of the checksum in the TCP header.
const TCP_CHECK: u32 = 16;

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

/// The payload of one segment.
pub struct SkbPayload {
    skb: *mut __sk_buff,
    payload: u32,
    len: u32,
    tcp: u32,
    /// Whose frames these are: where violations are counted.
    side: Side,
    /// Only look: count and change nothing.
    dry: bool,
}

impl SkbPayload {
    #[inline(always)]
    pub fn new(ctx: &TcContext, segment: &Segment, side: Side) -> Self {
        Self {
            skb: ctx.as_ptr().cast(),
            payload: segment.payload,
            len: segment.len,
            tcp: segment.tcp,
            side,
            dry: false,
        }
    }

    /// `N` bytes at payload offset `at`.
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if at >= self.len || self.len - at < N as u32 {
            return None;
        }
        let mut bytes = [0u8; N];
        // SAFETY: the destination has N bytes; the helper checks the packet's bounds.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                self.payload + at,
                bytes.as_mut_ptr().cast(),
                N as u32,
            )
        };
        if result == 0 { Some(bytes) } else { None }
    }
}

impl tracker::Segment for SkbPayload {
    #[inline(always)]
    fn u8_at(&self, at: u32) -> Option<u8> {
        self.load::<1>(at).map(|bytes| bytes[0])
    }

    #[inline(always)]
    fn u16_at(&self, at: u32) -> Option<u16> {
        self.load::<2>(at).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn u64_at(&self, at: u32) -> Option<u64> {
        self.load::<8>(at).map(u64::from_be_bytes)
    }

    #[inline(always)]
    fn header(&mut self, _seq: u32, _header: Header, violations: Violations) {
        if !self.dry {
            report::violations(self.side, violations);
        }
    }

    #[inline(always)]
    fn defuse(&mut self, at: u32) {
        if self.dry {
            return;
        }
        let Some([byte]) = self.load::<1>(at) else {
            return;
        };
        let byte = byte ^ PING_TO_PONG;
        // SAFETY: one byte on the stack; the helper checks the packet's bounds.
        let result = unsafe {
            bpf_skb_store_bytes(self.skb, self.payload + at, (&raw const byte).cast(), 1, 0)
        };
        if result == 0 {
            walk::rewritten(self.payload + at - self.tcp);
        }
    }
}

impl Packet for SkbPayload {
    #[inline(always)]
    fn only_look(&mut self, dry: bool) {
        self.dry = dry;
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn seal(&mut self, segment: &Segment, even: u32, odd: u32) {
        // Each rewrite adds one to its byte. The helper leaves a field alone that holds only the
        // pseudo header's sum (CHECKSUM_PARTIAL); with a size of 0 it adds a difference.
        let difference = ((even << 8) + odd).to_be();
        // SAFETY: the helper checks the packet's bounds.
        unsafe {
            bpf_l4_csum_replace(self.skb, segment.tcp + TCP_CHECK, 0, difference.into(), 0);
        }
    }
}
