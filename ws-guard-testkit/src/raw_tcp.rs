//! Client with its own TCP in user space, which can lie in any field of a segment.
//!
//! Its address does not belong to the client namespace's kernel, so that only this client answers
//! the server. It tracks the server's acknowledgements, puts the server's bytes in order,
//! acknowledges them, and counts the frames in them. It retransmits nothing by itself.
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    capture::{Capture, Captured},
    frame::{Decoder, opcode},
    netns::{Family, INTERFACE, Pair},
    packets::{Packet, REQUEST, flag},
    raw::Sender,
};

/// Time-out of the server's actions.
const PATIENCE: Duration = Duration::from_secs(20);
/// Maximum payload of a segment that [`RawTcp::push`] sends.
pub const SEGMENT: usize = 1400;
/// Maximum number of segments in flight, so that no queue on the path overflows.
const BURST: usize = 16;

/// TCP option kinds (IANA, "TCP Option Kind Numbers").
mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: u8 = 2;
    pub const WINDOW_SCALE: u8 = 3;
    pub const SACK_PERMITTED: u8 = 4;
    pub const TIMESTAMPS: u8 = 8;
}

/// Options for the opening of a [`RawTcp`].
#[derive(Clone, Debug)]
pub struct Opening {
    /// `true` to offer timestamps (RFC 7323).
    pub timestamps: bool,
    /// Maximum segment size of the server in bytes.
    pub mss: u16,
    /// Receive window in all segments, in bytes.
    pub window: u16,
    /// `true` to offer a window scale of 0: the server may have one.
    pub scale: bool,
    /// `true` to offer selective acknowledgements (RFC 2018).
    pub sack: bool,
}

impl Default for Opening {
    fn default() -> Opening {
        Opening { timestamps: true, mss: 1460, window: 0xFFFF, scale: false, sack: false }
    }
}

/// Return address number `n` of no kernel; each is its own source for the guard.
pub fn address(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 77, 1, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0x1000 | u16::from(n), 0, 0, 0, 1).into(),
    }
}

/// Return the end of a 101's head, after earlier answers of the server.
pub(crate) fn end_of_answer(bytes: &[u8]) -> Option<usize> {
    let find = |text: &[u8], from: usize| {
        let at = bytes.get(from..)?.windows(text.len()).position(|part| part == text)?;
        Some(from + at)
    };
    Some(find(b"\r\n\r\n", find(b"HTTP/1.1 101 ", 0)?)? + 4)
}

/// Connection with its own TCP.
pub struct RawTcp {
    sender: Sender,
    capture: Capture,
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Sequence number of the next byte to send.
    pub next: u32,
    /// Receive window announced to the server.
    pub window: u16,
    /// End of the bytes that the server has acknowledged.
    acked: u32,
    /// Announced end of the window, and number of bytes acknowledged beyond one.
    edge: u32,
    beyond: u64,
    /// Sequence number of the server's next byte.
    expected: u32,
    /// Segments of the server behind a gap, by sequence number.
    early: BTreeMap<u32, Vec<u8>>,
    /// Bytes of the server not yet processed as an answer or as frames.
    bytes: Vec<u8>,
    pub upgraded: bool,
    decoder: Decoder,
    /// `true` if timestamps are negotiated.
    timestamps: bool,
    clock: Instant,
    /// Latest timestamp of the server.
    echo: u32,
    /// `true` to acknowledge what arrives.
    pub acknowledges: bool,
    /// `true` if the server has ended or reset its stream.
    pub ended: bool,
    pub reset: bool,
    /// Number of pongs in the server's stream.
    pub pongs: u64,
    /// Number of text and binary messages in it, and their content where it is kept.
    pub messages: u64,
    pub kept: Option<VecDeque<Vec<u8>>>,
}

