//! What a connection looks like, in one sentence, never stronger than the evidence.
//!
//! Three things kill WebSocket services: readers that take a segment for a frame, heartbeats that
//! nobody misses, and servers that pause. Each leaves marks on the wire; this names them.

use serde::Serialize;

use crate::{
    connection::Connection,
    finding::Side,
    heartbeat::Heartbeat,
    report::{FlowReport, Violated},
};

/// Shorter than this is no silence and no pause, in nanoseconds.
const SILENCE_NS: u64 = 1_000_000_000;
const PAUSE_NS: u64 = 200_000_000;
/// A pause is so many times the median.
const UNUSUAL: u64 = 5;
/// Answers without which nothing can be said to be usual.
const ENOUGH: u64 = 3;

/// Which of the three it looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LooksLike {
    /// Frames and segments do not match, or frames violate the protocol.
    Framing,
    /// One side does not answer pings any more, and sends nothing.
    Heartbeat,
    /// A pong came much later than the others.
    Pause,
    #[default]
    Nothing,
}

impl LooksLike {
    pub const fn name(self) -> &'static str {
        match self {
            LooksLike::Framing => "framing",
            LooksLike::Heartbeat => "heartbeat",
            LooksLike::Pause => "pause",
            LooksLike::Nothing => "nothing",
        }
    }
}

/// Say it.
pub fn of(connection: &Connection, report: &FlowReport) -> (LooksLike, String) {
    for pinging in [Side::Server, Side::Client] {
        if let Some(said) = silent(connection, pinging) {
            return (LooksLike::Heartbeat, said);
        }
    }
    for pinging in [Side::Client, Side::Server] {
        if let Some(said) = pause(&connection.direction(pinging).heartbeat, pinging) {
            return (LooksLike::Pause, said);
        }
    }
    if let Some(first) = report.violations.first() {
        return (LooksLike::Framing, violation(report, first));
    }
    match framing(report) {
        Some(said) => (LooksLike::Framing, said),
        None => (LooksLike::Nothing, nothing(report)),
    }
}

/// The other side answers no pings, and sends nothing.
fn silent(connection: &Connection, pinging: Side) -> Option<String> {
    let (pinger, silent) = (connection.direction(pinging), connection.direction(pinging.other()));
    let heartbeat = &pinger.heartbeat;
    let first = heartbeat.outstanding.front()?;
    let waited = connection.latest_ns.saturating_sub(first.ended.time_ns);
    let usual = heartbeat.answers.longest_ns.saturating_mul(UNUSUAL);
    let has_spoken = silent.wire.latest_data_ns.is_some_and(|time| time > first.ended.time_ns);
    if waited < SILENCE_NS.max(usual) || has_spoken || silent.wire.has_rst {
        return None;
    }
    let acknowledged = pinger.acknowledged(first.at.seq);
    let (who, pinging) = (pinging.other().name(), pinging.name());
    let count = heartbeat.outstanding.len();
    let pings = if count == 1 { "the ping".into() } else { format!("any of {count} pings") };
    let why = if acknowledged {
        format!("its TCP acknowledged the first, so the {who}'s host was up and its program silent")
    } else {
        format!("nothing acknowledged the first, so the {who}'s host or the path to it was gone")
    };
    let (packet, waited) = (first.at.packet, seconds(waited));
    Some(format!(
        "the {who} has not answered {pings} of the {pinging} since packet {packet} and sent no data \
         in {waited}; {why}"
    ))
}

/// One pong came much later than usual.
fn pause(heartbeat: &Heartbeat, pinging: Side) -> Option<String> {
    let (longest, median) = (heartbeat.answers.longest_ns, heartbeat.answers.median_ns()?);
    let unusual = longest >= PAUSE_NS && longest >= median.saturating_mul(UNUSUAL);
    if heartbeat.answers.count < ENOUGH || !unusual {
        return None;
    }
    let (at, ended) = heartbeat.slowest?;
    let who = pinging.other().name();
    Some(format!(
        "the {who} answered the ping of packet {} after {} (packet {}), where the median of {} is \
         {}; the {who}, or the path to it, paused",
        at.packet,
        seconds(longest),
        ended.packet,
        heartbeat.answers.count,
        seconds(median),
    ))
}

fn violation(report: &FlowReport, first: &Violated) -> String {
    format!(
        "the {} violates {} ({}) in packet {} at offset {}; {} in all",
        first.direction.name(),
        first.rfc,
        first.kind.name(),
        first.at.packet,
        first.at.offset,
        report.violations_total,
    )
}

/// Segments and frames do not match, which is legal and breaks readers that think otherwise.
fn framing(report: &FlowReport) -> Option<String> {
    let (joined, split) = (report.coalesced_segments, report.split_frames);
    if joined + split == 0 {
        return None;
    }
    let first = report.split_points.iter().chain(&report.findings).map(|finding| finding.at.packet);
    let first = first.min().map_or(String::new(), |packet| format!(", first in packet {packet}"));
    Some(format!(
        "segments do not match frames ({joined} hold several, {split} frames and {} headers are cut \
         by borders{first}): legal in TCP, and what breaks a reader that takes each read for a frame",
        report.split_headers,
    ))
}

fn nothing(report: &FlowReport) -> String {
    let frames = report.frames_client + report.frames_server;
    let (pings, answered) = (report.pings_client + report.pings_server, report.pings_answered());
    format!(
        "no sign of any of the three in {frames} frames: each segment holds whole frames, {answered} \
         of {pings} pings were answered"
    )
}

/// A duration in a unit that shows it.
pub fn seconds(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}
