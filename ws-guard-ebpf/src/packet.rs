//! Where TCP is in a packet.

use core::hint::black_box;

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use ws_guard_common::{
    maps::{Address, FlowKey},
    tracker,
};

use crate::{payload::Window, report::Side};

const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_IPV6: u16 = 0x86DD_u16.to_be();
const ETH_P_8021Q: u16 = 0x8100_u16.to_be();
const ETH_P_8021AD: u16 = 0x88A8_u16.to_be();
const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// Offset of the checksum in the TCP header.
pub const TCP_CHECK: u32 = 16;

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_DSTOPTS: u8 = 60;
/// Extension headers followed before a packet is given up (RFC 8200 knows five in front of TCP,
/// and destination options twice).
const MAX_EXTENSIONS: usize = 6;

/// Offset and more-fragments bit of IPv4's header; don't-fragment and the reserved bit aside.
const IPV4_FRAGMENT: u16 = 0x3FFF_u16.to_be();
/// Offset and more-fragments bit of IPv6's fragment header.
const IPV6_FRAGMENT: u16 = 0xFFF9_u16.to_be();

/// Largest offset that a program may read at: the verifier wants offset and size to fit 16 bits.
pub const MAX_OFFSET: usize = 0xFFF0;

pub const FIN: u32 = 0x01;
pub const SYN: u32 = 0x02;
pub const RST: u32 = 0x04;
pub const ACK: u32 = 0x10;
pub const URG: u32 = 0x20;

/// The TCP segment of a packet. Addresses and ports in network byte order, the rest in the
/// machine's.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Segment {
    /// Between whom, by the side that [`parse`] was told the packet comes from.
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
}

impl Segment {
    /// TCP header and payload, as the pseudo header counts them.
    #[inline(always)]
    pub fn tcp_len(&self) -> u32 {
        self.payload - self.tcp + self.len
    }
}

/// What a packet holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A TCP segment, which [`segment`] now gives.
    Tcp,
    /// Not TCP over IP.
    Other,
    /// TCP, but where it is cannot be told: a fragment, unknown extension headers, cut short.
    Unreadable,
}

/// What is known of the packet at hand.
#[repr(C)]
struct Current {
    segment: Segment,
    window: Window,
}

/// Not on the stack, which is small; and the verifier forgets which way through the headers led to
/// it, or it would walk all that follows once for each.
#[btf_map]
static CURRENT: PerCpuArray<Current, 1> = PerCpuArray::new();

/// The segment that [`parse`] found.
#[inline(always)]
pub fn segment() -> Option<&'static Segment> {
    CURRENT.get(0).map(|current| &current.segment)
}

/// The copied part of the packet that [`parse`] found a segment in.
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
    /// From here on count new frames by class, unless `on` is 0: [`crate::walk::State::classes`].
    fn classify(&mut self, on: u8);
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

