//! The current packet: what the parser found, and access to its bytes.
//!
//! [`headers`] finds TCP in it, through the [`tunnel`]s that the operator named; [`payload`] reads and
//! changes what TCP carries, and [`checksum`] corrects the sum. [`xdp`] and [`skb`] are the two hooks.
//! [`options`] reads TCP options, [`unreadable`] decides about packets that cannot be followed.

pub mod checksum;
pub mod headers;
pub mod options;
pub mod payload;
pub mod skb;
pub mod tunnel;
pub mod unreadable;
pub mod xdp;

use core::hint::black_box;

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use ws_guard_common::{
    flow::Flow,
    maps::{Account, FlowKey},
    tracker,
};

use crate::packet::{
    headers::ETH_P_TEB,
    payload::{CHUNK, Hook, Window},
};

/// Largest offset for direct reads: the verifier wants offset and size, of an IPv6 header at most,
/// to fit 16 bits.
pub const MAX_OFFSET: usize = 0xFFC0;

pub const FIN: u32 = 0x01;
pub const SYN: u32 = 0x02;
pub const RST: u32 = 0x04;
pub const ACK: u32 = 0x10;
pub const URG: u32 = 0x20;

/// Bytes of a TCP header without options.
pub const TCP_HEADER: u32 = 20;
/// Offset of the acknowledgement number in the TCP header.
pub const TCP_ACK: u32 = 8;
/// Offset of the receive window in the TCP header.
pub const TCP_WINDOW: u32 = 14;
/// Offset of the checksum in the TCP header.
pub const TCP_CHECK: u32 = 16;

/// TCP segment of a packet. Addresses and ports are in network byte order, the rest in host order.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Segment {
    /// End points, by the side that [`crate::packet::headers::parse`] was given.
    pub key: FlowKey,
    /// Sequence number of the first byte of payload.
    pub seq: u32,
    pub ack: u32,
    pub flags: u32,
    /// Offset of the TCP header in the packet.
    pub tcp: u32,
    /// Offset of the payload in the packet.
    pub payload: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Receive window, unscaled.
    pub window: u32,
    /// 1 inside a tunnel, otherwise 0.
    pub tunnelled: u32,
}

impl Segment {
    /// Length of TCP header and payload, as in the pseudo header.
    #[inline(always)]
    pub fn tcp_len(&self) -> u32 {
        self.payload - self.tcp + self.len
    }
}

/// Result of parsing a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Parsed {
    /// A TCP segment, now in [`segment`].
    Tcp = 0,
    /// Not TCP over IP.
    Other,
    /// TCP that cannot be read and need not be: malformed, so that every receiver discards it, or a
    /// later fragment, which is useless without the first.
    Unreadable,
    /// First fragment of a segment, or of a tunnel's packet with a segment inside.
    /// [`segment`] has its ports only.
    Fragment,
    /// A segment that a router on the way, perhaps this host, forwards to another address than its
    /// header has. [`segment`] has its ports only.
    Rerouted,
    /// Possibly TCP, beyond what is read of the headers.
    Hidden,
    /// Headers longer than what can be read directly.
    Short,
    /// A tunnel's packet; its content is at [`place`].
    Tunnel,
}

impl From<u32> for Parsed {
    #[inline(always)]
    fn from(number: u32) -> Parsed {
        match number {
            0 => Parsed::Tcp,
            1 => Parsed::Other,
            2 => Parsed::Unreadable,
            3 => Parsed::Fragment,
            4 => Parsed::Rerouted,
            6 => Parsed::Short,
            7 => Parsed::Tunnel,
            _ => Parsed::Hidden,
        }
    }
}

/// Resolve [`Parsed::Short`].
/// A packet that ends within its headers is no valid segment; a longer one may hide a segment.
#[inline(always)]
pub fn no_longer_short<H: Hook>(hook: &H, found: u32) -> Parsed {
    if found != Parsed::Short as u32 {
        return found.into();
    }
    let (data, end) = hook.linear();
    if hook.size() as usize > end - data { Parsed::Hidden } else { Parsed::Unreadable }
}

/// Offset at which parsing begins.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Place {
    pub offset: u32,
    /// Ethertype of the content, in network byte order.
    pub kind: u32,
    /// [`crate::packet::headers::Around`] it.
    pub around: u32,
}

/// State of the current packet.
#[repr(C)]
pub struct Current {
    pub segment: Segment,
    pub window: Window,
    pub place: Place,
    /// Client and source for the limits while there is no flow.
    pub account: Account,
}

/// Not on the stack, which is small. And here the verifier forgets the path through the headers;
/// otherwise it would check all that follows once for each path.
#[btf_map]
static CURRENT: PerCpuArray<Current, 1> = PerCpuArray::new();

