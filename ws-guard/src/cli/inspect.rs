//! `ws-guard inspect`.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;
use ws_guard_inspect::{
    Captures, End, Ends, Finding, FlowReport, Inspector, Kind, Selection, Totals, Visitor, finding,
    input::Progress, protocol::OnPort,
};

use super::output::{Column, Table, plural, print, printable};

/// Findings in a table or in one JSON document; jsonl has no limit.
const MOST_FINDINGS: usize = 100_000;
/// Reading that takes longer than this shows how far it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Form of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// What fits a terminal
    #[default]
    Table,
    /// All columns
    Wide,
    /// One document
    Json,
    /// A line for each finding as soon as it is found, each connection at its end, and the totals
    Jsonl,
}

/// Read packet captures: where frames join and split, heartbeats, violations
#[derive(Args, Debug)]
pub struct Inspect {
    /// pcap or pcapng, plain, gzip or zstd; `-` is standard input. Several are read in the order of
    /// their first packets
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Form of the report
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Only connections with this end: ADDRESS or ADDRESS:PORT; twice for both ends
    #[arg(long, value_name = "END")]
    flow: Vec<End>,
    /// Take PORT for a length-delimited protocol: length-magic, fixed-header, length-prefix, or fields
    /// of its own as in `9000=header:8,offset:0,width:4,order:big,counts:body,magic:cafebabe,magic-at:4,
    /// max:65536` (order: big, little; counts: body, all, rest; header is needed, the others have
    /// defaults: 0, 4, big, body, none, 0, 64 MiB)
    #[arg(long, value_name = "PORT=LAYOUT")]
    protocol: Vec<OnPort>,
    /// Look for such a protocol inside of the WebSocket messages of PORT
    #[arg(long, value_name = "PORT=LAYOUT")]
    nested: Vec<OnPort>,
    /// List findings of these kinds instead of connections: frame, unit, split_point, split_header,
    /// split_frame, violation, ping, unasked_pong, close, retransmission, out_of_order, gap, snapped,
    /// zero_window, unsynced, picked_up
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<Kind>,
}

impl Inspect {
    /// What could be read is reported also where the capture is damaged further on.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut captures = Captures::open(&self.files)?;
        let mut bar = Bar::new(captures.progress());
        let lists_findings = !self.kind.is_empty();
        let listing = Listing {
            selection: Selection { ends: self.flow, kinds: self.kind },
            lines: (self.output == Format::Jsonl).then(|| BufWriter::new(io::stdout().lock())),
            failed: None,
            findings: Vec::new(),
            left_out: 0,
            flows: Vec::new(),
        };
        let mut inspector = Inspector::new(listing);
        self.protocol.into_iter().for_each(|known| inspector.know(known));
        self.nested.into_iter().for_each(|known| inspector.know_nested(known));
        let (listing, totals, error) =
            ws_guard_inspect::inspect(&mut captures, inspector, || bar.tick());
        bar.clear();
        listing.end(self.output, lists_findings, captures.names(), &totals)?;
        error.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
    }
}

/// A finding and whose it is.
#[derive(Serialize)]
struct Found {
    #[serde(flatten)]
    ends: Ends,
    #[serde(flatten)]
    finding: Finding,
}

/// Collects what is wanted, or prints it at once.
struct Listing<'a> {
    selection: Selection,
    /// Standard output, for lines of JSON.
    lines: Option<BufWriter<io::StdoutLock<'a>>>,
    /// Why no more lines are printed.
    failed: Option<io::Error>,
    findings: Vec<Found>,
    left_out: u64,
    flows: Vec<FlowReport>,
}

impl Visitor for Listing<'_> {
    fn finding(&mut self, ends: &Ends, finding: &Finding) {
        if !self.selection.has(ends, finding) {
            return;
        }
        if self.lines.is_some() {
            self.line(&Found { ends: *ends, finding: finding.clone() });
        } else if self.selection.kinds.is_empty() {
            // The connection's report has it.
        } else if self.findings.len() < MOST_FINDINGS {
            self.findings.push(Found { ends: *ends, finding: finding.clone() });
        } else {
            self.left_out += 1;
        }
    }

    fn flow(&mut self, report: FlowReport) {
        if !self.selection.has_flow(&report.ends) {
            return;
        }
        if self.lines.is_none() {
            self.flows.push(report);
        } else if self.selection.kinds.is_empty() {
            self.line(&Tagged { kind: "flow", value: &report });
        }
    }
}

/// A line that is no finding.
#[derive(Serialize)]
struct Tagged<'a, T> {
    kind: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

