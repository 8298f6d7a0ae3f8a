//! TCP in a packet: Ethernet with tags, IPv4 with options, IPv6 with extension headers.
//!
//! A packet that Linux takes for TCP and this parser does not would bypass the guard. So each exit
//! says which of the two it is: see [`Parsed`], and docs/packets.md for the list.

use ws_guard_common::maps::{Address, FlowKey};

use crate::{
    packet::{self, MAX_OFFSET, Parsed, Segment, at, payload::Hook, tunnel},
    report::Side,
};

/// Transparent Ethernet bridging: an Ethernet frame, as inside a tunnel.
pub const ETH_P_TEB: u16 = 0x6558_u16.to_be();
pub const ETH_P_IP: u16 = 0x0800_u16.to_be();
pub const ETH_P_IPV6: u16 = 0x86DD_u16.to_be();
const ETH_P_8021Q: u16 = 0x8100_u16.to_be();
const ETH_P_8021AD: u16 = 0x88A8_u16.to_be();
const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// Maximum of tags followed. The standards know two, but Linux removes any number of priority tags.
const MAX_TAGS: usize = 4;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = packet::TCP_HEADER as usize;
/// Maximum length of a segment, with all that GRO and TSO merge (BIG TCP).
const MAX_TCP: usize = 0x10_0000;

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_DSTOPTS: u8 = 60;
/// Maximum of extension headers followed.
/// RFC 8200 (4.1) has seven in front of TCP, each once, and destination options twice; a host may
/// limit their number (RFC 8504, 5.3).
const MAX_EXTENSIONS: usize = 8;

/// IPv4: offset of a fragment in units of 8 bytes, and "more fragments".
const IPV4_OFFSET: u16 = 0x1FFF;
const IPV4_MORE: u16 = 0x2000;
/// The same in IPv6's fragment header.
const IPV6_OFFSET: u16 = 0xFFF8;
const IPV6_MORE: u16 = 0x0001;

/// Properties of an IP packet by its outer headers, as bits.
#[derive(Clone, Copy)]
pub struct Around(pub u32);

impl Around {
    /// The first fragment of a larger one.
    pub const CUT: Around = Around(1 << 0);
    /// A router on the way will forward it to another address.
    pub const ROUTED: Around = Around(1 << 1);
    /// It is inside another packet.
    pub const TUNNEL: Around = Around(1 << 2);

    #[inline(always)]
    pub const fn has(self, other: Around) -> bool {
        self.0 & other.0 != 0
    }

    /// Without a branch, which the verifier would follow both ways from here to the end.
    #[inline(always)]
    pub const fn with(self, other: Around, set: bool) -> Around {
        Around(self.0 | (other.0 * set as u32))
    }
}

/// Linear part of the packet, and its sender.
#[derive(Clone, Copy)]
pub struct Bytes<'a, H> {
    pub hook: &'a H,
    pub data: usize,
    pub end: usize,
    pub side: Side,
}

/// Read a `T`, which must be valid for any bytes and need no alignment.
macro_rules! read {
    ($bytes:expr, $offset:expr, $ty:ty) => {
        match $crate::packet::at_sum::<$ty>($bytes.data, $bytes.end, $offset) {
            // SAFETY: `at_sum` checked the bounds, and packet memory may be read unaligned.
            Some(pointer) => unsafe { pointer.read_unaligned() },
            None => return $crate::packet::Parsed::Short,
        }
    };
}
pub(crate) use read;

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
    window: u16,
    _check: u16,
    _urgent: u16,
}

/// Find the TCP segment in a packet from `side`; the result is in [`packet::segment`].
///
/// Parsing begins at [`packet::place`], at first the whole packet. After [`Parsed::Tunnel`] that is
/// the tunnel's content, for a second call.
#[inline(always)]
pub fn parse<H: Hook>(hook: &H, side: Side) -> Parsed {
    let (data, end) = hook.linear();
    let bytes = Bytes { hook, data, end, side };
    let Some(place) = packet::place() else {
        return Parsed::Hidden;
    };
    let (start, kind, around) = (place.offset as usize, place.kind as u16, Around(place.around));
    if start > MAX_OFFSET {
        return Parsed::Hidden;
    }
    if kind != ETH_P_TEB {
        return parse_ip(&bytes, kind, start, around);
    }
    match parse_ethernet(&bytes, start, around) {
        // Too short for an Ethernet header.
        Parsed::Short if at::<[u8; ETHERNET]>(data, end, start).is_none() => Parsed::Other,
        found => found,
    }
}

#[inline(always)]
fn parse_ethernet<H: Hook>(bytes: &Bytes<H>, start: usize, around: Around) -> Parsed {
    let mut kind = read!(bytes, start + 12, u16);
    let mut l3 = start + ETHERNET;
    let mut tags = 0;
    while tags < MAX_TAGS {
        if kind != ETH_P_8021Q && kind != ETH_P_8021AD {
            break;
        }
        kind = read!(bytes, l3 + 2, u16);
        l3 += VLAN_TAG;
        tags += 1;
    }
    if kind == ETH_P_8021Q || kind == ETH_P_8021AD || l3 > MAX_OFFSET {
        return Parsed::Hidden;
    }
    parse_ip(bytes, kind, l3, around)
}

#[inline(always)]
fn parse_ip<H: Hook>(bytes: &Bytes<H>, kind: u16, l3: usize, around: Around) -> Parsed {
    match kind {
        ETH_P_IP => parse_v4(bytes, l3, around),
        ETH_P_IPV6 => parse_v6(bytes, l3, around),
        _ => Parsed::Other,
    }
}

