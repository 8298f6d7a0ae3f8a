//! Report of a connection.

use serde::Serialize;

use crate::{
    connection::Connection,
    finding::{At, Broken, Ends, Finding, Side, What, rfc3339},
    heartbeat::Spread,
    summary::{self, LooksLike},
};

/// Maximum number of entries in each list of a connection; the rest is counted.
const MOST: usize = 1_000;

/// Frame with a violation.
#[derive(Clone, Debug, Serialize)]
pub struct Violated {
    pub direction: Side,
    #[serde(flatten)]
    pub at: At,
    pub kind: Broken,
    pub rfc: &'static str,
    pub frame: u64,
}

/// Report of one side.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SideReport {
    pub messages: u64,
    pub compressed_messages: u64,
    pub payload_bytes: u64,
    pub longest_frame: u64,
    pub coalesced_segments: u64,
    pub split_headers: u64,
    pub split_frames: u64,
    pub pings_answered: u64,
    pub pings_unanswered: u64,
    /// Pings answered by a later ping's pong (RFC 6455, 5.5.3).
    pub pings_skipped: u64,
    /// Pongs that match none of the other side's pings.
    pub pongs_unasked: u64,
    /// Times from this side's pings to the other side's pongs.
    pub ping_to_pong: Option<Spread>,
    pub ping_interval: Option<Spread>,
    pub packets: u64,
    pub segments: u64,
    pub bytes: u64,
    pub retransmissions: u64,
    pub out_of_order: u64,
    pub gaps: u64,
    pub missing_bytes: u64,
    pub snapped_bytes: u64,
    pub zero_windows: u64,
    pub zero_window_us: u64,
    pub held_windows: u64,
    pub held_window_us: u64,
    pub longest_silence_us: u64,
    /// Time from the side's last data to the connection's last packet.
    pub final_silence_us: Option<u64>,
    pub close_code: Option<u16>,
    pub close_reason: Option<String>,
    pub fin: bool,
    pub rst: bool,
    /// `true` if the position of frames was known at the end.
    pub in_step: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested: Option<NestedReport>,
}

/// Units inside a side's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NestedReport {
    pub units: u64,
    /// Messages in which several units begin.
    pub coalesced_messages: u64,
    /// Units that span several messages.
    pub split_units: u64,
    pub violations: u64,
    /// Compressed messages, which were not examined.
    pub compressed_messages: u64,
}

/// Connection as reported.
#[derive(Clone, Debug, Serialize)]
pub struct FlowReport {
    #[serde(flatten)]
    pub ends: Ends,
    /// `websocket`, or the layout as the user gave it.
    pub protocol: String,
    #[serde(serialize_with = "rfc3339")]
    pub first: u64,
    #[serde(serialize_with = "rfc3339")]
    pub last: u64,
    pub frames_client: u64,
    pub frames_server: u64,
    pub pings_client: u64,
    pub pings_server: u64,
    pub pongs_client: u64,
    pub pongs_server: u64,
    pub coalesced_segments: u64,
    pub split_headers: u64,
    pub split_frames: u64,
    pub violations: Vec<Violated>,
    pub violations_total: u64,
    pub split_points: Vec<Finding>,
    pub split_points_total: u64,
    /// Other findings, except frames, answered pings, and repeated or late segments.
    pub findings: Vec<Finding>,
    pub findings_total: u64,
    /// `true` if the beginning, before the first frame here, was not captured.
    pub midstream: bool,
    /// `true` if the 101 was captured, but not the request.
    pub request_unseen: bool,
    /// Negotiation of permessage-deflate; null where the 101 was not captured.
    pub deflate: Option<bool>,
    pub closed_by: Option<Side>,
    pub of_client: SideReport,
    pub of_server: SideReport,
    pub looks_like: LooksLike,
    pub summary: String,
}

impl FlowReport {
    /// Return the number of answered pings of both sides, by their own or a later pong.
    pub fn pings_answered(&self) -> u64 {
        [&self.of_client, &self.of_server]
            .iter()
            .map(|side| side.pings_answered + side.pings_skipped)
            .sum()
    }
}

/// List of bounded length, and its unbounded length.
#[derive(Debug)]
struct Bounded<T> {
    first: Vec<T>,
    total: u64,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Bounded { first: Vec::new(), total: 0 }
    }
}

impl<T> Bounded<T> {
    fn push(&mut self, make: impl FnOnce() -> T) {
        self.total += 1;
        if self.first.len() < MOST {
            self.first.push(make());
        }
    }
}

