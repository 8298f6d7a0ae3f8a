//! Selected results of an inspection, and their output.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufWriter, Write},
};

use serde::Serialize;
use serde_json::json;
use ws_guard_inspect::{
    Ends, Finding, FlowReport, FrameName, Selection, Totals, Visitor, What, export::Export,
    input::Packet, packet::Segment, page::Page,
};

use super::{
    Format,
    hexdump::{Dump, render},
    tables::{Found, findings_table, flows_table, sentences},
};
use crate::cli::output::print;

/// Limits of a table or a JSON document; jsonl has none.
const MOST_FINDINGS: usize = 100_000;
const MOST_FLOWS: usize = 100_000;
/// Connections in which a frame is shown.
const MOST_DUMPS: usize = 100;

/// Part of a list to keep.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    First(usize),
    Last(usize),
}

/// Return the limit before sorting: at least `most` entries.
fn room(limit: Option<Limit>, most: usize) -> Limit {
    match limit {
        Some(Limit::First(wanted)) => Limit::First(wanted.max(most)),
        Some(Limit::Last(wanted)) => Limit::Last(wanted.max(most)),
        None => Limit::First(most),
    }
}

/// List that keeps its first or last entries, and counts the others.
struct Limited<T> {
    limit: Limit,
    entries: VecDeque<T>,
    left_out: u64,
}

impl<T> Limited<T> {
    const fn new(limit: Limit) -> Limited<T> {
        Limited { limit, entries: VecDeque::new(), left_out: 0 }
    }

    fn push(&mut self, entry: T) {
        let (Limit::First(most) | Limit::Last(most)) = self.limit;
        if self.entries.len() < most {
            return self.entries.push_back(entry);
        }
        self.left_out += 1;
        if let Limit::Last(1..) = self.limit {
            self.entries.pop_front();
            self.entries.push_back(entry);
        }
    }

    /// Sort, and truncate to the limit.
    fn sort_by_key<K: Ord>(&mut self, key: impl Fn(&T) -> K) {
        self.entries.make_contiguous().sort_by_key(key);
        let (Limit::First(most) | Limit::Last(most)) = self.limit;
        let surplus = self.entries.len().saturating_sub(most);
        self.left_out += surplus as u64;
        match self.limit {
            Limit::First(_) => self.entries.truncate(most),
            Limit::Last(_) => drop(self.entries.drain(..surplus)),
        }
    }
}

/// A line of JSON other than a finding.
#[derive(Serialize)]
struct Tagged<'a, T> {
    kind: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

/// Collector of the selected results; lines of JSON are printed at once.
pub struct Listing<'a> {
    selection: Selection,
    format: Format,
    /// Output; lines of JSON are printed as soon as they are known.
    out: BufWriter<io::StdoutLock<'a>>,
    /// Remaining lines of a `First` limit; the last lines are kept until the end.
    lines_left: Option<u64>,
    last_lines: Option<Limited<String>>,
    /// Error after which no more lines are printed.
    failed: Option<io::Error>,
    findings: Limited<Found>,
    flows: Limited<FlowReport>,
    limit: Option<Limit>,
    /// Frame whose header is to be shown.
    hexdump: Option<FrameName>,
    dumps: Vec<Dump>,
    pub export: Option<Export<File>>,
    pub page: Option<Page>,
    has_packets: bool,
}

