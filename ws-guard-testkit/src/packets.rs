//! Packets for programs that run without a network, and both sides of a connection.
//! Transformations by networks are in [`crate::ip`] and [`crate::tunnel`].
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, PacketBuilder,
    SlicedPacket, TcpHeader, TransportSlice, checksum::Sum16BitWords,
};

/// TCP flags (RFC 9293, 3.1).
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
}

/// Content of the TCP checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Sum over pseudo header, header and payload, as on the wire.
    Full,
    /// Sum of the pseudo header only, not complemented (CHECKSUM_PARTIAL).
    /// A later step completes it.
    Partial,
    /// Wrong value, for which the receiver discards the segment.
    Wrong,
}

/// Packet to build.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Ethernet addresses, source and destination.
    pub macs: [[u8; 6]; 2],
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Receive window as in the header: not scaled.
    pub window: u16,
    /// Urgent pointer, and the URG flag with it (RFC 9293, 3.8.5).
    pub urgent: Option<u16>,
    pub payload: Vec<u8>,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4 options, a multiple of 4 bytes up to 40.
    pub ip_options: Vec<u8>,
    /// TCP options, up to 40 bytes.
    pub tcp_options: Vec<u8>,
    pub checksum: Checksum,
}

impl Packet {
    /// Create a plain segment: ACK, and PSH where there is payload.
    pub fn new(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, payload: Vec<u8>) -> Packet {
        let flags = if payload.is_empty() { flag::ACK } else { flag::ACK | flag::PSH };
        Packet {
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            from,
            to,
            seq,
            ack,
            flags,
            window: 0xFFFF,
            urgent: None,
            payload,
            hop_limit: 64,
            ip_options: Vec::new(),
            tcp_options: Vec::new(),
            checksum: Checksum::Full,
        }
    }

    /// Set other TCP flags.
    pub fn flags(mut self, flags: u8) -> Packet {
        self.flags = flags;
        self
    }

    /// Build the Ethernet frame.
    ///
    /// # Errors
    /// If the parts do not fit together: addresses of two families, options of a wrong length.
    pub fn build(&self) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(self.macs[0], self.macs[1]);
        let tcp = ethernet.ip(self.ip()?).tcp_header(self.tcp()?);
        let mut bytes = Vec::with_capacity(tcp.size(self.payload.len()));
        tcp.write(&mut bytes, &self.payload).context("building a packet")?;
        let at = bytes.len() - self.tcp_len() + 16;
        match self.checksum {
            Checksum::Full => {}
            Checksum::Partial => {
                bytes[at..at + 2].copy_from_slice(&self.pseudo_sum().to_be_bytes());
            }
            // 0 and 0xFFFF are the same sum; this changes neither into the other.
            Checksum::Wrong => bytes[at] ^= 0x55,
        }
        Ok(bytes)
    }

    /// Return the length of TCP header and payload.
    pub fn tcp_len(&self) -> usize {
        20 + self.tcp_options.len().next_multiple_of(4) + self.payload.len()
    }

    fn tcp(&self) -> Result<TcpHeader> {
        let (from, to) = (self.from.port(), self.to.port());
        let mut tcp = TcpHeader::new(from, to, self.seq, self.window);
        tcp.acknowledgment_number = self.ack;
        let set = |flag| self.flags & flag != 0;
        (tcp.fin, tcp.syn, tcp.rst) = (set(flag::FIN), set(flag::SYN), set(flag::RST));
        (tcp.psh, tcp.ack) = (set(flag::PSH), set(flag::ACK));
        (tcp.urg, tcp.urgent_pointer) =
            (set(flag::URG) || self.urgent.is_some(), self.urgent.unwrap_or(0));
        tcp.set_options_raw(&self.tcp_options).context("TCP options")?;
        Ok(tcp)
    }

    fn ip(&self) -> Result<IpHeaders> {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip =
                    Ipv4Header::new(0, self.hop_limit, IpNumber::TCP, from.octets(), to.octets())
                        .context("IPv4 header")?;
                ip.options = Ipv4Options::try_from(&*self.ip_options).context("IPv4 options")?;
                Ok(IpHeaders::Ipv4(ip, Default::default()))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ip = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: 0,
                    next_header: IpNumber::TCP,
                    hop_limit: self.hop_limit,
                    source: from.octets(),
                    destination: to.octets(),
                };
                Ok(IpHeaders::Ipv6(ip, Default::default()))
            }
            (from, to) => bail!("{from} and {to} are not of one address family"),
        }
    }

    /// Return the pseudo header's sum, not complemented.
    fn pseudo_sum(&self) -> u16 {
        let sum = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                Sum16BitWords::new().add_4bytes(from.octets()).add_4bytes(to.octets())
            }
            (from, to) => [from, to].iter().fold(Sum16BitWords::new(), |mut sum, ip| match ip {
                IpAddr::V4(ip) => sum.add_4bytes(ip.octets()),
                IpAddr::V6(ip) => sum.add_16bytes(ip.octets()),
            }),
        };
        let sum = sum.add_2bytes((self.tcp_len() as u16).to_be_bytes()).add_2bytes([0, 6]);
        // The library's sums are in the byte order of memory.
        !u16::from_be(sum.ones_complement())
    }
}

