//! One-sentence summary of a connection, never stronger than the evidence.
//!
//! Three things kill WebSocket services: readers that take a segment for a frame, failed heartbeats
//! that go unnoticed, and servers that pause. Each leaves marks on the wire; this names them.

use serde::Serialize;

use crate::{
    connection::Connection,
    finding::{Finding, Side, What, packet},
    heartbeat::Heartbeat,
    report::{FlowReport, Violated},
};

/// Minimum duration of a silence or a pause, in nanoseconds.
const SILENCE_NS: u64 = 1_000_000_000;
const PAUSE_NS: u64 = 200_000_000;
/// Ratio of a pause to the median.
const UNUSUAL: u64 = 5;
/// Minimum number of answers for a typical value.
const ENOUGH: u64 = 3;

/// Apparent problem, one of the three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LooksLike {
    /// Mismatch of frames and segments, or frames that violate the protocol.
    Framing,
    /// Side that no longer answers pings, and sends nothing.
    Heartbeat,
    /// Pong much later than the others.
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

/// Summarise a connection, with the facts needed to act on it.
pub fn of(connection: &Connection, report: &FlowReport) -> (LooksLike, String) {
    let (looks_like, mut said) = killer(connection, report);
    for (side, of_side) in [(Side::Server, &report.of_server), (Side::Client, &report.of_client)] {
        let (name, other) = (side.name(), side.other().name());
        if of_side.packets == 0 {
            said +=
                &format!("; the capture has no packet of the {name}, so what it sent is not known");
        } else if !of_side.in_step {
            said += &format!("; where the {name}'s frames begin was not known at the end");
        }
        if of_side.held_windows > 0 {
            let held = seconds(of_side.held_window_us * 1000);
            said += &format!(
                "; the {name}'s receive window was held for {held}, as where a guard paces the {other}"
            );
        } else if of_side.zero_window_us * 1000 >= PAUSE_NS {
            let closed = seconds(of_side.zero_window_us * 1000);
            said += &format!(
                "; the {name}'s receive window was closed for {closed}, as where its program reads too slowly"
            );
        }
        let unfinished = connection.lanes[side as usize].unfinished();
        if let Some((at, What::Unfinished { frame, length, missing })) = unfinished {
            let packet = packet(at.file, at.packet);
            said += &format!(
                "; the {name}'s frame {frame} ({packet}) lacked {missing} of its {length} bytes at the end"
            );
        }
    }
    (looks_like, said)
}

fn killer(connection: &Connection, report: &FlowReport) -> (LooksLike, String) {
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

/// Describe a side that answers no pings, and sends nothing.
fn silent(connection: &Connection, pinging: Side) -> Option<String> {
    let (pinger, silent) = (connection.direction(pinging), connection.direction(pinging.other()));
    let heartbeat = &pinger.heartbeat;
    let first = heartbeat.outstanding.front()?;
    let waited = connection.latest_ns.saturating_sub(first.ended.time_ns);
    let usual = heartbeat.answers.longest_ns.saturating_mul(UNUSUAL);
    let has_spoken = silent.wire.latest_data_ns.is_some_and(|time| time > first.ended.time_ns);
    // Nothing is known of a side that the capture lacks.
    let is_captured = silent.wire.packets > 0;
    if waited < SILENCE_NS.max(usual) || has_spoken || silent.wire.has_rst || !is_captured {
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
    let (packet, waited) = (packet(first.at.file, first.at.packet), seconds(waited));
    Some(format!(
        "the {who} has not answered {pings} of the {pinging} since {packet} and sent no data \
         in {waited}; {why}"
    ))
}

/// Describe a pong much later than usual.
fn pause(heartbeat: &Heartbeat, pinging: Side) -> Option<String> {
    let (longest, median) = (heartbeat.answers.longest_ns, heartbeat.answers.median_ns()?);
    let unusual = longest >= PAUSE_NS && longest >= median.saturating_mul(UNUSUAL);
    if heartbeat.answers.count < ENOUGH || !unusual {
        return None;
    }
    let (at, ended) = heartbeat.slowest?;
    let who = pinging.other().name();
    Some(format!(
        "the {who} answered the ping of {} after {} ({}), where the median of {} is {}; the {who}, or \
         the path to it, paused",
        packet(at.file, at.packet),
        seconds(longest),
        packet(ended.file, ended.packet),
        heartbeat.answers.count,
        seconds(median),
    ))
}

fn violation(report: &FlowReport, first: &Violated) -> String {
    format!(
        "the {} violates {} ({}) in {} at offset {}; {} in all",
        first.direction.name(),
        first.rfc,
        first.kind.name(),
        packet(first.at.file, first.at.packet),
        first.at.offset,
        report.violations_total,
    )
}

/// Describe a mismatch of segments and frames, legal but fatal for naive readers.
fn framing(report: &FlowReport) -> Option<String> {
    let (joined, split) = (report.coalesced_segments, report.split_frames);
    if joined + split == 0 {
        return None;
    }
    let is_boundary = |finding: &&Finding| {
        let is_split = matches!(finding.what, What::SplitHeader { .. } | What::SplitFrame { .. });
        is_split && !finding.nested
    };
    let boundaries = report.findings.iter().filter(is_boundary);
    let first =
        report.split_points.iter().chain(boundaries).map(|found| (found.at.file, found.at.packet));
    let first =
        first.min().map_or(String::new(), |at| format!(", first in {}", packet(at.0, at.1)));
    Some(format!(
        "segments do not match frames ({joined} hold several, {split} frames and {} headers are cut \
         at boundaries{first}): legal in TCP, and what breaks a reader that takes each read for a frame",
        report.split_headers,
    ))
}

fn nothing(report: &FlowReport) -> String {
    let frames = report.frames_client + report.frames_server;
    let (pings, answered) = (report.pings_client + report.pings_server, report.pings_answered());
    let pings = match pings {
        0 => "nothing was pinged".into(),
        _ => format!("{answered} of {pings} pings were answered"),
    };
    match frames {
        0 => "no frame was captured, and so no sign of any of the three".into(),
        _ => format!(
            "no sign of any of the three in {frames} frames: each segment holds whole frames, {pings}"
        ),
    }
}

/// Format a duration in a suitable unit.
pub fn seconds(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}
