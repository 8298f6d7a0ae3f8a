//! A segment's payload, at either hook: read directly in the packet's linear part, elsewhere in
//! chunks.
//!
//! Packets merged by the network stack (GRO, TSO) or larger than a page lie in pieces, and
//! `data..data_end` covers only the first. For the rest a helper copies the next [`CHUNK`] bytes
//! into this CPU's [`Window`], for the headers that follow each other closely.

use core::hint::black_box;

use ws_guard_common::{
    flow::Flow,
    frame::{Header, Violations},
    record::Record,
    tracker,
};

use crate::{
    cpu,
    packet::{self, Packet, Segment, checksum},
    report::{self, Side},
    stream::heartbeat,
};

/// Bytes per copy.
pub const CHUNK: u32 = 64;
/// Result of [`cover`] and [`byte`]: not available.
const NONE: u32 = 1 << 31;

/// Copied bytes of the current packet, outside its linear part.
/// [`crate::packet::headers::parse`] empties it.
#[repr(C)]
pub struct Window {
    /// Offset of the first byte in the packet.
    from: u32,
    /// Number of bytes; 0 for an empty window.
    pub len: u32,
    bytes: [u8; CHUNK as usize],
}

/// Packet access that differs between the hooks.
pub trait Hook {
    /// `data` and `data_end`. Read each time, because helpers that change a packet move them.
    fn linear(&self) -> (usize, usize);
    /// Length of the whole packet, not only of its linear part.
    fn size(&self) -> u32;
    /// Copy `len` bytes from `offset` of the packet on. `false` when it does not hold them.
    ///
    /// # Safety
    /// `len` bytes may be written at `to`.
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool;
    /// [`cover`], as a global function.
    fn cover(&self, at: u32, len: u32) -> u32;
    /// [`byte`], likewise.
    fn byte(&self, at: u32) -> u32;
    /// [`defuse`], likewise.
    fn defuse(&self, at: u32) -> u32;
    /// [`acknowledge_less`], likewise.
    fn acknowledge_less(&self, less: u32) -> u32;
    /// [`crate::stream::heartbeat::at`], likewise.
    fn heartbeat(&self, at: u32, what: u32, generation: u32) -> u32;
    /// Add one to the byte at `offset` of the packet. `false` when the packet does not hold it.
    fn raise(&self, offset: u32) -> bool;
    /// Fix the TCP checksum after the sum of the segment's 16-bit words grew by `added`.
    fn fix_checksum(&self, segment: &Segment, added: u32);
    /// Write the acknowledgement number into the TCP header. `false` when the packet does not hold it.
    fn write_ack(&self, segment: &Segment, ack: u32) -> bool;
}

/// Payload of one segment. Two words, to be passed in registers: the stack has no room.
pub struct Payload<H> {
    pub hook: H,
    len: u32,
    /// Offset in the packet: all headers take less than 64 KiB.
    payload: u16,
    /// [`SERVER`], [`DRY`].
    flags: u8,
    /// Count new frames by class, unless 0. No `bool`: the verifier would follow both values.
    classes: u8,
}

/// [`Payload::flags`]: frames of the server, with violations counted as such.
const SERVER: u8 = Side::Server as u8;
/// [`Payload::flags`]: dry run, count and change nothing.
const DRY: u8 = 1 << 1;

impl<H: Hook> Payload<H> {
    #[inline(always)]
    pub fn at(hook: H, segment: &Segment, side: Side) -> Self {
        let Segment { payload, len, .. } = *segment;
        Self { hook, payload: payload as u16, len, flags: side as u8, classes: 0 }
    }

    /// `N` bytes at payload offset `at`, where the linear part holds them.
    #[inline(always)]
    fn linear<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let (data, end) = self.hook.linear();
        let bytes = packet::at::<[u8; N]>(data, end, (u32::from(self.payload) + at) as usize)?;
        // SAFETY: `at` checked the bounds; bytes need no alignment.
        Some(unsafe { bytes.read_unaligned() })
    }

    /// `N` bytes at payload offset `at`; for one byte see [`byte`].
    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if at >= self.len || self.len - at < N as u32 {
            return None;
        }
        if let Some(bytes) = self.linear(at) {
            return Some(bytes);
        }
        let place = self.hook.cover(at, N as u32);
        let window = packet::window()?;
        let place = black_box(place as usize);
        if place > CHUNK as usize - N {
            return None;
        }
        // SAFETY: `N` bytes from `place` on are inside the window.
        Some(unsafe { window.bytes.as_ptr().add(place).cast::<[u8; N]>().read_unaligned() })
    }
}

/// Copy `len` bytes at payload offset `at` of the current segment into the window, unless they are
/// there. Returns their offset in it, or [`NONE`].
#[inline(always)]
pub fn cover<H: Hook>(hook: &H, at: u32, len: u32) -> u32 {
    let (Some(segment), Some(window)) = (packet::segment(), packet::window()) else {
        return NONE;
    };
    let offset = segment.payload.wrapping_add(at);
    let place = offset.wrapping_sub(window.from);
    if place < window.len && window.len - place >= len {
        return place;
    }
    let left = segment.len.wrapping_sub(at);
    // The verifier has to see both bounds, and LLVM would leave out the one that follows. Before 6.8
    // it learns nothing from `size != 0`: hence the last byte, and one more.
    let last = black_box(if left < CHUNK { left } else { CHUNK }.wrapping_sub(1));
    if last >= CHUNK {
        return NONE;
    }
    let size = last + 1;
    window.len = 0;
    // SAFETY: the window has CHUNK bytes.
    if !unsafe { hook.load(offset, window.bytes.as_mut_ptr(), size) } {
        return NONE;
    }
    (window.from, window.len) = (offset, size);
    if size < len { NONE } else { 0 }
}

