//! Captures: arbitrary bytes as a file, and arbitrary segments of a connection.
//! No panic, bounded lists, no frame that begins too early. The first byte selects which of the
//! two.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use ws_guard_inspect::{
    FlowReport, Inspector, Visitor,
    finding::Place,
    input::{Capture, Packet},
};

/// LINKTYPE_RAW.
const RAW: i32 = 101;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n";

struct Checked;

impl Visitor for Checked {
    fn flow(&mut self, report: FlowReport) {
        assert!(report.violations.len() <= 1000 && report.split_points.len() <= 1000);
        assert!(report.coalesced_segments * 2 <= report.frames_client + report.frames_server);
        assert!(report.split_frames <= report.frames_client + report.frames_server);
    }
}

fn file(bytes: &[u8]) {
    let mut inspector = Inspector::new(Checked);
    if let Ok(mut capture) = Capture::new(Cursor::new(bytes.to_vec()), 1) {
        while let Ok(Some(packet)) = capture.packet() {
            inspector.packet(&packet);
        }
    }
    inspector.end();
}

/// Build an IPv4 packet with a TCP segment whose last `cut` bytes are missing.
fn packet(from_client: bool, seq: u32, ack: u32, flags: u8, payload: &[u8], cut: usize) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 9, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    bytes[2..4].copy_from_slice(&(40 + payload.len() as u16).to_be_bytes());
    let (source, destination) = if from_client { (4711u16, 80u16) } else { (80, 4711) };
    if !from_client {
        bytes[12..20].rotate_left(4);
    }
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.extend(ack.to_be_bytes());
    bytes.extend([0x50, flags, 1, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes.truncate(bytes.len() - cut.min(payload.len()));
    bytes
}

/// Read segments: side, flags and cut, sequence number, acknowledgement, length.
fn segments(mut bytes: &[u8]) {
    let mut inspector = Inspector::new(Checked);
    let mut number = 0;
    let mut put = |packet: &[u8]| {
        number += 1;
        let place = Place { file: 1, packet: number, time_ns: number * 1_000_000 };
        inspector.packet(&Packet { place, link: RAW, data: packet, original: packet.len() as u32 });
    };
    let (client, server) = (REQUEST.len() as u32, ANSWER.len() as u32);
    put(&packet(true, u32::MAX, 0, 2, b"", 0));
    put(&packet(true, 0, 0, 16, REQUEST, 0));
    put(&packet(false, 0, client, 16, ANSWER, 0));
    while let Some(([kind, place, ack, length], rest)) = bytes.split_first_chunk() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        bytes = rest;
        let from_client = kind & 1 == 0;
        let (seq, ack) = (u32::from(*place), u32::from(*ack));
        let (seq, ack) =
            if from_client { (client + seq, server + ack) } else { (server + seq, client + ack) };
        let flags = if kind & 0x80 != 0 { 16 | kind & 7 } else { 16 };
        put(&packet(from_client, seq, ack, flags, payload, usize::from(kind >> 3 & 15)));
    }
    inspector.end();
}

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0, bytes)) => file(bytes),
        Some((_, bytes)) => segments(bytes),
        None => {}
    }
});
