//! `cargo xtask bench worst`: a search for the packets that cost the programs most.
//!
//! It starts from the rows of the table, which were chosen by hand: bytes are changed at random,
//! and packets that cost more than their like are changed further.
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use ws_guard_testkit::skip_reason;

use super::{
    kernel,
    rows::{self, Hook, Opening, Row},
    run::Loaded,
};
use crate::cpus;

/// Maximum cost of a packet that needs no completed handshake, in nanoseconds.
const SPOOFED_NS: u64 = 10_000;
/// Maximum cost of any other packet.
const ANY_NS: u64 = 20_000;
/// Payload of a full segment.
const LONGEST: usize = 1448;
/// Runs of the programs that one candidate is timed over.
const REPEATS: u32 = 40;
/// Number of times that a candidate is timed that seems to cost more than its like:
/// the least counts.
const AGAIN: usize = 4;
/// Number of candidates of a row that are changed further.
const KEPT: usize = 4;
/// Lines of the table for each kind.
const SHOWN: usize = 8;
/// Words that the parsers look for.
const WORDS: [&[u8]; 14] = [
    b"\r\n",
    b"\n",
    b":",
    b",",
    b"A:\n",
    b"::,",
    b"Forwarded: for=",
    b"X-Forwarded-For: ",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"PROXY TCP4 ",
    b"\x81\x00",
    b"\x8A\x80\x01\x02\x03\x04",
    b"\x89\xFE\x00\x7E\x01\x02\x03\x04",
    b"\x17\x03\x03\x00\x16",
];

#[derive(clap::Args)]
pub struct Args {
    /// How long to search
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Repeat the search that printed this seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// A packet, and its cost.
struct Candidate {
    row: Row,
    ns: u64,
}

/// Result of the search, for the JSON.
#[derive(Serialize)]
struct Found {
    row: &'static str,
    spoofable: bool,
    ns: u64,
    limit_ns: u64,
    before: String,
    behind: String,
    payload: String,
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let mut programs = Loaded::new(&kernel::object(None, kernel::OBJECT)?)?;
    let [_, last] = cpus::ends()?;
    cpus::stay_on(last)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kinds = beginnings(&mut programs)?;
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let (mut tried, mut told) = (0u64, Instant::now());
    while Instant::now() < end {
        let kind = random.usize(..kinds.len());
        improve(&mut programs, &mut kinds[kind], &mut random)?;
        tried += 1;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!("  {tried} packets tried, the costliest takes {} ns", costliest(&kinds));
        }
    }
    let found = findings(&kinds);
    println!("{}", render(&found));
    let over = found.iter().filter(|found| found.ns > found.limit_ns).count();
    println!("{tried} packets tried, {over} of the {} costliest over their limit", found.len());
    super::write("worst", &found)
}

/// Return every row of a client's packet at XDP, each the first of its kind.
fn beginnings(programs: &mut Loaded) -> Result<Vec<Vec<Candidate>>> {
    let rows = rows::rows().into_iter().filter(|row| row.hook == Hook::Xdp);
    let rows = rows.filter(|row| row.program == "bench_xdp" && !row.many);
    let rows = rows.filter(|row| !row.tunnel && !row.unprotected);
    rows.map(|row| {
        let ns = cost(programs, &row)?;
        Ok(vec![Candidate { row, ns }])
    })
    .collect()
}

/// Return the least time of some runs, in nanoseconds a packet.
fn cost(programs: &mut Loaded, row: &Row) -> Result<u64> {
    let times: Result<Vec<u64>> = (0..AGAIN).map(|_| programs.time(row, REPEATS)).collect();
    Ok(times?.into_iter().min().unwrap_or(0))
}

/// Change a candidate of a kind; keep the result if it beats the cheapest kept one.
fn improve(
    programs: &mut Loaded,
    kind: &mut Vec<Candidate>,
    random: &mut fastrand::Rng,
) -> Result<()> {
    let mut row = kind[random.usize(..kind.len())].row.clone();
    let part = match random.u8(..4) {
        0 if !row.before.is_empty() => &mut row.before,
        1 if !row.behind.is_empty() => &mut row.behind,
        _ => &mut row.payload,
    };
    let longest = part.len().max(LONGEST);
    for _ in 0..random.usize(1..4) {
        change(part, random);
    }
    part.truncate(longest);
    if row.payload.is_empty() {
        return Ok(());
    }
    let least = kind.iter().map(|candidate| candidate.ns).min().unwrap_or(0);
    if programs.time(&row, REPEATS)? <= least && kind.len() == KEPT {
        return Ok(());
    }
    let ns = cost(programs, &row)?;
    kind.push(Candidate { row, ns });
    kind.sort_by_key(|candidate| std::cmp::Reverse(candidate.ns));
    kind.truncate(KEPT);
    Ok(())
}

/// Make one change at a random place.
fn change(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    let at = random.usize(..=bytes.len());
    let length = random.usize(..=(bytes.len() - at).min(64));
    match random.u8(..6) {
        0 if at < bytes.len() => bytes[at] = random.u8(..),
        1 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
        2 => {
            bytes.drain(at..at + length);
        }
        3 => {
            let again = bytes[at..at + length].repeat(random.usize(1..32));
            bytes.splice(at..at, again);
        }
        4 => {
            let word = WORDS[random.usize(..WORDS.len())];
            bytes.splice(at..at, word.iter().copied());
        }
        _ => {
            let word = WORDS[random.usize(..WORDS.len())].repeat(random.usize(1..64));
            let end = (at + word.len()).min(bytes.len());
            bytes.splice(at..end, word);
        }
    }
}

fn costliest(kinds: &[Vec<Candidate>]) -> u64 {
    kinds.iter().flatten().map(|candidate| candidate.ns).max().unwrap_or(0)
}

/// Return the costliest of each kind, the costliest first:
/// those that can be spoofed, and the others.
fn findings(kinds: &[Vec<Candidate>]) -> Vec<Found> {
    let mut all: Vec<Found> = kinds.iter().filter_map(|kind| kind.first()).map(found).collect();
    all.sort_by_key(|found| (!found.spoofable, std::cmp::Reverse(found.ns)));
    let (mut spoofed, others): (Vec<Found>, Vec<Found>) =
        all.into_iter().partition(|found| found.spoofable);
    spoofed.truncate(SHOWN);
    spoofed.extend(others.into_iter().take(SHOWN));
    spoofed
}

fn found(candidate: &Candidate) -> Found {
    let Candidate { row, ns } = candidate;
    let spoofable = row.opening == Opening::Nothing;
    let limit_ns = if spoofable { SPOOFED_NS } else { ANY_NS };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Found {
        row: row.name,
        spoofable,
        ns: *ns,
        limit_ns,
        before: hex(&row.before),
        behind: hex(&row.behind),
        payload: hex(&row.payload),
    }
}

fn render(found: &[Found]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["SENDER", "BEGAN AS", "BYTES", "NS", "LIMIT", ""]);
    for found in found {
        table.add_row([
            if found.spoofable { "anyone" } else { "a connection" }.to_owned(),
            found.row.to_owned(),
            (found.payload.len() / 2).to_string(),
            found.ns.to_string(),
            found.limit_ns.to_string(),
            if found.ns > found.limit_ns { "over" } else { "ok" }.to_owned(),
        ]);
    }
    for column in 2..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