impl RawTcp {
    /// Create a peer at `client`, which has sent nothing yet.
    pub fn new(pair: &Pair, client: SocketAddr, server: SocketAddr) -> Result<RawTcp> {
        let sender = Sender::new(pair)?;
        let mac: Vec<String> = sender.from().iter().map(|byte| format!("{byte:02x}")).collect();
        let neighbour = format!("{} lladdr {}", client.ip(), mac.join(":"));
        pair.server.ip(&format!("neigh replace {neighbour} nud permanent dev {INTERFACE}"))?;
        Ok(RawTcp {
            sender,
            capture: Capture::incoming(&pair.client)?,
            client,
            server,
            next: fastrand::u32(..),
            window: 0xFFFF,
            acked: 0,
            edge: 0,
            beyond: 0,
            expected: 0,
            early: BTreeMap::new(),
            bytes: Vec::new(),
            upgraded: false,
            decoder: Decoder::default(),
            timestamps: false,
            clock: Instant::now(),
            echo: 0,
            acknowledges: true,
            ended: false,
            reset: false,
            pongs: 0,
            messages: 0,
            kept: None,
        })
    }

    /// Open a connection: SYN, SYN-ACK, ACK.
    pub fn connect(
        pair: &Pair,
        client: SocketAddr,
        server: SocketAddr,
        opening: &Opening,
    ) -> Result<RawTcp> {
        let mut tcp = RawTcp::new(pair, client, server)?;
        tcp.open(opening, &[])?;
        tcp.acknowledge()?;
        Ok(tcp)
    }

    /// Send a SYN with `data` in it, and receive the SYN-ACK, without answering it.
    pub fn open(&mut self, opening: &Opening, data: &[u8]) -> Result<()> {
        self.window = opening.window;
        let mut syn = Packet::new(self.client, self.server, self.next, 0, data.to_vec());
        let [high, low] = opening.mss.to_be_bytes();
        syn.tcp_options = vec![option::MSS, 4, high, low];
        if opening.timestamps {
            self.timestamps = true;
            syn.tcp_options.extend(self.timestamp(self.now()));
        }
        if opening.scale {
            syn.tcp_options.extend([option::NOP, option::WINDOW_SCALE, 3, 0]);
        }
        if opening.sack {
            syn.tcp_options.extend([option::NOP, option::NOP, option::SACK_PERMITTED, 2]);
        }
        self.send(&syn.flags(flag::SYN))?;
        self.acked = self.next;
        self.next = self.next.wrapping_add(1 + data.len() as u32);
        let (client, server) = (self.client, self.server);
        // With data in the SYN, the answer to that may be captured first.
        let accepts = |flags| flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK;
        let answer = self
            .capture
            .next(PATIENCE, |s| s.source == server && s.destination == client && accepts(s.flags))?
            .with_context(|| format!("{server} does not answer the SYN of {client}"))?;
        self.timestamps = self.note_timestamp(&answer);
        self.expected = answer.seq.wrapping_add(1);
        self.acked = answer.ack;
        self.edge = answer.ack.wrapping_add(answer.window.into());
        Ok(())
    }

    /// Begin another connection with these numbers, without a SYN, as a SYN cookie permits.
    pub fn begin_again(&mut self, next: u32, expected: u32) -> Result<()> {
        (self.next, self.acked, self.expected) = (next, next, expected);
        (self.ended, self.reset, self.upgraded) = (false, false, false);
        self.early.clear();
        self.bytes.clear();
        self.decoder = Decoder::default();
        self.acknowledge()
    }

    /// Send a request for an upgrade and wait for its answer.
    pub fn upgrade(&mut self) -> Result<()> {
        self.push(REQUEST)?;
        self.answered()
    }

    /// Wait for the answer that switches to WebSocket.
    pub fn answered(&mut self) -> Result<()> {
        self.wait(PATIENCE, |tcp| tcp.ended || end_of_answer(&tcp.bytes).is_some())?;
        let Some(end) = end_of_answer(&self.bytes) else {
            bail!("no answer to the upgrade: {:?}", String::from_utf8_lossy(&self.bytes));
        };
        let rest = self.bytes.split_off(end);
        self.bytes.clear();
        self.upgraded = true;
        self.take(rest);
        Ok(())
    }

    /// Stop sending timestamps, as if they had not been negotiated.
    pub fn without_timestamps(&mut self) {
        self.timestamps = false;
    }

