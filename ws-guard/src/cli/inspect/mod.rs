//! `ws-guard inspect`.

mod demo;
mod hexdump;
mod layouts;
mod listing;
mod live;
mod progress;
mod tables;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use ws_guard_inspect::{
    Captures, End, FrameName, Inspector, Kind, Moment, ReadError, Selection, Totals,
    export::Export,
    page::{self, Page},
    protocol::OnPort,
};

use self::{
    layouts::Layouts,
    listing::{Limit, Listing},
    progress::Bar,
};
use super::output::plural;

/// Default of `--payload`: bytes shown of a message.
const SHOWN: usize = 1024;

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
    #[arg(required_unless_present_any = ["demo", "interface"], value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Inspect what goes over an interface now, until Ctrl-C or --seconds. Needs CAP_NET_RAW
    #[arg(short, long, value_name = "IF", conflicts_with_all = ["files", "demo"])]
    interface: Option<String>,
    /// End after N seconds
    #[arg(long, value_name = "N", requires = "interface", conflicts_with_all = ["files", "demo"])]
    seconds: Option<u64>,
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
    /// Read such layouts from a TOML file as well; for the same port, --protocol and --nested prevail
    #[arg(long, value_name = "FILE")]
    layouts: Option<PathBuf>,
    /// List what each message says, BYTES of it at most, inflated where it is compressed. With --kind,
    /// that of kind message
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "1024")]
    payload: Option<usize>,
    /// List findings of these kinds instead of connections: frame, message (see --payload), unit,
    /// split_point, split_header, split_frame, unfinished, violation, ping, unasked_pong, close,
    /// retransmission, out_of_order, gap, snapped, zero_window, held_window, unsynced, picked_up
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<Kind>,
    /// List the first N entries only
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    /// List the last N entries only
    #[arg(long, value_name = "N", conflicts_with = "first")]
    last: Option<usize>,
    /// List what was found from TIME on, and connections that had packets then: 2026-11-28T21:07:51.5Z,
    /// or +90s behind the first TCP segment. What is before is read all the same, so that frames stay known
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// List what was found up to TIME
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Show one frame, its header explained byte by byte: client:42 is the client's 42nd, as `--kind
    /// frame` lists them; --flow chooses the connection
    #[arg(long, value_name = "FRAME")]
    hexdump: Option<FrameName>,
    /// Write the packets of one connection to a pcapng file, with what was found as comments of its
    /// packets, which Wireshark shows; --flow chooses the connection
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Write one page of HTML that needs nothing else: a time line of each connection, its segments
    /// over the frames they carry, search, and the bytes of each finding
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Make a capture of real connections that show each phenomenon, and explain what is in it. They
    /// are in a network namespace of their own: no root is needed where users may make one
    #[arg(long, conflicts_with_all = ["files", "write", "html", "hexdump", "kind"])]
    demo: bool,
}

/// Result of the reading, and the errors that ended it.
struct Read {
    names: Vec<String>,
    totals: Totals,
    errors: Vec<ReadError>,
}

