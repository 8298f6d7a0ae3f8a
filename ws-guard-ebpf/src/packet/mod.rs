//! The packet at hand: what was found in it, and how its bytes are reached.
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
    maps::{Account, FlowKey},
    tracker,
};

use crate::packet::{
    headers::ETH_P_TEB,
    payload::{Hook, Window},
};

/// Largest offset that is read at directly: the verifier wants offset and size, of an IPv6 header at
/// most, to fit 16 bits.
pub const MAX_OFFSET: usize = 0xFFC0;

pub const FIN: u32 = 0x01;
pub const SYN: u32 = 0x02;
pub const RST: u32 = 0x04;
pub const ACK: u32 = 0x10;
pub const URG: u32 = 0x20;

/// Bytes of a TCP header without options.
pub const TCP_HEADER: u32 = 20;
/// Offset of the receive window in the TCP header.
pub const TCP_WINDOW: u32 = 14;
/// Offset of the checksum in the TCP header.
pub const TCP_CHECK: u32 = 16;

/// The TCP segment of a packet. Addresses and ports in network byte order, the rest in the
/// machine's.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Segment {
    /// Between whom, by the side that [`crate::packet::headers::parse`] was told the packet comes from.
    pub key: FlowKey,
    /// Of the first byte of payload.
    pub seq: u32,
    pub ack: u32,
    pub flags: u32,
    /// Offset of the TCP header in the packet.
    pub tcp: u32,
    /// Offset of the payload in the packet.
    pub payload: u32,
    /// Bytes of payload.
    pub len: u32,
    /// The receive window, as the header has it: not scaled.
    pub window: u32,
    /// It came out of a tunnel: 1, otherwise 0.
    pub tunnelled: u32,
}

impl Segment {
    /// TCP header and payload, as the pseudo header counts them.
    #[inline(always)]
    pub fn tcp_len(&self) -> u32 {
        self.payload - self.tcp + self.len
    }
}

/// What a packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Parsed {
    /// A TCP segment, which [`segment`] now gives.
    Tcp = 0,
    /// Not TCP over IP.
    Other,
    /// TCP that cannot be read and need not be: malformed, so that every receiver discards it, or a
    /// later fragment, which comes to nothing without its first.
    Unreadable,
    /// The first fragment of a segment, or of the packet of a tunnel that holds one. Its ports are
    /// in [`segment`], the rest is not.
    Fragment,
    /// A segment that a router on the way, this host perhaps, sends on to another address than its
    /// header has. Likewise.
    Rerouted,
    /// It may be TCP, and nobody can tell who only reads so far.
    Hidden,
    /// The headers go on past what can be read directly.
    Short,
    /// A tunnel's: what it carries is at [`place`].
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

/// What headers that end too early mean: a packet that ends there is no segment for anybody, one
/// that goes on may hide one.
#[inline(always)]
pub fn no_longer_short<H: Hook>(hook: &H, found: u32) -> Parsed {
    if found != Parsed::Short as u32 {
        return found.into();
    }
    let (data, end) = hook.linear();
    if hook.size() as usize > end - data { Parsed::Hidden } else { Parsed::Unreadable }
}

/// Where headers are to be looked for.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Place {
    pub offset: u32,
    /// Ethertype of what is there, in network byte order.
    pub kind: u32,
    /// [`crate::packet::headers::Around`] it.
    pub around: u32,
}

/// What is known of the packet at hand.
#[repr(C)]
pub struct Current {
    pub segment: Segment,
    pub window: Window,
    pub place: Place,
    /// Who the limits are about while there is no flow that says so.
    pub account: Account,
}

/// Not on the stack, which is small; and the verifier forgets which way through the headers led to
/// it, or it would walk all that follows once for each.
#[btf_map]
static CURRENT: PerCpuArray<Current, 1> = PerCpuArray::new();

/// Where to write down what is found.
#[inline(always)]
pub fn current() -> Option<*mut Current> {
    CURRENT.get_ptr_mut(0)
}

/// Where [`crate::packet::headers::parse`] begins.
#[inline(always)]
pub fn place() -> Option<&'static mut Place> {
    // SAFETY: this CPU's element, which lives as long as the map; no two of these are in use at
    // once.
    CURRENT.get_ptr_mut(0).map(|current| unsafe { &mut (*current).place })
}

/// A new packet: an Ethernet frame.
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

/// Between whom that is.
#[inline(always)]
pub fn key() -> Option<&'static FlowKey> {
    segment().map(|segment| &segment.key)
}

/// Who the limits are about while there is no flow that says so.
#[inline(always)]
pub fn account() -> Option<&'static mut Account> {
    // Behind `black_box`, or LLVM adds the offset before the check, which Linux 6.1 refuses.
    let current = black_box(CURRENT.get_ptr_mut(0)?);
    // SAFETY: this CPU's element, which lives as long as the map; no two of these are in use at
    // once.
    Some(unsafe { &mut (*current).account })
}

/// The copied part of the packet that the segment was found in.
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
    /// From here on only look (or no longer so): count and change nothing.
    fn only_look(&mut self, dry: bool);
    /// From here on count new frames by class, unless `on` is 0: [`crate::stream::walk::State::classes`].
    fn classify(&mut self, on: u8);
    /// Copy `len` bytes of payload from `at` on. `false` when they are not to be had.
    ///
    /// # Safety
    /// `len` bytes may be written at `to`.
    unsafe fn load(&self, at: u32, to: *mut u8, len: u32) -> bool;
    /// Put the TCP checksum right for so many headers rewritten at even and at odd offsets.
    fn seal(&mut self, segment: &Segment, even: u32, odd: u32);
}

/// A pointer to a `T` at `offset`, if the packet holds it. Not for single bytes: see [`byte_at`].
#[inline(always)]
pub fn at<T>(data: usize, end: usize, offset: usize) -> Option<*const T> {
    if offset > MAX_OFFSET || data + offset + size_of::<T>() > end {
        return None;
    }
    Some((data + offset) as *const T)
}

/// As [`at`], for an offset that was added up: LLVM would compare the sum and add the parts to the
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