impl Listing<'_> {
    pub fn new(
        selection: Selection,
        format: Format,
        limit: Option<Limit>,
        hexdump: Option<FrameName>,
        export: Option<Export<File>>,
        page: Option<Page>,
    ) -> Self {
        let lines_left = match limit {
            Some(Limit::First(most)) => Some(most as u64),
            _ => None,
        };
        let is_last = format == Format::Jsonl && matches!(limit, Some(Limit::Last(_)));
        let last_lines = limit.filter(|_| is_last).map(Limited::new);
        Listing {
            selection,
            format,
            out: BufWriter::new(io::stdout().lock()),
            lines_left,
            last_lines,
            failed: None,
            // Findings and connections complete in another order than the listed one: a ping
            // without an answer is known at the end only.
            findings: Limited::new(room(limit, MOST_FINDINGS)),
            flows: Limited::new(room(limit, MOST_FLOWS)),
            limit,
            hexdump,
            dumps: Vec::new(),
            export,
            page,
            has_packets: false,
        }
    }

    /// Check whether findings are listed instead of connections.
    fn lists_findings(&self) -> bool {
        !self.selection.kinds.is_empty()
    }

    fn is_lines(&self) -> bool {
        self.format == Format::Jsonl && self.hexdump.is_none()
    }

    /// Print a line of the list.
    fn entry(&mut self, value: &impl Serialize) {
        if let Some(last) = &mut self.last_lines {
            match serde_json::to_string(value) {
                Ok(line) => last.push(line),
                Err(error) => self.failed = Some(error.into()),
            }
            return;
        }
        match &mut self.lines_left {
            Some(0) => return,
            Some(left) => *left -= 1,
            None => {}
        }
        self.line(value);
    }

    fn line(&mut self, value: &impl Serialize) {
        if self.failed.is_none() {
            let written = serde_json::to_writer(&mut self.out, value).map_err(io::Error::from);
            self.failed = written.and_then(|()| self.out.write_all(b"\n")).err();
        }
    }

    /// Flush the lines so far.
    pub fn flush(&mut self) {
        if self.failed.is_none() {
            self.failed = self.out.flush().err();
        }
    }

    /// Check whether printing has failed.
    pub const fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Return the selected connections.
    pub fn flows(&self) -> &VecDeque<FlowReport> {
        &self.flows.entries
    }

    /// Sort the collected results.
    pub fn finish(&mut self) {
        self.flows.sort_by_key(|flow| flow.first);
        self.findings.limit = self.limit.unwrap_or(self.findings.limit);
        self.findings.sort_by_key(|found| {
            let at = found.finding.at;
            (at.file, at.packet, at.offset)
        });
    }

    /// Print the results.
    pub fn print(mut self, files: &[String], totals: &Totals) -> anyhow::Result<()> {
        if let Some(name) = self.hexdump {
            return print(&render(name, &self.dumps, self.format)?);
        }
        if !self.lists_findings() {
            self.flows.limit = self.limit.unwrap_or(self.flows.limit);
            self.flows.sort_by_key(|flow| flow.first);
        }
        match self.format {
            Format::Jsonl => self.print_lines(totals),
            Format::Json => print(&(self.document(files, totals)? + "\n")),
            Format::Table | Format::Wide if self.lists_findings() => {
                let Limited { entries, left_out, .. } = &self.findings;
                let table = findings_table(entries, *left_out, files);
                print(&table.render(self.format == Format::Wide))
            }
            Format::Table | Format::Wide => {
                let Limited { entries, left_out, .. } = &self.flows;
                let table = flows_table(entries, *left_out, totals, files);
                print(&(sentences(entries) + &table.render(self.format == Format::Wide)))
            }
        }
    }

    fn print_lines(mut self, totals: &Totals) -> anyhow::Result<()> {
        for line in self.last_lines.take().into_iter().flat_map(|last| last.entries) {
            writeln!(self.out, "{line}")?;
        }
        self.line(&Tagged { kind: "totals", value: totals });
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok(self.out.flush()?),
        }
    }

    fn document(&self, files: &[String], totals: &Totals) -> serde_json::Result<String> {
        let mut document = json!({ "files": files, "totals": totals });
        document["flows"] = serde_json::to_value(&self.flows.entries)?;
        if self.flows.left_out > 0 {
            document["flows_left_out"] = self.flows.left_out.into();
        }
        if self.lists_findings() {
            document["findings"] = serde_json::to_value(&self.findings.entries)?;
            document["findings_left_out"] = self.findings.left_out.into();
        }
        serde_json::to_string_pretty(&document)
    }

    fn dump(&mut self, ends: &Ends, finding: &Finding) {
        let (Some(name), What::Frame(frame)) = (self.hexdump, &finding.what) else { return };
        let is_it = (finding.direction, frame.frame) == (name.side, name.number);
        if is_it && self.selection.has_flow(ends) && self.dumps.len() < MOST_DUMPS {
            self.dumps.push(Dump { ends: *ends, at: finding.at, frame: frame.clone() });
        }
    }
}

impl Visitor for Listing<'_> {
    fn segment(&mut self, packet: &Packet<'_>, segment: &Segment<'_>) {
        if !std::mem::replace(&mut self.has_packets, true) {
            self.selection.first_ns = packet.place.time_ns;
        }
        let ends = Ends { client: segment.source, server: segment.destination };
        if self.selection.has_flow(&ends) {
            self.export.iter_mut().for_each(|export| export.packet(packet, segment));
            self.page.iter_mut().for_each(|page| page.segment(segment));
        }
    }

    fn finding(&mut self, ends: &Ends, finding: &Finding) {
        self.dump(ends, finding);
        if self.selection.has_flow(ends) {
            self.export.iter_mut().for_each(|export| export.finding(ends, finding));
            self.page.iter_mut().for_each(|page| page.finding(ends, finding));
        }
        if self.hexdump.is_some() || !self.selection.has(ends, finding) {
            return;
        }
        let found = || Found { ends: *ends, finding: finding.clone() };
        if self.is_lines() {
            self.entry(&found());
        } else if self.lists_findings() {
            self.findings.push(found());
        }
    }

    fn flow(&mut self, report: FlowReport) {
        let is_wanted = self.selection.has_flow(&report.ends)
            && self.selection.has_time(report.first, report.last);
        if !is_wanted {
            return;
        }
        self.page.iter_mut().for_each(|page| page.flow(&report));
        if self.is_lines() && !self.lists_findings() {
            self.entry(&Tagged { kind: "flow", value: &report });
        }
        // With lines of JSON, keep connections only for the export to another file.
        if !self.is_lines() || (self.export.is_some() && self.flows.entries.len() < 2) {
            self.flows.push(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_are_kept_and_the_others_counted() {
        for (limit, kept, left_out) in [
            (Limit::First(2), vec![5, 1], 2),
            (Limit::Last(3), vec![1, 4, 2], 1),
            (Limit::Last(0), vec![], 4),
            (Limit::First(9), vec![5, 1, 4, 2], 0),
        ] {
            let mut list = Limited::new(limit);
            [5, 1, 4, 2].into_iter().for_each(|entry| list.push(entry));
            assert_eq!((Vec::from(list.entries), list.left_out), (kept, left_out), "{limit:?}");
        }
        let mut list = Limited::new(Limit::First(9));
        [5, 1, 4, 2].into_iter().for_each(|entry| list.push(entry));
        list.limit = Limit::Last(2);
        list.sort_by_key(|entry| *entry);
        assert_eq!((Vec::from(list.entries), list.left_out), (vec![4, 5], 2));
    }
}