impl Inspect {
    /// Inspect and report. The part before any damage is reported too.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if self.demo {
            return demo::run().map(|()| ExitCode::SUCCESS);
        }
        let mut inspector = Inspector::new(self.listing()?);
        if self.hexdump.is_some() {
            inspector.keep(hexdump::SHOWN);
        } else if self.html.is_some() {
            inspector.keep(page::SHOWN);
        }
        if let Some(bytes) = self.payload() {
            inspector.show(bytes);
        }
        let layouts = self.layouts.as_deref().map(Layouts::read).transpose()?.unwrap_or_default();
        // The later one prevails.
        let alone = layouts.protocol.iter().chain(&self.protocol);
        alone.cloned().for_each(|known| inspector.know(known));
        let nested = layouts.nested.iter().chain(&self.nested);
        nested.cloned().for_each(|known| inspector.know_nested(known));
        let (listing, Read { names, totals, mut errors }) = self.read(inspector)?;
        let shown = self.show(listing, &names, &totals);
        // The last error ends the program, unless output failed before.
        let last = if shown.is_ok() { errors.pop() } else { None };
        for error in errors {
            // Standard error may be closed.
            let _ = writeln!(io::stderr(), "ws-guard: {error}");
        }
        shown?;
        last.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
    }

    /// Write and print the results.
    fn show(
        &self,
        mut listing: Listing<'_>,
        names: &[String],
        totals: &Totals,
    ) -> anyhow::Result<()> {
        listing.finish();
        if let Some(path) = &self.write {
            write(&mut listing, path)?;
        }
        if let (Some(path), Some(page)) = (&self.html, listing.page.take()) {
            draw(page, names, path)?;
        }
        listing.print(names, totals)
    }

    /// Read the files or the interface.
    fn read<'a>(&self, inspector: Inspector<Listing<'a>>) -> anyhow::Result<(Listing<'a>, Read)> {
        if let Some(interface) = &self.interface {
            let (listing, totals) = live::inspect(interface, self.seconds, inspector)?;
            return Ok((
                listing,
                Read { names: vec![interface.clone()], totals, errors: Vec::new() },
            ));
        }
        let mut captures = Captures::open(&self.files)?;
        let mut bar = Bar::new(captures.progress());
        let (listing, totals, errors) =
            ws_guard_inspect::inspect(&mut captures, inspector, || bar.tick());
        bar.clear();
        Ok((listing, Read { names: captures.names().to_vec(), totals, errors }))
    }

    /// Return the bytes to show of each message, if any.
    fn payload(&self) -> Option<usize> {
        self.payload.or_else(|| self.kind.contains(&Kind::Message).then_some(SHOWN))
    }

    fn listing(&self) -> anyhow::Result<Listing<'static>> {
        let is_payload_alone = self.payload.is_some() && self.kind.is_empty();
        let kinds = if is_payload_alone { vec![Kind::Message] } else { self.kind.clone() };
        let selection = Selection {
            ends: self.flow.clone(),
            kinds,
            since: self.since,
            until: self.until,
            first_ns: 0,
        };
        let limit = self.first.map(Limit::First).or(self.last.map(Limit::Last));
        let aside = || tempfile::tempfile().context("making a file for packets put aside");
        let export = self.write.as_ref().map(|_| aside().map(Export::new)).transpose()?;
        let page = self.html.as_ref().map(|_| Page::default());
        Ok(Listing::new(selection, self.output, limit, self.hexdump, export, page))
    }
}

/// Write the page.
fn draw(page: Page, names: &[String], path: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let left_out = page.left_out();
    let written = page.write(&names.join(", "), &mut BufWriter::new(file));
    written.with_context(|| format!("writing {}", path.display()))?;
    if left_out > 0 {
        // Standard error may be closed.
        let _ = writeln!(
            io::stderr(),
            "{}: {left_out} segments, frames and findings are left out: choose connections with --flow",
            path.display()
        );
    }
    Ok(())
}

/// Write the selected connection; there must be exactly one.
fn write(listing: &mut Listing<'_>, path: &Path) -> anyhow::Result<()> {
    let Some(export) = listing.export.take() else { return Ok(()) };
    let flows = listing.flows();
    ensure!(
        flows.len() == 1,
        "{} is not written: {} chosen, and one is written: name it with --flow ADDRESS:PORT",
        path.display(),
        match flows.len() {
            0 => "no connection is".into(),
            // With lines of JSON, connections are counted no further than two.
            several => format!("{} or more are", plural(several, "connection", "connections")),
        },
    );
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let written = export.write(&flows[0], &mut BufWriter::new(file));
    let written = written.with_context(|| format!("writing {}", path.display()))?;
    // Standard error may be closed.
    let _ = writeln!(
        io::stderr(),
        "{}: {} with {}",
        path.display(),
        plural(written.packets as usize, "packet", "packets"),
        plural(written.comments as usize, "comment", "comments")
    );
    Ok(())
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