/// Read a `T`, which must be valid for any bytes and need no alignment.
macro_rules! read {
    ($data:expr, $end:expr, $offset:expr, $ty:ty) => {
        match at::<$ty>($data, $end, $offset) {
            // SAFETY: `at` checked the bounds, and packet memory may be read unaligned.
            Some(pointer) => unsafe { pointer.read_unaligned() },
            None => return Parsed::Unreadable,
        }
    };
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_ihl: u8,
    _tos: u8,
    total_len: u16,
    _id: u16,
    fragment: u16,
    _ttl: u8,
    protocol: u8,
    _check: u16,
    source: u32,
    destination: u32,
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Ipv6 {
    _version: u32,
    payload_len: u16,
    next_header: u8,
    _hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Tcp {
    source: u16,
    destination: u16,
    seq: u32,
    ack: u32,
    data_offset: u8,
    flags: u8,
    _window: u16,
    _check: u16,
    _urgent: u16,
}

/// Find the TCP segment in the Ethernet packet at `data..end` that `side` sent, for [`segment`] to
/// give.
#[inline(never)]
pub fn parse(data: usize, end: usize, side: Side) -> Parsed {
    let Some(kind) = at::<u16>(data, end, 12) else {
        return Parsed::Other;
    };
    // SAFETY: `at` checked the bounds.
    let mut kind = unsafe { kind.read_unaligned() };
    let mut l3 = ETHERNET;
    let mut tags = 0;
    while tags < 2 {
        if kind != ETH_P_8021Q && kind != ETH_P_8021AD {
            break;
        }
        kind = read!(data, end, l3 + 2, u16);
        l3 += VLAN_TAG;
        tags += 1;
    }
    if kind == ETH_P_IP {
        parse_v4(data, end, l3, side)
    } else if kind == ETH_P_IPV6 {
        parse_v6(data, end, l3, side)
    } else {
        Parsed::Other
    }
}

#[inline(always)]
fn parse_v4(data: usize, end: usize, l3: usize, side: Side) -> Parsed {
    let ip = read!(data, end, l3, Ipv4);
    if ip.protocol != IPPROTO_TCP {
        return Parsed::Other;
    }
    let header = (ip.version_ihl & 0xF) as usize * 4;
    let total = u16::from_be(ip.total_len) as usize;
    if ip.fragment & IPV4_FRAGMENT != 0 || header < 20 {
        return Parsed::Unreadable;
    }
    // A length of zero is a packet of more than 64 KiB put together by the kernel: then it is what
    // is there.
    let l4_len = if total == 0 { 0 } else { total.wrapping_sub(header) };
    let (source, destination) = (Address::from_v4(ip.source), Address::from_v4(ip.destination));
    parse_tcp(data, end, l3 + header, l4_len, (source, destination), side)
}

#[inline(always)]
fn parse_v6(data: usize, end: usize, l3: usize, side: Side) -> Parsed {
    let ip = read!(data, end, l3, Ipv6);
    let mut next = ip.next_header;
    let mut offset = l3 + IPV6_HEADER;
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        if next == IPPROTO_TCP {
            break;
        }
        let extension = matches!(
            next,
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT | IPPROTO_AH | IPPROTO_DSTOPTS
        );
        if !extension {
            return Parsed::Other;
        }
        let header = read!(data, end, offset, [u8; 2]);
        let mut len = (header[1] as usize + 1) * 8;
        if next == IPPROTO_FRAGMENT {
            let fragment = read!(data, end, offset + 2, u16);
            if fragment & IPV6_FRAGMENT != 0 {
                return Parsed::Unreadable;
            }
            len = 8;
        } else if next == IPPROTO_AH {
            len = (header[1] as usize + 2) * 4;
        }
        next = header[0];
        offset += len;
        if offset > MAX_OFFSET {
            return Parsed::Unreadable;
        }
        i += 1;
    }
    if next != IPPROTO_TCP {
        return Parsed::Unreadable;
    }
    let payload = u16::from_be(ip.payload_len) as usize;
    let extensions = offset - l3 - IPV6_HEADER;
    let l4_len = if payload == 0 { 0 } else { payload.wrapping_sub(extensions) };
    let addresses = (Address(ip.source), Address(ip.destination));
    parse_tcp(data, end, offset, l4_len, addresses, side)
}

/// `l4_len` is what IP says the segment has, header and payload; 0 for all that is there.
#[inline(always)]
fn parse_tcp(
    data: usize,
    end: usize,
    tcp: usize,
    l4_len: usize,
    (source, destination): (Address, Address),
    side: Side,
) -> Parsed {
    let header = read!(data, end, tcp, Tcp);
    let header_len = (header.data_offset >> 4) as usize * 4;
    let l4_len = if l4_len == 0 { end - data - tcp } else { l4_len };
    if header_len < TCP_HEADER || l4_len < header_len || l4_len > 0xFFFF {
        return Parsed::Unreadable;
    }
    let Some(current) = CURRENT.get_ptr_mut(0) else {
        return Parsed::Unreadable;
    };
    let key = match side {
        Side::Client => FlowKey {
            client: source,
            server: destination,
            client_port: header.source,
            server_port: header.destination,
        },
        Side::Server => FlowKey {
            client: destination,
            server: source,
            client_port: header.destination,
            server_port: header.source,
        },
    };
    let found = Segment {
        key,
        // A SYN takes up the number before the first byte of data (RFC 9293, 3.4).
        seq: u32::from_be(header.seq).wrapping_add(header.flags as u32 >> 1 & 1),
        ack: u32::from_be(header.ack),
        flags: header.flags.into(),
        tcp: tcp as u32,
        payload: (tcp + header_len) as u32,
        len: (l4_len - header_len) as u32,
    };
    // SAFETY: this CPU's scratch value.
    unsafe {
        (*current).segment = found;
        (*current).window.len = 0;
    }
    Parsed::Tcp
}
