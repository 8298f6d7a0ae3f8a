//! `cargo xtask bench tables`: cost of tables that grow with use, for a packet.
use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use ws_guard_testkit::skip_reason;

use super::{
    kernel::{OBJECT, object},
    median, prealloc,
    rows::{self, Hook, Row},
    run::{Loaded, Phase},
};
use crate::cpus;

/// Packets of one connection, from the rows of `bench kernel`.
const ROWS: [(Hook, &str); 4] = [
    (Hook::Xdp, "data, 1 frame"),
    (Hook::Xdp, "1 ping"),
    (Hook::TcEgress, "pure ACK"),
    (Hook::TcEgress, "data, 1 frame"),
];

#[derive(clap::Args)]
pub struct Args {
    /// How often each program is run in a round, for the packets of one connection
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    repeats: u32,
    /// Connections that are opened in a round, each by a client of its own
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(10..=30_000))]
    connections: u32,
    /// Rounds; each measures everything with both kinds of tables, and the median counts
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Take this object of the benchmarks instead of a fresh build
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

/// A kind of packet: nanoseconds in each round.
#[derive(Serialize)]
struct Compared {
    packet: String,
    growing: Vec<f64>,
    preallocated: Vec<f64>,
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let growing = object(args.object, OBJECT)?;
    let bytes = std::fs::read(&growing).with_context(|| growing.display().to_string())?;
    let changed = tempfile::NamedTempFile::new().context("a file for the other object")?;
    std::fs::write(changed.path(), prealloc::preallocated(&bytes)?)?;
    let mut kinds = [Loaded::new(&growing)?, Loaded::new(changed.path())?];
    let [_, last] = cpus::ends()?;
    cpus::stay_on(last)?;
    let all = rows::rows();
    let rows = ROWS.map(|(hook, name)| all.iter().find(|row| row.is(name, hook)));
    let rows: Vec<&Row> = rows.into_iter().collect::<Option<_>>().context("a row is gone")?;
    let mut compared = Vec::new();
    for round in 0..args.rounds {
        eprintln!("  round {} of {}", round + 1, args.rounds);
        let mut found = [Vec::new(), Vec::new()];
        // Each kind is the first in half of the rounds.
        for kind in [round % 2, 1 - round % 2] {
            let kind = kind as usize;
            found[kind] = measure(&mut kinds[kind], &rows, args.repeats, args.connections)?;
        }
        let [growing, preallocated] = found;
        for (at, ((packet, one), (_, other))) in growing.into_iter().zip(preallocated).enumerate() {
            if round == 0 {
                compared.push(Compared { packet, growing: vec![], preallocated: vec![] });
            }
            compared[at].growing.push(one);
            compared[at].preallocated.push(other);
        }
    }
    println!("{}", render(&compared));
    super::write("tables", &compared)
}

/// Return nanoseconds of each kind of packet.
fn measure(
    loaded: &mut Loaded,
    rows: &[&Row],
    repeats: u32,
    connections: u32,
) -> Result<Vec<(String, f64)>> {
    let mut found = Vec::new();
    for row in rows {
        let ns = loaded.measure(row, repeats, row.acknowledged)?;
        found.push((format!("{}: {}, of one connection", row.hook.name(), row.name), ns as f64));
    }
    let clients: Vec<Ipv4Addr> =
        (0..connections).map(|n| Ipv4Addr::from(0x0A4D_0001 + n)).collect();
    for (phase, ns) in loaded.openings(&clients)? {
        let what = match phase {
            Phase::Answer => "TC egress: the 101, which opens a flow",
            Phase::Ping => "XDP: the first ping, which opens a source",
            Phase::Data => "XDP: data, 1 frame, of each connection in turn",
            Phase::Accepted | Phase::Request => continue,
        };
        found.push((what.to_owned(), ns));
    }
    Ok(found)
}

fn render(compared: &[Compared]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["PACKET", "GROWING NS", "PREALLOCATED NS", "RATIO"]);
    for Compared { packet, growing, preallocated } in compared {
        let ratio = median(growing.iter().zip(preallocated).map(|(one, other)| one / other));
        table.add_row([
            packet,
            &format!("{:.0}", median(growing.iter().copied())),
            &format!("{:.0}", median(preallocated.iter().copied())),
            &format!("{ratio:.2}"),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
