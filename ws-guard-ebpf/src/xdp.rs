//! A segment's payload in XDP: direct packet access.

use aya_ebpf::{EbpfContext, bindings::xdp_md, programs::XdpContext};
use ws_guard_common::{
    frame::{Header, PING_TO_PONG, Violations},
    maps::Address,
    tracker::Segment as Payload,
};

use crate::{
    packet::{self, Packet, Segment},
    report::{self, Side},
    walk,
};

/// The payload of one segment.
pub struct XdpPayload {
    ctx: *mut xdp_md,
    payload: u32,
    len: u32,
    /// Offset of the TCP header: tells even bytes from odd ones.
    tcp: u32,
    /// Whose frames these are: where violations are counted.
    side: Side,
    /// Only look: count and change nothing.
    dry: bool,
}

impl XdpPayload {
    #[inline(always)]
    pub fn new(ctx: &XdpContext, segment: &Segment) -> Self {
        Self {
            ctx: ctx.as_ptr().cast(),
            payload: segment.payload,
            len: segment.len,
            tcp: segment.tcp,
            side: Side::Client,
            dry: false,
        }
    }

    /// `T` at payload offset `at`, inside both the segment and the packet.
    #[inline(always)]
    fn pointer<T>(&self, at: u32) -> Option<*mut T> {
        if at >= self.len || self.len - at < size_of::<T>() as u32 {
            return None;
        }
        // SAFETY: the context outlives the program's run.
        let (data, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        let offset = (self.payload + at) as usize;
        packet::at::<T>(data, end, offset).map(<*const T>::cast_mut)
    }

    /// The byte at payload offset `at`.
    #[inline(always)]
    fn byte(&self, at: u32) -> Option<*mut u8> {
        if at >= self.len {
            return None;
        }
        // SAFETY: the context outlives the program's run.
        let (data, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        let offset = (self.payload + at) as usize;
        packet::byte_at(data, end, offset).map(<*const u8>::cast_mut)
    }
}

impl Payload for XdpPayload {
    #[inline(always)]
    fn u8_at(&self, at: u32) -> Option<u8> {
        // SAFETY: `byte` checked the bounds.
        self.byte(at).map(|pointer| unsafe { *pointer })
    }

    #[inline(always)]
    fn u16_at(&self, at: u32) -> Option<u16> {
        // SAFETY: as above; packet memory may be read unaligned.
        self.pointer::<u16>(at).map(|pointer| u16::from_be(unsafe { pointer.read_unaligned() }))
    }

    #[inline(always)]
    fn u64_at(&self, at: u32) -> Option<u64> {
        // SAFETY: as above.
        self.pointer::<u64>(at).map(|pointer| u64::from_be(unsafe { pointer.read_unaligned() }))
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
        if let Some(pointer) = self.byte(at) {
            // SAFETY: `byte` checked the bounds.
            unsafe { *pointer ^= PING_TO_PONG };
            walk::rewritten(self.payload + at - self.tcp);
        }
    }
}

impl Packet for XdpPayload {
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
        // SAFETY: the context outlives the program's run.
        let (data, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        let check = segment.tcp as usize + 16;
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
