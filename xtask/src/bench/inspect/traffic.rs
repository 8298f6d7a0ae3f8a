//! Captures generated while they are written: one connection, of any length.

use std::io::{self, Write};

/// LINKTYPE_RAW: packets begin with their IP header.
const RAW: u32 = 101;
/// Length of the headers of IPv4 and TCP.
const HEADERS: usize = 40;
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Shape of a client's traffic.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    /// Payload of a message in bytes.
    pub message: usize,
    /// Maximum payload of a segment in bytes.
    pub segment: usize,
}

/// Totals of a written capture.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub bytes: u64,
    pub packets: u64,
    pub frames: u64,
}

struct Capture<W> {
    out: W,
    written: Written,
    next: [u32; 2],
    time_us: u64,
}

impl<W: Write> Capture<W> {
    /// Write a segment of the client (0) or the server (1).
    fn packet(&mut self, from: usize, flags: u8, payload: &[u8]) -> io::Result<()> {
        let length = (HEADERS + payload.len()) as u32;
        let mut head = [0; 16 + HEADERS];
        let seconds = (1_700_000_000 + self.time_us / 1_000_000) as u32;
        let parts = [seconds, (self.time_us % 1_000_000) as u32, length, length];
        for (place, part) in head.chunks_exact_mut(4).zip(parts) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        self.time_us += 7;
        let ip = &mut head[16..];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        (ip[8], ip[9]) = (64, 6);
        let hosts = [[10, 77, 0, 1], [10, 77, 0, 2]];
        ip[12..16].copy_from_slice(&hosts[from]);
        ip[16..20].copy_from_slice(&hosts[1 - from]);
        let ports = [4711u16, 80];
        ip[20..22].copy_from_slice(&ports[from].to_be_bytes());
        ip[22..24].copy_from_slice(&ports[1 - from].to_be_bytes());
        ip[24..28].copy_from_slice(&self.next[from].to_be_bytes());
        ip[28..32].copy_from_slice(&self.next[1 - from].to_be_bytes());
        (ip[32], ip[33], ip[34], ip[35]) = (0x50, flags, 0xFF, 0xFF);
        self.out.write_all(&head)?;
        self.out.write_all(payload)?;
        let used = payload.len() as u32 + u32::from(flags & SYN != 0);
        self.next[from] = self.next[from].wrapping_add(used);
        self.written.bytes += (head.len() + payload.len()) as u64;
        self.written.packets += 1;
        Ok(())
    }
}

/// Return a masked binary frame.
fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0x82];
    match length {
        0..126 => frame.push(0x80 | length as u8),
        126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([1, 2, 3, 4]);
    frame.extend((0..length).map(|place| place as u8));
    frame
}

/// Write a pcap file of at least `bytes`: the opening, then whole messages.
/// After each the server acknowledges.
pub fn write(shape: Shape, bytes: u64, mut out: impl Write) -> io::Result<Written> {
    let mut head = Vec::new();
    head.extend(0xA1B2_C3D4u32.to_le_bytes());
    head.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    head.extend((256u32 << 10).to_le_bytes());
    head.extend(RAW.to_le_bytes());
    out.write_all(&head)?;
    let mut capture = Capture { out, written: Written::default(), next: [100, 200], time_us: 0 };
    capture.packet(0, SYN, &[])?;
    capture.packet(1, SYN | ACK, &[])?;
    capture.packet(0, ACK, REQUEST)?;
    capture.packet(1, ACK, ANSWER)?;
    let frame = frame(shape.message);
    // As many small frames as fit share a segment.
    let count = (shape.segment / frame.len()).max(1);
    let burst = frame.repeat(count);
    while capture.written.bytes < bytes {
        for segment in burst.chunks(shape.segment) {
            capture.packet(0, ACK, segment)?;
        }
        capture.written.frames += count as u64;
        capture.packet(1, ACK, &[])?;
    }
    capture.out.flush()?;
    Ok(capture.written)
}