/// The byte at payload offset `at` of the current segment, or [`NONE`].
#[inline(always)]
pub fn byte<H: Hook>(hook: &H, at: u32) -> u32 {
    let Some(segment) = packet::segment() else {
        return NONE;
    };
    if at >= segment.len {
        return NONE;
    }
    let (data, end) = hook.linear();
    if let Some(byte) = packet::byte_at(data, end, segment.payload.wrapping_add(at) as usize) {
        // SAFETY: `byte_at` checked the bounds.
        return unsafe { *byte }.into();
    }
    // Otherwise LLVM removes a bound as redundant that the verifier needs.
    let place = black_box(cover(hook, at, 1));
    match packet::window() {
        Some(window) if place < CHUNK => window.bytes[place as usize].into(),
        _ => NONE,
    }
}

impl<H: Hook> tracker::Segment for Payload<H> {
    #[inline(always)]
    fn u8_at(&self, at: u32) -> Option<u8> {
        let byte = self.hook.byte(at);
        if byte < NONE { Some(byte as u8) } else { None }
    }

    #[inline(always)]
    fn u16_at(&self, at: u32) -> Option<u16> {
        self.read::<2>(at).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn u16_near(&self, at: u32) -> Option<u16> {
        if at >= self.len || self.len - at < 2 {
            return None;
        }
        self.linear(at).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn u64_near(&self, at: u32) -> Option<u64> {
        if at >= self.len || self.len - at < 8 {
            return None;
        }
        self.linear(at).map(u64::from_be_bytes)
    }

    #[inline(always)]
    fn u64_at(&self, at: u32) -> Option<u64> {
        self.read::<8>(at).map(u64::from_be_bytes)
    }

    #[inline(always)]
    fn header(&mut self, _seq: u32, header: Header, violations: Violations) {
        if self.flags & DRY == 0 {
            report::violations(Side::from(u32::from(self.flags & SERVER)), violations);
            if self.classes != 0 {
                cpu::count_class(&header);
            }
        }
    }

    #[inline(always)]
    fn record(&mut self, _seq: u32, record: Record, violations: Violations) {
        if self.flags & DRY == 0 {
            report::violations(Side::from(u32::from(self.flags & SERVER)), violations);
            if self.classes != 0 {
                cpu::count_record(record);
            }
        }
    }

    #[inline(always)]
    fn defuse(&mut self, at: u32) {
        if self.flags & DRY == 0 {
            self.hook.defuse(at);
        }
    }
}

/// Turn the PING with its first byte at payload offset `at` of the current segment into a PONG: 0x9
/// plus one is 0xA.
#[inline(always)]
pub fn defuse<H: Hook>(hook: &H, at: u32) -> u32 {
    let Some(segment) = packet::segment() else {
        return 0;
    };
    let offset = segment.payload.wrapping_add(at);
    if at >= segment.len || !hook.raise(offset) {
        return 0;
    }
    cpu::rewritten(offset.wrapping_sub(segment.tcp));
    // A copy of it may be in the window.
    if let Some(window) = packet::window() {
        let place = black_box(offset.wrapping_sub(window.from));
        if place < window.len && place < CHUNK {
            window.bytes[place as usize] += 1;
        }
    }
    1
}

/// Let the current segment acknowledge `less` bytes less.
#[inline(always)]
pub fn acknowledge_less<H: Hook>(hook: &H, less: u32) -> u32 {
    let Some(segment) = packet::segment() else {
        return 0;
    };
    let (old, new) = (segment.ack, segment.ack.wrapping_sub(less));
    if hook.write_ack(segment, new) {
        let halves = |word: u32| [(word >> 16) as u16, word as u16];
        let ([a, b], [c, d]) = (halves(old), halves(new));
        hook.fix_checksum(segment, checksum::changed(a, c) + checksum::changed(b, d));
    }
    1
}

impl<H: Hook> Packet for Payload<H> {
    #[inline(always)]
    fn only_look(&mut self, dry: bool) {
        self.flags = self.flags & SERVER | if dry { DRY } else { 0 };
    }

    #[inline(always)]
    fn classify(&mut self, on: u8) {
        self.classes = on;
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn heartbeat(&self, at: u32, what: u32, flow: &mut Flow) {
        heartbeat::count(flow, what, self.hook.heartbeat(at, what, flow.generation));
    }

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller vouches for `to`.
        unsafe { self.hook.load(u32::from(self.payload) + at, to, len) }
    }

    #[inline(always)]
    fn chunk(&self, at: u32) -> Option<&'static [u8; CHUNK as usize]> {
        if self.len < CHUNK || at > self.len - CHUNK || self.hook.cover(at, CHUNK) != 0 {
            return None;
        }
        packet::window().map(|window| &window.bytes)
    }

    #[inline(always)]
    fn acknowledge_less(&self, less: u32) {
        self.hook.acknowledge_less(less);
    }

    #[inline(always)]
    fn fix_checksum(&mut self, segment: &Segment, even: u32, odd: u32) {
        self.hook.fix_checksum(segment, checksum::raised(even, odd));
    }
}
