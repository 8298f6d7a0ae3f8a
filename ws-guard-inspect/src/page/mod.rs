//! Self-contained page: each connection's timeline, its segments above its frames.
//!
//! The page makes no request: its policy allows the one script by its hash, and nothing else.
//! Names and reasons come from the network, so they are data to the script, and never markup.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::SocketAddr,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    finding::{Ends, Finding, Frame, Kind, Side, What},
    packet::Segment,
    report::FlowReport,
};

const MARKUP: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Leading bytes of each frame in the page: the longest header, and some payload.
pub const SHOWN: usize = 14 + 18;
/// Maximum number of segments, frames and findings, for the browser's sake.
const MOST: usize = 600_000;

/// Both ends, in an order independent of the sender.
type Key = (SocketAddr, SocketAddr);

/// Segment with payload, in the script's format.
/// Microseconds since the first, sender (0 for the lower address), sequence number, length, packet,
/// file.
type Boxed = (u64, u8, u32, u32, u64, u32);

/// Frame, in the script's format.
/// Side, number, sequence number, header, length, first byte, packet, packet in which it ends,
/// microseconds, base64 of its leading bytes.
#[derive(Serialize)]
struct Row(u8, u64, u32, u32, u64, u8, u64, u64, u64, String);

/// Finding, in the script's format.
/// Side, kind, sequence number, offset, packet, microseconds, words, inside messages, file.
#[derive(Serialize)]
struct Note(u8, &'static str, u32, u32, u64, u64, String, bool, u32);

/// Page under construction.
#[derive(Default)]
pub struct Page {
    segments: HashMap<Key, Vec<Boxed>>,
    frames: HashMap<Key, Vec<Row>>,
    notes: HashMap<Key, Vec<Note>>,
    flows: Vec<FlowReport>,
    first_ns: Option<u64>,
    held: usize,
    left_out: u64,
}

impl Page {
    /// Check whether there is room for another entry, and take it.
    fn has_room(&mut self) -> bool {
        let has_room = self.held < MOST;
        self.held += usize::from(has_room);
        self.left_out += u64::from(!has_room);
        has_room
    }

    fn us(&self, ns: u64) -> u64 {
        ns.saturating_sub(self.first_ns.unwrap_or(ns)) / 1000
    }

    /// Add a segment of a selected connection, which may turn out to be WebSocket.
    pub fn segment(&mut self, segment: &Segment<'_>) {
        self.first_ns.get_or_insert(segment.place.time_ns);
        if segment.len == 0 || !self.has_room() {
            return;
        }
        let us = self.us(segment.place.time_ns);
        let (key, is_higher) = key(segment.source, segment.destination);
        let place = segment.place;
        let row = (us, is_higher, segment.seq, segment.len, place.packet, place.file);
        self.segments.entry(key).or_default().push(row);
    }

    /// Add a finding.
    pub fn finding(&mut self, ends: &Ends, finding: &Finding) {
        let kind = finding.what.kind();
        if kind == Kind::Unit || !self.has_room() {
            return;
        }
        let us = self.us(finding.at.time_ns);
        let (key, side) = (key(ends.client, ends.server).0, side(finding.direction));
        match &finding.what {
            What::Frame(frame) => {
                self.frames.entry(key).or_default().push(row(side, finding, frame, us));
            }
            what => {
                let at = finding.at;
                let note = Note(
                    side,
                    kind.name(),
                    at.seq,
                    at.offset,
                    at.packet,
                    us,
                    what.to_string(),
                    finding.nested,
                    at.file,
                );
                self.notes.entry(key).or_default().push(note);
            }
        }
    }

    /// Add the report of a finished connection.
    pub fn flow(&mut self, report: &FlowReport) {
        let mut report = report.clone();
        // The page has its own copies of these.
        (report.findings, report.split_points, report.violations) = Default::default();
        self.flows.push(report);
    }

    /// Return the number of segments, frames and findings left out for lack of room.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Write the page.
    pub fn write(mut self, title: &str, out: &mut impl Write) -> io::Result<()> {
        self.flows.sort_by_key(|flow| flow.first);
        let flows: Vec<Value> =
            std::mem::take(&mut self.flows).iter().map(|flow| self.connection(flow)).collect();
        let data = json!({
            "title": title,
            "first": self.first_ns.unwrap_or(0) / 1000,
            "left_out": self.left_out,
            "flows": flows,
        });
        let script_hash = BASE64_STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
        let style_hash = BASE64_STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
        for piece in MARKUP.split("@@") {
            match piece {
                "POLICY" => write!(
                    out,
                    "default-src 'none'; script-src 'sha256-{script_hash}'; \
                     style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
                )?,
                "STYLE" => out.write_all(STYLE.as_bytes())?,
                "SCRIPT" => out.write_all(SCRIPT.as_bytes())?,
                "DATA" => {
                    // No end tag and no comment can begin in it.
                    let text = serde_json::to_string(&data)?;
                    out.write_all(text.replace('<', "\\u003c").as_bytes())?;
                }
                markup => out.write_all(markup.as_bytes())?,
            }
        }
        out.flush()
    }

    /// Build the script's data of one connection.
    fn connection(&mut self, flow: &FlowReport) -> Value {
        let (key, is_higher) = key(flow.ends.client, flow.ends.server);
        let range = self.us(flow.first)..=self.us(flow.last);
        let segments = self.segments.get(&key).into_iter().flatten();
        let segments = segments.filter(|segment| range.contains(&segment.0));
        let segments = segments.map(|(us, from, seq, len, packet, file)| {
            (from ^ is_higher, us, seq, len, packet, file)
        });
        let frames = self.frames.get(&key).into_iter().flatten();
        let frames = frames.filter(|frame| range.contains(&frame.8));
        let notes = self.notes.get(&key).into_iter().flatten();
        let notes = notes.filter(|note| range.contains(&note.5));
        json!({
            "report": flow,
            "segments": segments.collect::<Vec<_>>(),
            "frames": frames.collect::<Vec<_>>(),
            "notes": notes.collect::<Vec<_>>(),
        })
    }
}

fn row(side: u8, finding: &Finding, frame: &Frame, us: u64) -> Row {
    let first = u8::from(frame.fin) << 7 | (frame.rsv & 7) << 4 | frame.opcode;
    let bytes = BASE64_STANDARD.encode(&frame.bytes);
    let at = finding.at;
    Row(
        side,
        frame.frame,
        at.seq,
        frame.header,
        frame.length,
        first,
        at.packet,
        frame.ends_in_packet,
        us,
        bytes,
    )
}

fn side(side: Side) -> u8 {
    u8::from(side == Side::Server)
}

/// Return the ends in order, and 1 if the first named is the higher one.
fn key(one: SocketAddr, other: SocketAddr) -> (Key, u8) {
    if one <= other { ((one, other), 0) } else { ((other, one), 1) }
}
