//! Tunnels: packets inside other packets.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::ip::ETHERNET;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 4]];

/// Tunnel around a frame, or around the IP packet in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// VXLAN (RFC 7348), with this UDP port.
    Vxlan(u16),
    /// Geneve (RFC 8926), with this UDP port and this number of bytes of options.
    Geneve(u16, u8),
    IpInIp,
}

impl Tunnel {
    /// Encapsulate `frame` in the tunnel between two hosts of either IP version.
    ///
    /// # Errors
    /// If the addresses are not of one version.
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

/// Check the UDP checksum of a tunnel's packet; `true` for a packet without UDP.
///
/// # Errors
/// If it is not an IP packet.
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

/// Return two hosts for the ends of a tunnel.
pub fn ends(v6: bool) -> (IpAddr, IpAddr) {
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

    #[test]
    fn another_parser_finds_the_outer_packet() {
        for v6 in [false, true] {
            let outer = Tunnel::Vxlan(4789).around(&frame(!v6), ends(v6)).unwrap();
            let sliced = SlicedPacket::from_ethernet(&outer).unwrap();
            let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
            assert_eq!((udp.destination_port(), &udp.payload()[8..]), (4789, &frame(!v6)[..]));
            assert!(outer_checksum_is_right(&outer).unwrap());
            let mut changed = outer.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert!(!outer_checksum_is_right(&changed).unwrap());
        }
    }
}