#[inline(always)]
fn parse_v4<H: Hook>(bytes: &Bytes<H>, l3: usize, around: Around) -> Parsed {
    let ip = read!(bytes, l3, Ipv4);
    let header = (ip.version_ihl & 0xF) as usize * 4;
    let total = u16::from_be(ip.total_len) as usize;
    let fragment = u16::from_be(ip.fragment);
    if ip.protocol != IPPROTO_TCP && !tunnel::carried_by(ip.protocol) {
        return Parsed::Other;
    }
    if fragment & IPV4_OFFSET != 0 {
        return if ip.protocol == IPPROTO_TCP { Parsed::Unreadable } else { Parsed::Other };
    }
    if header < size_of::<Ipv4>() || (total != 0 && total < header) {
        return Parsed::Unreadable;
    }
    let around = around.with(Around::CUT, fragment & IPV4_MORE != 0);
    if ip.protocol != IPPROTO_TCP {
        return tunnel::enter(bytes, ip.protocol, l3 + header, around);
    }
    let len = if total == 0 { None } else { Some(total - header) };
    let addresses = (Address::from_v4(ip.source), Address::from_v4(ip.destination));
    parse_tcp(bytes, l3 + header, len, addresses, around)
}

const fn is_extension(header: u8) -> bool {
    matches!(
        header,
        IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT | IPPROTO_AH | IPPROTO_DSTOPTS
    )
}

#[inline(always)]
fn parse_v6<H: Hook>(bytes: &Bytes<H>, l3: usize, mut around: Around) -> Parsed {
    let ip = read!(bytes, l3, Ipv6);
    let payload = u16::from_be(ip.payload_len) as usize;
    let mut next = ip.next_header;
    let start = l3 + IPV6_HEADER;
    let mut offset = start;
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        if !is_extension(next) {
            break;
        }
        if payload != 0 && offset - start + 8 > payload {
            return cut_short(around);
        }
        let [following, length, high, low] = read!(bytes, offset, [u8; 4]);
        let mut len = (length as usize + 1) * 8;
        if next == IPPROTO_FRAGMENT {
            let fragment = u16::from_be_bytes([high, low]);
            if fragment & IPV6_OFFSET != 0 {
                let tcp = following == IPPROTO_TCP || is_extension(following);
                return if tcp { Parsed::Unreadable } else { Parsed::Other };
            }
            around = around.with(Around::CUT, fragment & IPV6_MORE != 0);
            len = 8;
        } else if next == IPPROTO_AH {
            len = (length as usize + 2) * 4;
        } else if next == IPPROTO_ROUTING {
            // The fourth byte: number of addresses still to be visited.
            around = around.with(Around::ROUTED, low != 0);
        }
        next = following;
        offset += len;
        if offset > MAX_OFFSET {
            return Parsed::Hidden;
        }
        i += 1;
    }
    if is_extension(next) {
        return Parsed::Hidden;
    }
    let extensions = offset - start;
    if payload != 0 && extensions > payload {
        return cut_short(around);
    }
    if next != IPPROTO_TCP {
        return match tunnel::carried_by(next) {
            true => tunnel::enter(bytes, next, offset, around),
            false => Parsed::Other,
        };
    }
    let len = if payload == 0 { None } else { Some(payload - extensions) };
    parse_tcp(bytes, offset, len, (Address(ip.source), Address(ip.destination)), around)
}

/// Result for headers longer than their packet: discarded by every receiver, unless the rest is in
/// another fragment (which RFC 8200, 4.5, forbids).
#[inline(always)]
fn cut_short(around: Around) -> Parsed {
    if around.has(Around::CUT) { Parsed::Hidden } else { Parsed::Unreadable }
}

/// Parse TCP.
/// `len`: header and payload by IP's length field; `None` where GRO or TSO merged more than its 16
/// bits can say, and the packet's size counts.
#[inline(always)]
fn parse_tcp<H: Hook>(
    bytes: &Bytes<H>,
    tcp: usize,
    len: Option<usize>,
    (source, destination): (Address, Address),
    around: Around,
) -> Parsed {
    let Some(current) = packet::current() else {
        return Parsed::Hidden;
    };
    let len = match len {
        Some(len) => len,
        None => (bytes.hook.size() as usize).saturating_sub(tcp),
    };
    if len < 4 {
        return cut_short(around);
    }
    let [from, to] = read!(bytes, tcp, [u16; 2]);
    let key = match bytes.side {
        Side::Client => {
            FlowKey { client: source, server: destination, client_port: from, server_port: to }
        }
        Side::Server => {
            FlowKey { client: destination, server: source, client_port: to, server_port: from }
        }
    };
    // SAFETY: this CPU's scratch value.
    let current = unsafe { &mut *current };
    current.segment.key = key;
    // Of the server's fragments the first one is read: it acknowledges.
    if around.has(Around::CUT) && bytes.side == Side::Client {
        return Parsed::Fragment;
    }
    if around.has(Around::ROUTED) {
        return Parsed::Rerouted;
    }
    let header = read!(bytes, tcp, Tcp);
    let header_len = (header.data_offset >> 4) as usize * 4;
    if header_len < TCP_HEADER || len < header_len || len > MAX_TCP {
        return Parsed::Unreadable;
    }
    current.segment = Segment {
        key,
        // A SYN takes up the number before the first byte of data (RFC 9293, 3.4).
        seq: u32::from_be(header.seq).wrapping_add(header.flags as u32 >> 1 & 1),
        ack: u32::from_be(header.ack),
        flags: header.flags.into(),
        tcp: tcp as u32,
        payload: (tcp + header_len) as u32,
        len: (len - header_len) as u32,
        window: u16::from_be(header.window).into(),
        tunnelled: around.has(Around::TUNNEL) as u32,
    };
    current.window.len = 0;
    Parsed::Tcp
}
