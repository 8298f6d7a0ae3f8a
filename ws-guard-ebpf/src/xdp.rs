//! A packet at XDP.

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_md,
    helpers::{bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    programs::XdpContext,
};
use ws_guard_common::{frame::PING_TO_PONG, maps::Address};

use crate::{
    packet::{self, Segment, TCP_CHECK},
    payload::{self, Hook, Payload},
    report::Side,
};

/// The context of an XDP program.
pub struct Xdp(*mut xdp_md);

/// A client's payload.
pub type XdpPayload = Payload<Xdp>;

impl XdpPayload {
    #[inline(always)]
    pub fn new(ctx: &XdpContext, segment: &Segment) -> Self {
        Payload::at(Xdp(ctx.as_ptr().cast()), segment, Side::Client)
    }
}

/// [`payload::cover`]. Its name is in the object's BTF: the verifier checks it on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_cover_xdp(ctx: *mut xdp_md, at: u32, len: u32) -> u32 {
    payload::cover(&Xdp(ctx), at, len)
}

/// [`payload::byte`], likewise.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_byte_xdp(ctx: *mut xdp_md, at: u32) -> u32 {
    payload::byte(&Xdp(ctx), at)
}

/// [`payload::defuse`], likewise.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_defuse_xdp(ctx: *mut xdp_md, at: u32) -> u32 {
    payload::defuse(&Xdp(ctx), at)
}

impl Hook for Xdp {
    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        // SAFETY: the context outlives the program's run.
        unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) }
    }

    #[inline(always)]
    fn cover(&self, at: u32, len: u32) -> u32 {
        ws_guard_cover_xdp(self.0, at, len)
    }

    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller vouches for `to`; the helper checks the packet's bounds.
        unsafe { bpf_xdp_load_bytes(self.0, offset, to.cast(), len) == 0 }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u32 {
        ws_guard_byte_xdp(self.0, at)
    }

    #[inline(always)]
    fn defuse(&self, at: u32) -> u32 {
        ws_guard_defuse_xdp(self.0, at)
    }

    #[inline(always)]
    fn flip(&self, offset: u32) -> bool {
        let (data, end) = self.linear();
        if let Some(pointer) = packet::byte_at(data, end, offset as usize) {
            // SAFETY: `byte_at` checked the bounds.
            unsafe { *pointer.cast_mut() ^= PING_TO_PONG };
            return true;
        }
        let mut byte = 0u8;
        let pointer = &raw mut byte;
        // SAFETY: one byte on the stack; the helpers check the packet's bounds.
        unsafe {
            if !self.load(offset, pointer, 1) {
                return false;
            }
            byte ^= PING_TO_PONG;
            bpf_xdp_store_bytes(self.0, offset, pointer.cast(), 1) == 0
        }
    }

    #[inline(always)]
    fn seal(&self, segment: &Segment, even: u32, odd: u32) {
        let (data, end) = self.linear();
        let check = (segment.tcp + TCP_CHECK) as usize;
        if let Some(pointer) = packet::at::<u16>(data, end, check) {
            let pointer = pointer.cast_mut();
            // SAFETY: `at` checked the bounds.
            let old = u16::from_be(unsafe { pointer.read_unaligned() });
            // A field with only the pseudo header's sum is one that somebody after us completes.
            if old != pseudo_sum(segment) {
                // Each rewrite adds one to its byte: 0x9 becomes 0xA. RFC 1624, equation 3.
                let sum = u32::from(!old) + (even << 8) + odd;
                let new = !fold(sum);
                // SAFETY: as above.
                unsafe { pointer.write_unaligned(new.to_be()) };
            }
        }
    }
}

/// The pseudo header's sum over a segment, folded, not complemented: what the checksum field holds
/// until hardware or a segmentation step completes it.
#[inline(always)]
fn pseudo_sum(segment: &Segment) -> u16 {
    const IPPROTO_TCP: u32 = 6;
    let words = |address: &Address| {
        let mut sum = 0;
        let mut i = 0;
        // Of a mapped IPv4 address only the last word is in the real pseudo header.
        while i < 4 {
            let word = u32::from_be(address.0[i]);
            sum += if i == 3 || !address.is_v4() { (word >> 16) + (word & 0xFFFF) } else { 0 };
            i += 1;
        }
        sum
    };
    fold(words(&segment.key.client) + words(&segment.key.server) + IPPROTO_TCP + segment.tcp_len())
}

/// Ones' complement sum of the halves.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xFFFF);
    ((sum >> 16) + (sum & 0xFFFF)) as u16
}
