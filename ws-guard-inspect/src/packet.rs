//! TCP segment of a packet: link layers, VLAN tags, IP of both versions, tunnels.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, IpNumber, LaxNetSlice, LaxSlicedPacket, TcpOptionElement, TcpSlice, TransportSlice,
    ether_type, ip_number,
};

use crate::{finding::Place, input::Packet};

/// LINKTYPE values, <https://www.tcpdump.org/linktypes.html>.
mod linktype {
    pub const NULL: i32 = 0;
    pub const ETHERNET: i32 = 1;
    /// Value that some systems write for RAW.
    pub const DLT_RAW: i32 = 12;
    pub const DLT_RAW_OPENBSD: i32 = 14;
    pub const RAW: i32 = 101;
    pub const LOOP: i32 = 108;
    pub const LINUX_SLL: i32 = 113;
    pub const IPV4: i32 = 228;
    pub const IPV6: i32 = 229;
    pub const LINUX_SLL2: i32 = 276;
}

const VXLAN: u16 = 4789;
const GENEVE: u16 = 6081;
/// Maximum depth of nested tunnels.
const DEPTH: u32 = 3;

/// Flag bits of a TCP header.
pub mod flag {
    pub const FIN: u8 = 1 << 0;
    pub const SYN: u8 = 1 << 1;
    pub const RST: u8 = 1 << 2;
    pub const ACK: u8 = 1 << 4;
}

/// TCP segment, as far as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub place: Place,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Window as in the header, not scaled.
    pub window: u16,
    /// Shift of later windows, where a SYN has the option.
    pub scale: Option<u8>,
    /// Captured part of the payload.
    pub payload: &'a [u8],
    /// Original payload length in bytes.
    pub len: u32,
}

/// Result of parsing a packet.
#[derive(Debug)]
pub enum Parsed<'a> {
    Tcp(Segment<'a>),
    /// Packet other than TCP.
    Other,
    /// IP fragment, which is not reassembled.
    Fragment,
    /// Packet cut or broken before the end of its TCP header.
    Unreadable,
    /// Packet of an unsupported link type.
    UnknownLink,
}

/// Find the TCP segment in a packet.
pub fn parse<'a>(packet: &Packet<'a>) -> Parsed<'a> {
    let data = packet.data;
    let sliced = match packet.link {
        linktype::ETHERNET => LaxSlicedPacket::from_ethernet(data).ok(),
        linktype::LINUX_SLL => cooked(data, 14, 16),
        linktype::LINUX_SLL2 => cooked(data, 0, 20),
        linktype::NULL | linktype::LOOP => data.get(4..).and_then(ip),
        linktype::DLT_RAW
        | linktype::DLT_RAW_OPENBSD
        | linktype::RAW
        | linktype::IPV4
        | linktype::IPV6 => ip(data),
        _ => return Parsed::UnknownLink,
    };
    sliced.map_or(Parsed::Unreadable, |sliced| of_sliced(packet.place, &sliced, DEPTH))
}

fn ip(data: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    LaxSlicedPacket::from_ip(data).ok()
}

/// Parse Linux cooked capture: protocol at `protocol`, packet after `header` bytes.
fn cooked(data: &[u8], protocol: usize, header: usize) -> Option<LaxSlicedPacket<'_>> {
    let protocol = u16::from_be_bytes(*data.get(protocol..)?.first_chunk()?);
    Some(LaxSlicedPacket::from_ether_type(EtherType(protocol), data.get(header..)?))
}