/// Check the TCP checksum of a built packet.
///
/// # Errors
/// If there is no TCP segment in it.
pub fn checksum_is_right(packet: &[u8]) -> Result<bool> {
    let sliced = SlicedPacket::from_ethernet(packet).context("parsing a packet")?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { bail!("no TCP segment in it") };
    let right = match sliced.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => tcp
            .calc_checksum_ipv4(ip.header().source(), ip.header().destination())
            .context("adding up")?,
        Some(etherparse::NetSlice::Ipv6(ip)) => tcp
            .calc_checksum_ipv6(ip.header().source(), ip.header().destination())
            .context("adding up")?,
        _ => bail!("no IP header in it"),
    };
    Ok(right == tcp.checksum())
}

/// Request for an upgrade (RFC 6455, 1.2).
pub const REQUEST: &[u8] = b"GET /chat HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";
/// Answer that opens a flow.
pub const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Both ends of a TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Sequence number of the client's first byte, the request's.
    pub client_seq: u32,
    /// Sequence number of the server's first byte, the answer's.
    pub server_seq: u32,
}

impl Connection {
    /// Build the request of [`REQUEST`].
    pub fn request(&self) -> Packet {
        let (from, to) = (self.client, self.server);
        Packet::new(from, to, self.client_seq, self.server_seq, REQUEST.to_vec())
    }

    /// Build the server's SYN-ACK, without options.
    pub fn accepted(&self) -> Packet {
        let (from, to) = (self.server, self.client);
        let seq = self.server_seq.wrapping_sub(1);
        let mut accepted = Packet::new(from, to, seq, self.client_seq, Vec::new());
        accepted.flags |= flag::SYN;
        accepted
    }

    /// Build the server's answer to [`Connection::request`].
    pub fn answer(&self, head: &[u8]) -> Packet {
        let (from, to) = (self.server, self.client);
        Packet::new(from, to, self.server_seq, self.frames_seq(), head.to_vec())
    }

    /// Return the sequence number of the client's first byte after the request.
    pub fn frames_seq(&self) -> u32 {
        self.client_seq.wrapping_add(REQUEST.len() as u32)
    }

    /// Return the sequence number of the server's first byte after [`SWITCHING`].
    pub fn answers_seq(&self) -> u32 {
        self.server_seq.wrapping_add(SWITCHING.len() as u32)
    }

    /// Build a client's segment `at` bytes after the request.
    pub fn from_client(&self, at: u32, payload: impl Into<Vec<u8>>) -> Packet {
        let (seq, ack) = (self.frames_seq().wrapping_add(at), self.answers_seq());
        Packet::new(self.client, self.server, seq, ack, payload.into())
    }

    /// Build a server's segment `at` bytes after the answer.
    /// It acknowledges `acked` bytes after the request.
    pub fn from_server(&self, at: u32, acked: u32, payload: impl Into<Vec<u8>>) -> Packet {
        let seq = self.answers_seq().wrapping_add(at);
        let ack = self.frames_seq().wrapping_add(acked);
        Packet::new(self.server, self.client, seq, ack, payload.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        let (from, to) = ("10.1.0.1:4711", "10.1.0.2:80");
        Packet::new(from.parse().unwrap(), to.parse().unwrap(), 1, 2, b"odd number".to_vec())
    }

    #[test]
    fn checksums_are_right_until_a_byte_changes() {
        let mut bytes = packet().build().unwrap();
        assert!(checksum_is_right(&bytes).unwrap());
        *bytes.last_mut().unwrap() ^= 1;
        assert!(!checksum_is_right(&bytes).unwrap());
    }

    #[test]
    fn a_partial_checksum_becomes_right_by_adding_up_the_segment() {
        for (from, to) in [("10.1.0.1:1", "10.1.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let mut packet = packet();
            (packet.from, packet.to) = (from.parse().unwrap(), to.parse().unwrap());
            packet.checksum = Checksum::Partial;
            let mut bytes = packet.build().unwrap();
            // Like a network card: sum up the segment, the field included.
            let tcp = bytes.len() - packet.tcp_len();
            let sum = Sum16BitWords::new().add_slice(&bytes[tcp..]).ones_complement();
            bytes[tcp + 16..tcp + 18].copy_from_slice(&sum.to_ne_bytes());
            assert!(checksum_is_right(&bytes).unwrap(), "{from}");
        }
    }
}
