//! What networks put around a TCP segment, and how they cut it: tags, extension headers, fragments,
//! tunnels. Each takes a built Ethernet frame and makes others of it.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// Numbers of IPv6 extension headers (RFC 8200, 4.1).
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
}

/// 802.1Q, and the service tag of 802.1ad.
pub const CUSTOMER_TAG: u16 = 0x8100;
pub const SERVICE_TAG: u16 = 0x88A8;

const ETHERNET: usize = 14;
const IPV6: usize = 40;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 4]];

/// The frame with tags of these types and VLAN identifiers, the outer one first.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for (kind, id) in tags {
        out.extend(kind.to_be_bytes());
        out.extend(id.to_be_bytes());
    }
    out.extend(&frame[12..]);
    out
}

/// An extension header without its first byte, which says what follows: `bytes` long altogether, a
/// multiple of 8, filled with padding (PadN) where it is for options.
pub fn options(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes - 1];
    out[0] = (bytes / 8 - 1) as u8;
    let mut at = 1;
    while at < out.len() {
        let padding = (out.len() - at).min(255);
        match padding {
            1 => out[at] = 0,
            _ => (out[at], out[at + 1]) = (1, padding as u8 - 2),
        }
        at += padding;
    }
    out
}

/// A routing header, likewise: of `kind`, with as many segments left.
pub fn routing(kind: u8, segments_left: u8) -> Vec<u8> {
    // As long as one address, which is all that a receiver looks at.
    let mut out = vec![2, kind, segments_left];
    out.extend([0; 20]);
    out
}

/// A fragment header, likewise. `offset` in units of 8 bytes.
pub fn fragment_header(offset: u16, more: bool) -> Vec<u8> {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![0, high, low, 0, 0, 0, 7]
}

/// An untagged IPv6 frame with these headers between IPv6's own and what followed it.
///
/// # Errors
/// When the frame is not IPv6, or becomes longer than IPv6 can say.
pub fn extended(frame: &[u8], headers: &[(u8, Vec<u8>)]) -> Result<Vec<u8>> {
    ensure!(frame.get(12..14) == Some(&[0x86, 0xDD]), "no IPv6 frame");
    let mut out = frame[..ETHERNET + IPV6].to_vec();
    // Where the number of the next header stands.
    let mut next = ETHERNET + 6;
    for (kind, body) in headers {
        out[next] = *kind;
        next = out.len();
        out.push(frame[ETHERNET + 6]);
        out.extend(body);
    }
    out.extend(&frame[ETHERNET + IPV6..]);
    let length = u16::try_from(out.len() - ETHERNET - IPV6).context("too many headers")?;
    out[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
    Ok(out)
}

/// Fragments of an untagged IP frame, each with the bytes of its payload from one of these ranges,
/// whose borders but the last are multiples of 8.
///
/// # Errors
/// When the frame is not IP, or a range is outside of its payload.
pub fn fragments(frame: &[u8], ranges: &[std::ops::Range<usize>]) -> Result<Vec<Vec<u8>>> {
    let (header, v6) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (ETHERNET + usize::from(frame[ETHERNET] & 15) * 4, false),
        Some([0x86, 0xDD]) => (ETHERNET + IPV6, true),
        _ => bail!("no IP frame"),
    };
    let payload = &frame[header..];
    let cut = |range: &std::ops::Range<usize>| {
        let part = payload.get(range.clone()).context("a range outside of the payload")?;
        let (offset, more) = ((range.start / 8) as u16, range.end < payload.len());
        let mut out = [&frame[..header], part].concat();
        if v6 {
            let fragment = (extension::FRAGMENT, fragment_header(offset, more));
            return extended(&out, &[fragment]);
        }
        let total = (out.len() - ETHERNET) as u16;
        let place = offset | if more { 0x2000 } else { 0 };
        out[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&total.to_be_bytes());
        out[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&7u16.to_be_bytes());
        out[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&place.to_be_bytes());
        mend_ipv4(&mut out[ETHERNET..header]);
        Ok(out)
    };
    ranges.iter().map(cut).collect()
}

/// Put an IPv4 header's checksum right.
fn mend_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = header.chunks(2).fold(0u32, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    });
    let folded = (sum >> 16) + (sum & 0xFFFF);
    let check = !((folded >> 16) + (folded & 0xFFFF)) as u16;
    header[10..12].copy_from_slice(&check.to_be_bytes());
}

/// A tunnel around a frame, or around the IP packet in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// RFC 7348, with this UDP port.
    Vxlan(u16),
    /// RFC 8926, with this UDP port and so many bytes of options.
    Geneve(u16, u8),
    IpInIp,
}