    /// Return this client's Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.sender.from()
    }

    /// Continue after a RST of the server that did not end the connection.
    pub fn survives_reset(&mut self) {
        (self.ended, self.reset) = (false, false);
    }

    /// Return the number of bytes received from the server before the upgrade.
    pub fn answer_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Take the bytes received from the server before the upgrade.
    pub fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Build a segment `offset` bytes after the next byte to send, as by an honest TCP.
    /// It can be changed before it is sent.
    pub fn segment(&self, offset: i64, payload: impl Into<Vec<u8>>) -> Packet {
        let seq = self.next.wrapping_add(offset as u32);
        let mut packet = Packet::new(self.client, self.server, seq, self.expected, payload.into());
        packet.macs = [self.sender.from(), self.sender.to()];
        packet.window = self.window;
        if self.timestamps {
            packet.tcp_options = self.timestamp(self.now());
        }
        packet
    }

    /// Return a segment as TCP would retransmit it: with the latest ACK and timestamps.
    pub fn again(&self, packet: &Packet) -> Packet {
        let fresh = self.segment(0, []);
        let (ack, tcp_options) = (fresh.ack, fresh.tcp_options);
        Packet { ack, tcp_options, ..packet.clone() }
    }

    /// Send a segment; [`RawTcp::next`] is unchanged.
    pub fn send(&self, packet: &Packet) -> Result<()> {
        self.send_frame(&self.frame(packet)?)
    }

    /// Build the Ethernet frame around a segment.
    pub fn frame(&self, packet: &Packet) -> Result<Vec<u8>> {
        Packet { macs: [self.sender.from(), self.sender.to()], ..packet.clone() }.build()
    }

    pub fn send_frame(&self, frame: &[u8]) -> Result<()> {
        self.sender.send_frame(frame)
    }

    /// Send bytes in order, in segments of at most [`SEGMENT`] bytes, and advance.
    /// It waits for acknowledgements only if there are more than a few segments.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for burst in bytes.chunks(SEGMENT * BURST) {
            for part in burst.chunks(SEGMENT) {
                self.send(&self.segment(0, part))?;
                self.advance(part.len());
            }
            if burst.len() == SEGMENT * BURST {
                self.drain()?;
            }
        }
        Ok(())
    }

    /// Advance by `bytes`.
    pub fn advance(&mut self, bytes: usize) {
        self.next = self.next.wrapping_add(bytes as u32);
    }

    /// Send an acknowledgement without data.
    /// Past the window's edge the server would ignore it: from there it has the first sequence
    /// number inside (RFC 9293, 3.10.7.4).
    pub fn acknowledge(&self) -> Result<()> {
        let back = if self.room() < 0 { self.unacknowledged() } else { 0 };
        self.send(&self.segment(-i64::from(back), []))
    }

    /// Wait for the acknowledgement of everything sent; `false` without it in 2 s.
    pub fn drain(&mut self) -> Result<bool> {
        self.wait(Duration::from_secs(2), |tcp| tcp.ended || tcp.unacknowledged() == 0)
    }

    /// Return the number of bytes sent and not acknowledged.
    /// It is negative if the server has acknowledged more.
    pub fn unacknowledged(&self) -> i32 {
        self.next.wrapping_sub(self.acked) as i32
    }

    /// Return the sequence number up to which the server has acknowledged.
    pub fn acked(&self) -> u32 {
        self.acked
    }

    /// Return the number of bytes that may still be sent in the announced windows.
    /// It is counted up to the farthest edge, without a scale, and negative past it.
    pub fn room(&self) -> i32 {
        self.edge.wrapping_sub(self.next) as i32
    }

    /// Return the number of bytes acknowledged beyond any window announced before.
    /// One byte each are those of probes that the server accepted.
    pub fn taken_beyond(&self) -> u64 {
        self.beyond
    }

    /// Return the sequence number of the server's next byte, for acknowledgements.
    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// Wait until `done`; `false` when the time is up.
    pub fn wait(
        &mut self,
        timeout: Duration,
        mut done: impl FnMut(&RawTcp) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.receive(left)? {
                return Ok(done(self));
            }
        }
        Ok(true)
    }

    /// Process what arrives until nothing has arrived for `quiet`.
    pub fn settle(&mut self, quiet: Duration) -> Result<()> {
        while self.receive(quiet)? {}
        Ok(())
    }

    /// Receive one segment; `false` if none comes in time.
    fn receive(&mut self, timeout: Duration) -> Result<bool> {
        let (client, server) = (self.client, self.server);
        let segment =
            self.capture.next(timeout, |s| s.source == server && s.destination == client)?;
        let Some(segment) = segment else { return Ok(false) };
        if segment.flags & flag::RST != 0 {
            (self.ended, self.reset) = (true, true);
            return Ok(true);
        }
        self.note_timestamp(&segment);
        if segment.flags & flag::ACK != 0 {
            self.note_acknowledgement(&segment);
        }
        let length = segment.payload.len();
        let end = segment.seq.wrapping_add(length as u32);
        if length > 0 {
            self.early.insert(segment.seq, segment.payload);
            self.put_in_order();
        }
        let fin = segment.flags & flag::FIN != 0;
        if fin && end == self.expected {
            self.expected = self.expected.wrapping_add(1);
            self.ended = true;
        }
        if self.acknowledges && (length > 0 || fin) {
            self.acknowledge()?;
        }
        Ok(true)
    }

    fn note_acknowledgement(&mut self, segment: &Captured) {
        let past = |a: u32, b: u32| u64::try_from(a.wrapping_sub(b) as i32).unwrap_or(0);
        if past(segment.ack, self.acked) > 0 {
            self.beyond += past(segment.ack, self.edge);
            self.acked = segment.ack;
        }
        let edge = segment.ack.wrapping_add(segment.window.into());
        if past(edge, self.edge) > 0 {
            self.edge = edge;
        }
    }

    fn put_in_order(&mut self) {
        let come = |seq: u32, expected: u32| expected.wrapping_sub(seq) as i32;
        while let Some(seq) = self.early.keys().copied().find(|seq| come(*seq, self.expected) >= 0)
        {
            let payload = self.early.remove(&seq).unwrap_or_default();
            let old = come(seq, self.expected) as usize;
            if let Some(new) = payload.get(old..) {
                self.expected = self.expected.wrapping_add(new.len() as u32);
                self.take(new.to_vec());
            }
        }
    }

    /// Process the server's next bytes.
    fn take(&mut self, bytes: Vec<u8>) {
        if !self.upgraded {
            self.bytes.extend(bytes);
            return;
        }
        self.decoder.push(&bytes);
        while let Some(frame) = self.decoder.next_frame() {
            match frame.opcode {
                opcode::PONG => self.pongs += 1,
                opcode::TEXT | opcode::BINARY => {
                    self.messages += 1;
                    if let Some(kept) = &mut self.kept {
                        kept.push_back(frame.payload);
                    }
                }
                _ => {}
            }
        }
    }

    /// Return this client's clock in milliseconds.
    pub fn now(&self) -> u32 {
        // Not from 0, so that older values exist.
        0x4000_0000 + self.clock.elapsed().as_millis() as u32
    }

    /// Build the timestamps option with this value, padded.
    pub fn timestamp(&self, value: u32) -> Vec<u8> {
        let mut bytes = vec![option::NOP, option::NOP, option::TIMESTAMPS, 10];
        bytes.extend(value.to_be_bytes());
        bytes.extend(self.echo.to_be_bytes());
        bytes
    }

    /// Keep the segment's timestamp; `false` if it has none.
    fn note_timestamp(&mut self, segment: &Captured) -> bool {
        let mut options = &segment.options[..];
        loop {
            options = match options {
                [option::TIMESTAMPS, 10, a, b, c, d, ..] => {
                    self.echo = u32::from_be_bytes([*a, *b, *c, *d]);
                    return true;
                }
                [option::NOP, rest @ ..] => rest,
                [] | [option::END, ..] => return false,
                [_, length, ..] => match options.get(usize::from((*length).max(2))..) {
                    Some(rest) => rest,
                    None => return false,
                },
                [_] => return false,
            };
        }
    }

    /// End the stream where the server's view of it ends; wait for the server's end.
    pub fn finish(&mut self) -> Result<()> {
        self.next = self.acked;
        let fin = self.segment(0, []).flags(flag::FIN | flag::ACK);
        self.send(&fin)?;
        self.wait(PATIENCE, |tcp| tcp.ended)?;
        // The server's socket shall not wait for this one.
        self.next = self.next.wrapping_add(1);
        self.send(&self.segment(0, []).flags(flag::RST | flag::ACK))
    }
}
