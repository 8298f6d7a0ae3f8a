//! `cargo xtask bench kernel`: nanoseconds a packet, and the required ratios.
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ws_guard_testkit::skip_reason;

use super::{
    crowd,
    rows::{self, Limit, Row},
    run::Loaded,
    table::{self, OnOne, Sample},
};
use crate::{build_ebpf, cpus, setup};

/// Object built for this and never committed.
pub const OBJECT: &str = "ws-guard-bench.bpf.o";

/// Number of runs of each program for a proof.
const PROOF: u32 = 100;

#[derive(clap::Args)]
pub struct Args {
    /// How often each program is run in a round, on one flow
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    repeats: u32,
    /// Rounds; each measures every row once, and the median counts
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Measure only rows whose name contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    row: Vec<String>,
    /// Take this object instead of a fresh build
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let object = object(args.object, OBJECT)?;
    let mut programs = Loaded::new(&object)?;
    // Clocks, caches and per-CPU maps are then the same for all.
    let [_, last] = cpus::ends()?;
    cpus::stay_on(last)?;
    let rows = rows::rows();
    let all = args.row.is_empty();
    let wants = |row: &&Row| all || args.row.iter().any(|text| row.name.contains(text));
    let wanted: Vec<&Row> = rows.iter().filter(wants).collect();
    if wanted.is_empty() {
        bail!("no row's name contains {:?}: leave --row out to see them all", args.row);
    }
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); wanted.len()];
    for round in 1..=args.rounds {
        eprintln!("  round {round} of {}", args.rounds);
        for (row, samples) in wanted.iter().zip(&mut samples) {
            samples.push(sample(&mut programs, &rows, row, args.repeats)?);
        }
    }
    let results = table::results(&wanted, &samples);
    println!("{}", table::render(&results));
    super::write("kernel", &results)
}

/// Run each row just long enough to check its work; without figures.
pub fn prove() -> Result<()> {
    let mut programs = Loaded::new(&object(None, OBJECT)?)?.with_flows(crowd::FEW);
    let rows = rows::rows();
    rows.iter().try_for_each(|row| programs.measure(row, PROOF, row.acknowledged).map(drop))
}

/// Return an object of the benchmarks, by its file's name; build it if not given.
pub fn object(given: Option<PathBuf>, name: &str) -> Result<PathBuf> {
    if let Some(object) = given {
        return Ok(object);
    }
    let objects = build_ebpf::build(&setup::ebpf()?)?;
    let found = objects.into_iter().find(|path| path.ends_with(name));
    found.with_context(|| format!("the build did not make {name}"))
}

/// Measure a row with its reference right before it:
/// a busy machine's speed differs from second to second. The server acknowledges in all of them, or
/// in none.
fn sample(programs: &mut Loaded, rows: &[Row], row: &Row, repeats: u32) -> Result<Sample> {
    let find = |name: &str| {
        let found = rows.iter().find(|other| other.is(name, row.hook));
        found.with_context(|| format!("no row {name:?} for {}", row.hook.name()))
    };
    let mut time = |name: &str, acknowledged| programs.measure(find(name)?, repeats, acknowledged);
    let on_one = match row.limit {
        Limit::AsOnOne { row: name, .. } => {
            let one = find(name)?;
            let reference_ns = time(one.reference, one.acknowledged)?;
            Some(OnOne { reference_ns, ns: time(name, one.acknowledged)? })
        }
        _ => None,
    };
    Ok(Sample {
        on_one,
        reference_ns: time(row.reference, row.acknowledged)?,
        first_ns: match row.limit {
            Limit::EachFurther { first, .. } => time(first, row.acknowledged)?,
            _ => 0,
        },
        ns: time(row.name, row.acknowledged)?,
    })
}