fn of_sliced<'a>(place: Place, sliced: &LaxSlicedPacket<'a>, depth: u32) -> Parsed<'a> {
    let Some((source, destination, missing)) = addresses(sliced) else {
        // A truncated packet is reported as such; ARP, spanning tree and the like are just not TCP.
        return if sliced.stop_err.is_some() { Parsed::Unreadable } else { Parsed::Other };
    };
    let Some(payload) = sliced.ip_payload() else {
        return Parsed::Other;
    };
    if payload.fragmented {
        return Parsed::Fragment;
    }
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let bit = |set, bit| if set { bit } else { 0 };
            Parsed::Tcp(Segment {
                place,
                source: SocketAddr::new(source, tcp.source_port()),
                destination: SocketAddr::new(destination, tcp.destination_port()),
                seq: tcp.sequence_number(),
                ack: tcp.acknowledgment_number(),
                flags: bit(tcp.fin(), flag::FIN)
                    | bit(tcp.syn(), flag::SYN)
                    | bit(tcp.rst(), flag::RST)
                    | bit(tcp.ack(), flag::ACK),
                window: tcp.window_size(),
                scale: if tcp.syn() { scale(tcp) } else { None },
                payload: tcp.payload(),
                len: u32::try_from(tcp.payload().len()).unwrap_or(0).saturating_add(missing),
            })
        }
        Some(TransportSlice::Udp(udp)) => match (depth, udp.destination_port()) {
            (1.., VXLAN) => inside(place, udp.payload(), 8, depth),
            (1.., GENEVE) => geneve(place, udp.payload(), depth),
            _ => Parsed::Other,
        },
        Some(_) => Parsed::Other,
        None => match payload.ip_number {
            IpNumber::TCP => Parsed::Unreadable,
            ip_number::IPV4 | ip_number::IPV6 if depth > 0 => match ip(payload.payload) {
                Some(inner) => of_sliced(place, &inner, depth - 1),
                None => Parsed::Unreadable,
            },
            _ => Parsed::Other,
        },
    }
}

/// Return the window scale option (RFC 7323, 2.2), whose shift is 14 at most.
fn scale(tcp: &TcpSlice<'_>) -> Option<u8> {
    tcp.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::WindowScale(shift)) => Some(shift.min(14)),
        _ => None,
    })
}

/// Return the addresses, and the number of bytes that the capture truncated.
fn addresses(sliced: &LaxSlicedPacket<'_>) -> Option<(IpAddr, IpAddr, u32)> {
    match sliced.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let (header, payload) = (ip.header(), ip.payload());
            let authentication = ip.extensions().auth.map_or(0, |auth| auth.slice().len());
            let captured = header.slice().len() + authentication + payload.payload.len();
            let missing = usize::from(header.total_len()).saturating_sub(captured);
            let (source, destination) = (header.source_addr(), header.destination_addr());
            Some((source.into(), destination.into(), missing as u32))
        }
        LaxNetSlice::Ipv6(ip) => {
            let (header, payload) = (ip.header(), ip.payload());
            let captured = ip.extensions().slice().len() + payload.payload.len();
            let missing = usize::from(header.payload_length()).saturating_sub(captured);
            let (source, destination) = (header.source_addr(), header.destination_addr());
            Some((source.into(), destination.into(), missing as u32))
        }
        _ => None,
    }
}

/// Parse the Ethernet frame after `header` bytes of a tunnel's header.
fn inside<'a>(place: Place, data: &'a [u8], header: usize, depth: u32) -> Parsed<'a> {
    let inner = data.get(header..).and_then(|data| LaxSlicedPacket::from_ethernet(data).ok());
    inner.map_or(Parsed::Unreadable, |inner| of_sliced(place, &inner, depth - 1))
}

/// Parse Geneve: options in words of four bytes, payload by EtherType (RFC 8926).
fn geneve<'a>(place: Place, data: &'a [u8], depth: u32) -> Parsed<'a> {
    let Some(&[first, _, high, low]) = data.first_chunk() else {
        return Parsed::Unreadable;
    };
    let header = 8 + usize::from(first & 0x3F) * 4;
    let protocol = u16::from_be_bytes([high, low]);
    match (protocol, data.get(header..)) {
        (_, None) => Parsed::Unreadable,
        (0x6558, Some(_)) => inside(place, data, header, depth),
        (_, Some(inner)) if [ether_type::IPV4.0, ether_type::IPV6.0].contains(&protocol) => {
            let inner = LaxSlicedPacket::from_ether_type(EtherType(protocol), inner);
            of_sliced(place, &inner, depth - 1)
        }
        _ => Parsed::Other,
    }
}
