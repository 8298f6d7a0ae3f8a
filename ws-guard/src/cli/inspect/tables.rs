//! Connections and findings as tables.

use std::collections::VecDeque;

use serde::Serialize;
use ws_guard_inspect::{Ends, Finding, FlowReport, Totals, finding};

use crate::cli::output::{Column, Table, plural, printable};

/// A finding and its connection.
#[derive(Serialize)]
pub struct Found {
    #[serde(flatten)]
    pub ends: Ends,
    #[serde(flatten)]
    pub finding: Finding,
}

/// Describe each connection in a sentence.
pub fn sentences(flows: &VecDeque<FlowReport>) -> String {
    let sentence = |flow: &FlowReport| {
        let (client, server) = (flow.ends.client, flow.ends.server);
        format!("{client} → {server}: {}\n", printable(&flow.summary))
    };
    let mut text: String = flows.iter().map(sentence).collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

pub fn flows_table(
    flows: &VecDeque<FlowReport>,
    left_out: u64,
    totals: &Totals,
    files: &[String],
) -> Table {
    let mut count = format!(
        "{}, {}, {}",
        match flows.iter().all(|flow| flow.protocol == "websocket") {
            true => plural(flows.len(), "WebSocket connection", "WebSocket connections"),
            false => plural(flows.len(), "connection", "connections"),
        },
        plural(totals.other_connections as usize, "other", "others"),
        plural(totals.packets as usize, "packet", "packets"),
    );
    for (number, what) in [
        (left_out, "connections left out"),
        (totals.snapped, "cut off by the capture"),
        (totals.fragments, "IP fragments not put together"),
        (totals.unreadable, "unreadable"),
        (totals.unknown_link, "of a link type that is not read"),
        (totals.too_fast, "too fast to be read"),
        (totals.evicted, "connections dropped to make room"),
    ] {
        if number > 0 {
            count += &format!(", {number} {what}");
        }
    }
    count += &numbered(files);
    Table {
        columns: vec![
            Column::text("CLIENT"),
            Column::text("SERVER"),
            Column::number("FRAMES"),
            Column::number("PINGS"),
            Column::number("ANSWERED"),
            Column::number("SLOWEST"),
            Column::number("COALESCED"),
            Column::number("SPLIT-HEADERS"),
            Column::number("SPLIT-FRAMES"),
            Column::number("VIOLATIONS"),
            Column::text("CLOSED-BY"),
            Column::text("LOOKS-LIKE"),
            Column::text("PROTOCOL").wide(),
            Column::number("MESSAGES").wide(),
            Column::number("COMPRESSED").wide(),
            Column::number("BYTES").wide(),
            Column::number("LONGEST").wide(),
            Column::number("AGAIN").wide(),
            Column::number("LATE").wide(),
            Column::number("MISSING").wide(),
            Column::number("ZERO-WINDOWS").wide(),
            Column::number("HELD-WINDOWS").wide(),
            Column::text("CODE").wide(),
            Column::text("MIDSTREAM").wide(),
            Column::text("FIRST").wide(),
        ],
        rows: flows.iter().map(row).collect(),
        count,
    }
}

fn row(flow: &FlowReport) -> Vec<String> {
    let (client, server) = (&flow.of_client, &flow.of_server);
    let both = |client: u64, server: u64| format!("{client}/{server}");
    let slowest = [client.ping_to_pong, server.ping_to_pong].into_iter().flatten();
    let slowest = slowest.map(|spread| spread.max_us).max();
    let code = [client.close_code, server.close_code].into_iter().flatten().next();
    vec![
        flow.ends.client.to_string(),
        flow.ends.server.to_string(),
        both(flow.frames_client, flow.frames_server),
        both(flow.pings_client, flow.pings_server),
        flow.pings_answered().to_string(),
        slowest.map_or("-".into(), |us| format!("{:.1}ms", us as f64 / 1000.0)),
        flow.coalesced_segments.to_string(),
        flow.split_headers.to_string(),
        flow.split_frames.to_string(),
        flow.violations_total.to_string(),
        flow.closed_by.map_or("-", |side| side.name()).into(),
        flow.looks_like.name().into(),
        flow.protocol.clone(),
        both(client.messages, server.messages),
        both(client.compressed_messages, server.compressed_messages),
        both(client.bytes, server.bytes),
        both(client.longest_frame, server.longest_frame),
        both(client.retransmissions, server.retransmissions),
        both(client.out_of_order, server.out_of_order),
        both(client.missing_bytes, server.missing_bytes),
        both(client.zero_windows, server.zero_windows),
        both(client.held_windows, server.held_windows),
        code.map_or("-".into(), |code| code.to_string()),
        if flow.midstream { "yes" } else { "-" }.into(),
        finding::time(flow.first),
    ]
}

/// Number the files, if there are several: packets are counted per file.
fn numbered(files: &[String]) -> String {
    let is_one = files.len() < 2;
    let line =
        |(number, name): (usize, &String)| format!("\nfile {}: {}", number + 1, printable(name));
    files.iter().enumerate().filter(|_| !is_one).map(line).collect()
}

pub fn findings_table(findings: &VecDeque<Found>, left_out: u64, files: &[String]) -> Table {
    let mut count = plural(findings.len(), "finding", "findings");
    if left_out > 0 {
        count += &format!(" of {}", findings.len() as u64 + left_out);
    }
    count += &numbered(files);
    let file = Column::number("FILE");
    let row = |found: &Found| {
        let Finding { direction, nested, at, what } = &found.finding;
        let inside = if *nested { "inside messages: " } else { "" };
        vec![
            at.file.to_string(),
            at.packet.to_string(),
            finding::time(at.time_ns),
            found.ends.client.to_string(),
            found.ends.server.to_string(),
            direction.name().into(),
            at.seq.to_string(),
            at.offset.to_string(),
            what.kind().name().into(),
            format!("{inside}{what}"),
        ]
    };
    Table {
        columns: vec![
            if files.len() > 1 { file } else { file.wide() },
            Column::number("PACKET"),
            Column::text("TIME"),
            Column::text("CLIENT"),
            Column::text("SERVER").wide(),
            Column::text("FROM"),
            Column::number("SEQ"),
            Column::number("OFFSET"),
            Column::text("KIND"),
            Column::text("WHAT"),
        ],
        rows: findings.iter().map(row).collect(),
        count,
    }
}