/// Findings of a connection so far.
#[derive(Debug, Default)]
pub struct Lists {
    violations: Bounded<Violated>,
    split_points: Bounded<Finding>,
    findings: Bounded<Finding>,
}

impl Lists {
    pub fn add(&mut self, finding: &Finding) {
        let Finding { direction, nested, at, what } = finding;
        match what {
            What::Unit { .. } => {}
            _ if *nested => self.findings.push(|| finding.clone()),
            What::Violation { violation, frame, rfc } => self.violations.push(|| Violated {
                direction: *direction,
                at: *at,
                kind: *violation,
                rfc,
                frame: *frame,
            }),
            What::SplitPoint { .. } => self.split_points.push(|| finding.clone()),
            What::Frame(_)
            | What::Message(_)
            | What::Retransmission { .. }
            | What::OutOfOrder { .. }
            | What::Ping { answered_in_packet: Some(_), .. } => {}
            _ => self.findings.push(|| finding.clone()),
        }
    }

    /// Build the report of a connection at its end.
    pub fn report(self, connection: &Connection) -> FlowReport {
        let lane = |side: Side| &connection.lanes[side as usize].counts;
        let (client, server) = (lane(Side::Client), lane(Side::Server));
        let mut report = FlowReport {
            ends: connection.ends(),
            protocol: connection.protocol().into(),
            first: connection.first_ns,
            last: connection.latest_ns,
            frames_client: client.frames,
            frames_server: server.frames,
            pings_client: client.pings,
            pings_server: server.pings,
            pongs_client: client.pongs,
            pongs_server: server.pongs,
            coalesced_segments: client.coalesced_segments + server.coalesced_segments,
            split_headers: client.split_headers + server.split_headers,
            split_frames: client.split_frames + server.split_frames,
            violations: self.violations.first,
            violations_total: self.violations.total,
            split_points: self.split_points.first,
            split_points_total: self.split_points.total,
            findings: self.findings.first,
            findings_total: self.findings.total,
            midstream: connection.picked_up || connection.request_unseen,
            request_unseen: connection.request_unseen,
            deflate: connection.deflate,
            closed_by: connection.closed_by,
            of_client: side(connection, Side::Client),
            of_server: side(connection, Side::Server),
            looks_like: LooksLike::Nothing,
            summary: String::new(),
        };
        (report.looks_like, report.summary) = summary::of(connection, &report);
        report
    }
}

fn side(connection: &Connection, side: Side) -> SideReport {
    let (direction, lane) = (connection.direction(side), &connection.lanes[side as usize]);
    let (wire, heartbeat, counts) = (&direction.wire, &direction.heartbeat, &lane.counts);
    let (close_code, close_reason) = direction
        .close
        .clone()
        .map_or((None, None), |close| (close.0, Some(close.1).filter(|reason| !reason.is_empty())));
    let pongs_unasked = connection.direction(side.other()).heartbeat.unasked;
    let silence = |latest: u64| connection.latest_ns.saturating_sub(latest) / 1000;
    SideReport {
        messages: counts.messages,
        compressed_messages: counts.compressed,
        payload_bytes: counts.payload,
        longest_frame: counts.longest,
        coalesced_segments: counts.coalesced_segments,
        split_headers: counts.split_headers,
        split_frames: counts.split_frames,
        pings_answered: heartbeat.answered,
        pings_unanswered: heartbeat.unanswered(),
        pings_skipped: heartbeat.skipped,
        pongs_unasked,
        ping_to_pong: heartbeat.answers.spread(),
        ping_interval: heartbeat.intervals.spread(),
        packets: wire.packets,
        segments: wire.segments,
        bytes: wire.bytes,
        retransmissions: wire.retransmissions,
        out_of_order: wire.out_of_order,
        gaps: wire.gaps,
        missing_bytes: wire.missing_bytes,
        snapped_bytes: wire.snapped_bytes,
        zero_windows: wire.zero_windows,
        zero_window_us: wire.zero_window_ns / 1000,
        held_windows: wire.held.count,
        held_window_us: wire.held.held_ns / 1000,
        longest_silence_us: wire.longest_silence_ns / 1000,
        final_silence_us: wire.latest_data_ns.map(silence),
        close_code,
        close_reason,
        fin: wire.has_fin,
        rst: wire.has_rst,
        in_step: lane.is_in_step(),
        nested: lane.nested.as_ref().map(|nested| NestedReport {
            units: nested.counts.frames,
            coalesced_messages: nested.counts.coalesced_segments,
            split_units: nested.counts.split_frames,
            violations: nested.counts.violations,
            compressed_messages: nested.compressed,
        }),
    }
}