impl Listing<'_> {
    fn line(&mut self, value: &impl Serialize) {
        let (Some(out), None) = (&mut self.lines, &self.failed) else { return };
        let written = serde_json::to_writer(&mut *out, value).map_err(io::Error::from);
        self.failed = written.and_then(|()| out.write_all(b"\n")).err();
    }

    fn end(
        mut self,
        format: Format,
        findings: bool,
        files: &[String],
        totals: &Totals,
    ) -> anyhow::Result<()> {
        self.flows.sort_by_key(|flow| flow.first);
        match format {
            Format::Jsonl => {
                self.line(&Tagged { kind: "totals", value: totals });
                if let Some(error) = self.failed {
                    return Err(error.into());
                }
                Ok(self.lines.map_or(Ok(()), |mut out| out.flush())?)
            }
            Format::Json => {
                let mut document = json!({ "files": files, "totals": totals });
                document["flows"] = serde_json::to_value(&self.flows)?;
                if findings {
                    document["findings"] = serde_json::to_value(&self.findings)?;
                    document["findings_left_out"] = self.left_out.into();
                }
                print(&(serde_json::to_string_pretty(&document)? + "\n"))
            }
            Format::Table | Format::Wide if findings => {
                print(&findings_table(&self.findings, self.left_out).render(format == Format::Wide))
            }
            Format::Table | Format::Wide => {
                let table = flows_table(&self.flows, totals).render(format == Format::Wide);
                print(&(sentences(&self.flows) + &table))
            }
        }
    }
}

/// What each connection looks like.
fn sentences(flows: &[FlowReport]) -> String {
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

fn flows_table(flows: &[FlowReport], totals: &Totals) -> Table {
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
        (totals.snapped, "cut off by the capture"),
        (totals.fragments, "IP fragments not put together"),
        (totals.unreadable, "unreadable"),
        (totals.unknown_link, "of a link type that is not read"),
        (totals.evicted, "connections dropped to make room"),
    ] {
        if number > 0 {
            count += &format!(", {number} {what}");
        }
    }
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
        code.map_or("-".into(), |code| code.to_string()),
        if flow.midstream { "yes" } else { "-" }.into(),
        finding::time(flow.first),
    ]
}

fn findings_table(findings: &[Found], left_out: u64) -> Table {
    let mut count = plural(findings.len(), "finding", "findings");
    if left_out > 0 {
        count += &format!(", {left_out} more are left out: -o jsonl has all");
    }
    let row = |found: &Found| {
        let Finding { direction, nested, at, what } = &found.finding;
        let inside = if *nested { "inside messages: " } else { "" };
        vec![
            at.packet.to_string(),
            finding::time(at.time_ns),
            found.ends.client.to_string(),
            found.ends.server.to_string(),
            direction.name().into(),
            at.seq.to_string(),
            at.offset.to_string(),
            what.kind().name().into(),
            format!("{inside}{what}"),
            at.file.to_string(),
        ]
    };
    Table {
        columns: vec![
            Column::number("PACKET"),
            Column::text("TIME"),
            Column::text("CLIENT"),
            Column::text("SERVER").wide(),
            Column::text("FROM"),
            Column::number("SEQ"),
            Column::number("OFFSET"),
            Column::text("KIND"),
            Column::text("WHAT"),
            Column::number("FILE").wide(),
        ],
        rows: findings.iter().map(row).collect(),
        count,
    }
}

/// How far it is, on a terminal, once that takes long.
struct Bar {
    progress: Progress,
    start: Instant,
    shown: Option<Instant>,
}

impl Bar {
    fn new(progress: Progress) -> Bar {
        Bar { progress, start: Instant::now(), shown: None }
    }

    fn tick(&mut self) {
        let is_due = self.shown.unwrap_or(self.start).elapsed() >= PATIENCE;
        if !is_due || !io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(Instant::now());
        let read = self.progress.read();
        let part = self.progress.total.filter(|total| *total > 0);
        let part = part.map_or(String::new(), |total| format!(", {} %", read * 100 / total));
        // Standard error may be closed.
        let _ = write!(io::stderr(), "\r  {} MB read{part}\x1b[K", read / 1_000_000);
    }

    fn clear(&mut self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_kind() {
        use clap::CommandFactory;
        let mut command = crate::cli::Cli::command();
        let inspect = command.find_subcommand_mut("inspect").unwrap();
        let help = inspect.render_long_help().to_string();
        for kind in Kind::ALL {
            assert!(help.contains(kind.name()), "{}", kind.name());
        }
    }
}