/// State of the current packet, for the parser to fill.
#[inline(always)]
pub fn current() -> Option<*mut Current> {
    CURRENT.get_ptr_mut(0)
}

/// Offset at which [`crate::packet::headers::parse`] begins.
#[inline(always)]
pub fn place() -> Option<&'static mut Place> {
    // SAFETY: this CPU's element, which lives as long as the map; no two of these are in use at
    // once.
    CURRENT.get_ptr_mut(0).map(|current| unsafe { &mut (*current).place })
}

/// Start with a new packet: an Ethernet frame.
#[inline(always)]
pub fn begin() {
    if let Some(place) = place() {
        *place = Place { offset: 0, kind: ETH_P_TEB.into(), around: 0 };
    }
}

/// The segment that [`crate::packet::headers::parse`] found.
#[inline(always)]
pub fn segment() -> Option<&'static Segment> {
    CURRENT.get(0).map(|current| &current.segment)
}

/// End points of that segment.
#[inline(always)]
pub fn key() -> Option<&'static FlowKey> {
    segment().map(|segment| &segment.key)
}

/// Client and source for the limits while there is no flow.
#[inline(always)]
pub fn account() -> Option<&'static mut Account> {
    // Behind `black_box`, or LLVM adds the offset before the check, which Linux 6.1 refuses.
    let current = black_box(CURRENT.get_ptr_mut(0)?);
    // SAFETY: this CPU's element, which lives as long as the map; no two of these are in use at
    // once.
    Some(unsafe { &mut (*current).account })
}

/// Copied part of the current packet.
#[inline(always)]
pub fn window() -> Option<&'static mut Window> {
    // SAFETY: this CPU's element, which lives as long as the map; no two of these are in use at
    // once.
    CURRENT.get_ptr_mut(0).map(|current| unsafe { &mut (*current).window })
}

/// The payload of a segment, at either hook.
pub trait Packet: tracker::Segment {
    /// Bytes of payload.
    fn bytes(&self) -> u32;
    /// Begin (or end) a dry run: count and change nothing.
    fn only_look(&mut self, dry: bool);
    /// Count new frames by class, unless `on` is 0: [`crate::cpu::Counted::classes`].
    fn classify(&mut self, on: u8);
    /// Measure the heartbeat of which the control frame at offset `at` is a part: `what` it is, see
    /// [`crate::stream::heartbeat`].
    fn heartbeat(&self, at: u32, what: u32, flow: &mut Flow);
    /// Copy `len` bytes of payload from `at` on. `false` when the packet does not hold them.
    ///
    /// # Safety
    /// `len` bytes may be written at `to`.
    unsafe fn load(&self, at: u32, to: *mut u8, len: u32) -> bool;
    /// The [`CHUNK`] bytes of payload from `at` on, until more of it is read.
    /// `None` where it holds fewer.
    fn chunk(&self, at: u32) -> Option<&'static [u8; CHUNK as usize]>;
    /// Let the segment acknowledge `less` bytes less.
    fn acknowledge_less(&self, less: u32);
    /// Fix the TCP checksum after `even` and `odd` headers at such offsets were rewritten.
    fn fix_checksum(&mut self, segment: &Segment, even: u32, odd: u32);
}

/// A pointer to a `T` at `offset`, if the packet holds it. Not for single bytes: see [`byte_at`].
#[inline(always)]
pub fn at<T>(data: usize, end: usize, offset: usize) -> Option<*const T> {
    if offset > MAX_OFFSET || data + offset + size_of::<T>() > end {
        return None;
    }
    Some((data + offset) as *const T)
}

/// As [`at`], for an offset that is a sum. LLVM would compare the sum and add the parts to the
/// pointer, and before Linux 6.8 the verifier does not see that these are the same.
#[inline(always)]
pub fn at_sum<T>(data: usize, end: usize, offset: usize) -> Option<*const T> {
    at(data, end, black_box(offset))
}

/// A pointer to the byte at `offset`, if the packet holds it; `offset` is not 0.
///
/// Checked together with the byte before it: LLVM turns `start + 1 > end` into `start >= end`, which
/// the verifier does not take for a bounds check. And behind `black_box`, because LLVM would leave
/// out a check that an earlier one implies, which the verifier does not see.
#[inline(always)]
pub fn byte_at(data: usize, end: usize, offset: usize) -> Option<*const u8> {
    let pair = at::<[u8; 2]>(data, black_box(end), offset.wrapping_sub(1))?;
    // SAFETY: inside the pair.
    Some(unsafe { pair.cast::<u8>().add(1) })
}
