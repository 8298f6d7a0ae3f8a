//! `cargo xtask bench latency`:
//! cost of the guard for an honest client's messages, from sending to the echo, compared with an
//! interface without a program and one whose program does nothing.
use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    netns::{Family, INTERFACE, Pair, PairOptions},
    programs::Programs,
    servers::{Library, Server},
    skip_reason, tools,
};

use super::{kernel, median};
use crate::{
    guard::{Guard, Profile},
    step,
};

const PORT: u16 = 9001;
/// Program of the benchmark's object that lets every packet pass.
pub const EMPTY: &str = "bench_xdp_pass";
const MESSAGE: &str = "as long as a word or two in chat";
/// Number of untimed echoes of a round.
const WARM_UP: u32 = 200;

#[derive(clap::Args)]
pub struct Args {
    /// Echoes of each setting in a round
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    echoes: u32,
    /// Rounds; each times every setting once, and the median counts
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Take this object of the benchmark instead of a fresh build
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

/// Program on the server's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Attached {
    Nothing,
    EmptyXdp,
    /// The guard, by its `--attach`.
    Guard(&'static str),
}

const ATTACHED: [Attached; 5] = [
    Attached::Nothing,
    Attached::EmptyXdp,
    Attached::Guard("xdp-native"),
    Attached::Guard("xdp-generic"),
    Attached::Guard("tcx"),
];

impl Attached {
    fn name(self) -> &'static str {
        match self {
            Attached::Nothing => "nothing",
            Attached::EmptyXdp => "native XDP that does nothing",
            Attached::Guard("xdp-native") => "ws-guard, native XDP",
            Attached::Guard("xdp-generic") => "ws-guard, generic XDP",
            Attached::Guard(_) => "ws-guard, TCX",
        }
    }
}

/// Microseconds of one round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    p50: f64,
    p99: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    attached: Attached,
    rounds: Vec<Sample>,
}

/// A client and a server, for all rounds.
struct Setting {
    client: Client,
    guard: Option<Guard>,
    _empty: Option<Programs>,
    _server: Server,
    _pair: Pair,
}

impl Setting {
    fn new(attached: Attached, object: &std::path::Path) -> Result<Setting> {
        let pair = Pair::new(PairOptions::default())?;
        let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, None)?;
        let (mut guard, mut empty) = (None, None);
        match attached {
            Attached::Nothing => {}
            Attached::EmptyXdp => {
                let mut programs = Programs::load(object, &[EMPTY], &[])?;
                pair.server.run(|| programs.attach_xdp(EMPTY, INTERFACE))??;
                empty = Some(programs);
            }
            Attached::Guard(mode) => {
                let words = format!("--interface {INTERFACE} --attach {mode} --port {PORT}");
                guard = Some(Guard::start(Profile::Dev, &pair.server, &words)?);
            }
        }
        let options = ConnectOptions { reads: false, ..ConnectOptions::default() };
        let at = SocketAddr::new(Family::V4.server(), PORT);
        let client = Client::connect(&pair.client, at, options)?;
        Ok(Setting { client, guard, _empty: empty, _server: server, _pair: pair })
    }

    fn sample(&mut self, echoes: u32) -> Result<Sample> {
        let mut times = Histogram::<u64>::new(3).context("making a histogram")?;
        for n in 0..WARM_UP + echoes {
            let took = self.client.echo(MESSAGE)?;
            if n >= WARM_UP {
                times.record(took.as_nanos() as u64)?;
            }
        }
        let us = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Sample { p50: us(0.5), p99: us(0.99) })
    }
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let object = kernel::object(args.object, kernel::OBJECT)?;
    step::run("building the echo server", tools::build_tungstenite_echo())?;
    Profile::Dev.build()?;
    let settings = ATTACHED.map(|attached| Setting::new(attached, &object));
    let mut settings = settings.into_iter().collect::<Result<Vec<_>>>()?;
    let mut results = ATTACHED.map(|attached| Figures { attached, rounds: Vec::new() });
    for round in 1..=args.rounds {
        eprintln!("  round {round} of {}", args.rounds);
        for (setting, figures) in settings.iter_mut().zip(&mut results) {
            figures.rounds.push(setting.sample(args.echoes)?);
        }
    }
    for setting in settings {
        drop(setting.client);
        setting.guard.map(Guard::unload).transpose()?;
    }
    println!("{}", render(&results));
    super::write("latency", &results)
}

/// Return the median over the rounds of a figure's ratio to the reference.
/// Both are of the same round.
fn ratio(figures: &Figures, reference: &Figures, of: fn(&Sample) -> f64) -> f64 {
    let pairs = figures.rounds.iter().zip(&reference.rounds);
    median(pairs.map(|(sample, reference)| of(sample) / of(reference)))
}

fn render(results: &[Figures; ATTACHED.len()]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let header = ["ATTACHED", "P50 US", "P99 US", "P50 TO NOTHING", "P99 TO NOTHING"];
    table.set_header(header);
    let [nothing, ..] = results;
    let (p50, p99) = (|sample: &Sample| sample.p50, |sample: &Sample| sample.p99);
    for figures in results {
        let time = |of: fn(&Sample) -> f64| format!("{:.1}", median(figures.rounds.iter().map(of)));
        let times = |of: fn(&Sample) -> f64| format!("{:.2}", ratio(figures, nothing, of));
        let name = figures.attached.name();
        table.add_row([name, &time(p50), &time(p99), &times(p50), &times(p99)]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