impl Tunnel {
    /// `frame` inside the tunnel between two hosts of either IP version.
    ///
    /// # Errors
    /// When the addresses are not of one version.
    pub fn around(self, frame: &[u8], outer: (IpAddr, IpAddr)) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(MACS[0], MACS[1]);
        let ip = match outer {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            (from, to) => bail!("{from} and {to} are not of one address family"),
        };
        let mut out = Vec::new();
        match self {
            Tunnel::Vxlan(port) => {
                let header = [8, 0, 0, 0, 0, 0, 42, 0];
                ip.udp(50_000, port).write(&mut out, &[&header, frame].concat())?;
            }
            Tunnel::Geneve(port, options) => {
                let header = [options / 4, 0, 0x65, 0x58, 0, 0, 42, 0];
                let options = vec![0; options.into()];
                ip.udp(50_000, port).write(&mut out, &[&header, &*options, frame].concat())?;
            }
            Tunnel::IpInIp => {
                let v6 = frame[12..14] == [0x86, 0xDD];
                let number = if v6 { IpNumber::IPV6 } else { IpNumber(4) };
                ip.write(&mut out, number, &frame[ETHERNET..])?;
            }
        }
        Ok(out)
    }
}

/// The UDP checksum of a tunnel's packet is right; `true` for a packet without UDP.
///
/// # Errors
/// When it is no IP packet.
pub fn outer_checksum_is_right(frame: &[u8]) -> Result<bool> {
    let sliced = SlicedPacket::from_ethernet(frame).context("parsing a packet")?;
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { return Ok(true) };
    let (header, inside) = (udp.to_header(), udp.payload());
    let right = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header();
            header.calc_checksum_ipv4_raw(ip.source(), ip.destination(), inside)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header();
            header.calc_checksum_ipv6_raw(ip.source(), ip.destination(), inside)
        }
        _ => bail!("no IP header in it"),
    };
    Ok(right.context("adding up")? == udp.checksum())
}

/// Two hosts for the ends of a tunnel.
pub fn tunnel_ends(v6: bool) -> (IpAddr, IpAddr) {
    match v6 {
        false => (Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::new(192, 0, 2, 2).into()),
        true => {
            let end = |last| Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, last).into();
            (end(1), end(2))
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::LaxSlicedPacket;

    use super::*;
    use crate::packets::Packet;

    fn frame(v6: bool) -> Vec<u8> {
        let (from, to) = match v6 {
            false => ("10.1.0.1:4711", "10.1.0.2:80"),
            true => ("[fd00::1]:4711", "[fd00::2]:80"),
        };
        let packet = Packet::new(from.parse().unwrap(), to.parse().unwrap(), 1, 2, vec![7; 60]);
        packet.build().unwrap()
    }

    fn port(frame: &[u8]) -> Option<u16> {
        match SlicedPacket::from_ethernet(frame).unwrap().transport {
            Some(TransportSlice::Tcp(tcp)) => Some(tcp.destination_port()),
            _ => None,
        }
    }

    #[test]
    fn another_parser_finds_tcp_behind_tags_and_extensions() {
        let tags = [(SERVICE_TAG, 5), (CUSTOMER_TAG, 6)];
        assert_eq!(port(&tagged(&frame(false), &tags)), Some(80));
        let headers = [
            (extension::HOP_BY_HOP, options(8)),
            (extension::ROUTING, routing(4, 0)),
            (extension::DESTINATION, options(296)),
        ];
        let extended = extended(&frame(true), &headers).unwrap();
        assert_eq!(port(&extended), Some(80));
    }

    #[test]
    fn fragments_hold_the_packet_between_them() {
        for v6 in [false, true] {
            let whole = frame(v6);
            let parts = fragments(&whole, &[0..8, 8..80]).unwrap();
            let header = whole.len() - 80;
            assert_eq!(
                [&parts[0][parts[0].len() - 8..], &parts[1][parts[1].len() - 72..]].concat(),
                whole[header..]
            );
            for part in &parts {
                let sliced = LaxSlicedPacket::from_ethernet(part).unwrap();
                assert!(sliced.net.unwrap().ip_payload_ref().unwrap().fragmented, "{part:?}");
            }
        }
    }

    #[test]
    fn another_parser_finds_the_outer_packet() {
        for v6 in [false, true] {
            let outer = Tunnel::Vxlan(4789).around(&frame(!v6), tunnel_ends(v6)).unwrap();
            let sliced = SlicedPacket::from_ethernet(&outer).unwrap();
            let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
            assert_eq!((udp.destination_port(), &udp.payload()[8..]), (4789, &frame(!v6)[..]));
            assert!(outer_checksum_is_right(&outer).unwrap());
            let mut changed = outer;
            *changed.last_mut().unwrap() ^= 1;
            assert!(!outer_checksum_is_right(&changed).unwrap());
        }
    }
}
