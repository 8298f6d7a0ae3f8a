//! Captures that tests write from known streams.
#![allow(dead_code)] // Each test target uses a part.

pub mod tshark;

use std::{io::Cursor, net::SocketAddr};

use etherparse::PacketBuilder;
use ws_guard_inspect::{
    Ends, Finding, FlowReport, Inspector, Side, Totals, Visitor, What,
    finding::Frame,
    input::{Capture, Damage},
};

pub const ETHERNET: u32 = 1;
/// Number of leading bytes kept of each frame.
pub const KEPT: usize = 40;
/// Time of the first packet, in nanoseconds.
pub const START: u64 = 1_700_000_000_000_000_000;

pub const REQUEST: &[u8] =
    b"GET /chat HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// Build the head of a 101.
pub fn switching(deflate: bool) -> Vec<u8> {
    let extension = if deflate { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{extension}\r\n"
    )
    .into_bytes()
}

/// Build a frame, masked where a client sends it.
pub fn frame(side: Side, first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = if side == Side::Client { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(mask | length as u8),
        length @ 126..0x1_0000 => {
            bytes.push(mask | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(mask | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    if mask == 0 {
        bytes.extend(payload);
    } else {
        let key = [0x12, 0x34, 0x56, 0x78];
        bytes.extend(key);
        bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    }
    bytes
}

/// Packet of a capture under construction.
#[derive(Clone)]
pub struct Packet {
    pub time_ns: u64,
    pub data: Vec<u8>,
    /// Number of bytes truncated at the end.
    pub cut: usize,
}

/// Synthetic TCP connection.
#[derive(Clone)]
pub struct Talk {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Sequence number of each side's next byte, by [`Side`].
    pub next: [u32; 2],
    pub now_ns: u64,
    pub window: u16,
    pub packets: Vec<Packet>,
}

impl Talk {
    pub fn new(v6: bool, first: [u32; 2]) -> Talk {
        let (client, server) = match v6 {
            true => ("[fd77::1]:4711", "[fd77::2]:80"),
            false => ("10.77.0.1:4711", "10.77.0.2:80"),
        };
        let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
        Talk { client, server, next: first, now_ns: START, window: 65_000, packets: Vec::new() }
    }

    /// Perform the handshakes of TCP and of WebSocket.
    pub fn open(v6: bool, first: [u32; 2], deflate: bool) -> Talk {
        let mut talk = Talk::new(v6, first);
        talk.handshake();
        talk.send(Side::Client, REQUEST);
        talk.send(Side::Server, &switching(deflate));
        talk
    }

    pub fn handshake(&mut self) {
        self.put(Side::Client, self.next[0], &[], "S");
        self.next[0] = self.next[0].wrapping_add(1);
        self.put(Side::Server, self.next[1], &[], "SA");
        self.next[1] = self.next[1].wrapping_add(1);
        self.put(Side::Client, self.next[0], &[], "A");
    }

    /// Send a side's next bytes in one segment, and return the packet's number.
    pub fn send(&mut self, side: Side, bytes: &[u8]) -> u64 {
        self.put(side, self.next[side as usize], bytes, "PA");
        self.next[side as usize] = self.next[side as usize].wrapping_add(bytes.len() as u32);
        self.packets.len() as u64
    }

    /// Acknowledge everything sent so far.
    pub fn ack(&mut self, side: Side) {
        self.put(side, self.next[side as usize], &[], "A");
    }

    pub fn fin(&mut self, side: Side) {
        self.put(side, self.next[side as usize], &[], "FA");
        self.next[side as usize] = self.next[side as usize].wrapping_add(1);
    }

    pub fn wait_ms(&mut self, ms: u64) {
        self.now_ns += ms * 1_000_000;
    }

    /// Send a segment with any sequence number.
    pub fn put(&mut self, side: Side, seq: u32, bytes: &[u8], flags: &str) {
        let (from, to) = match side {
            Side::Client => (self.client, self.server),
            Side::Server => (self.server, self.client),
        };
        let ack = self.next[side.other() as usize];
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                ethernet.ipv4(from.ip().octets(), to.ip().octets(), 64)
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                ethernet.ipv6(from.ip().octets(), to.ip().octets(), 64)
            }
            _ => panic!("both ends are of one family"),
        };
        let mut tcp = ip.tcp(from.port(), to.port(), seq, self.window);
        for flag in flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'A' => tcp.ack(ack),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                _ => tcp.psh(),
            };
        }
        let mut data = Vec::new();
        tcp.write(&mut data, bytes).unwrap();
        self.packets.push(Packet { time_ns: self.now_ns, data, cut: 0 });
        self.now_ns += 1_000_000;
    }

    pub fn pcap(&self) -> Vec<u8> {
        pcap(ETHERNET, &self.packets)
    }
}

/// Build a pcap file with microseconds, little-endian.
pub fn pcap(link: u32, packets: &[Packet]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xA1B2_C3D4u32.to_le_bytes());
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend((256u32 << 10).to_le_bytes());
    file.extend(link.to_le_bytes());
    for Packet { time_ns, data, cut } in packets {
        file.extend(((time_ns / 1_000_000_000) as u32).to_le_bytes());
        file.extend(((time_ns % 1_000_000_000 / 1000) as u32).to_le_bytes());
        let kept = data.len().saturating_sub(*cut);
        file.extend((kept as u32).to_le_bytes());
        file.extend((data.len() as u32).to_le_bytes());
        file.extend(&data[..kept]);
    }
    file
}

/// Build a pcapng file of one interface, big- or little-endian, with nanoseconds.
pub fn pcapng(link: u16, packets: &[Packet], big: bool) -> Vec<u8> {
    let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let block = |kind: u32, mut body: Vec<u8>| {
        body.resize(body.len().next_multiple_of(4), 0);
        let length = word(body.len() as u32 + 12);
        [&word(kind)[..], &length, &body, &length].concat()
    };
    let section = [&word(0x1A2B_3C4D)[..], &half(1), &half(0), &[0xFF; 8]].concat();
    let resolution = [&half(9)[..], &half(1), &[9, 0, 0, 0], &half(0), &half(0)].concat();
    let interface = [&half(link)[..], &half(0), &word(0), &resolution].concat();
    let mut file = [block(0x0A0D_0D0A, section), block(1, interface)].concat();
    for Packet { time_ns, data, cut } in packets {
        let kept = &data[..data.len().saturating_sub(*cut)];
        let mut body = Vec::new();
        for value in [0, (time_ns >> 32) as u32, *time_ns as u32, kept.len() as u32] {
            body.extend(word(value));
        }
        body.extend(word(data.len() as u32));
        body.extend(kept);
        file.extend(block(6, body));
    }
    file
}

/// Results of an inspection.
#[derive(Default)]
pub struct Told {
    pub findings: Vec<(Ends, Finding)>,
    pub flows: Vec<FlowReport>,
}

impl Visitor for Told {
    fn finding(&mut self, ends: &Ends, finding: &Finding) {
        self.findings.push((*ends, finding.clone()));
    }

    fn flow(&mut self, report: FlowReport) {
        self.flows.push(report);
    }
}

impl Told {
    /// Return the only connection.
    pub fn flow(&self) -> &FlowReport {
        assert_eq!(self.flows.len(), 1);
        &self.flows[0]
    }

    /// Return the findings on a side's data, except frames.
    pub fn of(&self, side: Side) -> Vec<&Finding> {
        let of_side = self.findings.iter().map(|(_, finding)| finding);
        let of_side = of_side.filter(|finding| finding.direction == side);
        of_side.filter(|finding| !matches!(finding.what, What::Frame(_))).collect()
    }

    /// Return a side's frames, each with the sequence number and packet of its start.
    pub fn frames(&self, side: Side) -> Vec<(u32, u64, Frame)> {
        let frames = self.findings.iter().filter(|(_, finding)| finding.direction == side);
        let frames = frames.filter_map(|(_, finding)| match &finding.what {
            What::Frame(frame) => Some((finding.at.seq, finding.at.packet, frame.clone())),
            _ => None,
        });
        frames.collect()
    }
}

/// Build a talk of two frames in a segment, a ping and its pong: 8 packets.
pub fn talk(v6: bool) -> Talk {
    let mut talk = Talk::open(v6, [100, u32::MAX - 20], false);
    let two = [frame(Side::Client, 0x81, b"one"), frame(Side::Client, 0x82, &[7; 300])].concat();
    talk.send(Side::Client, &two);
    talk.send(Side::Server, &frame(Side::Server, 0x89, b"alive"));
    talk.send(Side::Client, &frame(Side::Client, 0x8A, b"alive"));
    talk
}

/// Inspect a capture in memory, as far as it can be read.
pub fn inspect(file: &[u8]) -> (Told, Totals, Option<Damage>) {
    inspect_with(file, Inspector::new(Told::default()))
}

/// Inspect a capture with the given inspector.
pub fn inspect_with(file: &[u8], mut inspector: Inspector<Told>) -> (Told, Totals, Option<Damage>) {
    let mut damage = None;
    inspector.keep(KEPT);
    match Capture::new(Cursor::new(file.to_vec()), 1) {
        Err(error) => damage = Some(error),
        Ok(mut capture) => loop {
            match capture.packet() {
                Ok(Some(packet)) => inspector.packet(&packet),
                Ok(None) => break,
                Err(error) => {
                    damage = Some(error);
                    break;
                }
            }
        },
    }
    let (told, totals) = inspector.end();
    (told, totals, damage)
}

/// Inspect an undamaged capture.
pub fn inspected(file: &[u8]) -> (Told, Totals) {
    let (told, totals, damage) = inspect(file);
    assert_eq!(damage, None);
    (told, totals)
}
