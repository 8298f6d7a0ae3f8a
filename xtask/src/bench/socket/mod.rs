//! `cargo xtask bench socket`: a second line at the server's sockets (`sock_ops` and `sk_skb`), which
//! the product does not have: what it would cost, what servers would see of it, and that it is exact.
mod behaviour;
mod cgroup;
#[path = "../../../../ws-guard-ebpf/src/bin/ws-guard-socket/connection.rs"]
mod connection;
mod line;
mod machine;
mod measure;
mod proof;
mod table;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use ws_guard_testkit::{path::Impairment, servers::Library, skip_reason, tools};

use super::{
    kernel,
    loss::{self, Traffic},
};
use crate::{guard::Profile, step, vm::Release};
use measure::{ATTACHED, Attached, Echoes, Objects, Setting, Upload};

/// What is built for this and never committed.
const OBJECT: &str = "ws-guard-socket.bpf.o";
/// Where a server echoes, and where one swallows.
const PORT: u16 = 9001;
const SINK: u16 = 9002;
/// Bytes of payload of an upload's frames.
const SIZES: [usize; 2] = [500, 65_536];
/// What is measured over a path that loses packets.
const OVER_PATHS: [Attached; 3] = [Attached::Nothing, Attached::Follow, Attached::Guard];

#[derive(clap::Args)]
pub struct Args {
    /// What to do; everything when left out
    #[arg(value_enum)]
    only: Vec<Part>,
    /// The servers that it is proven with
    #[arg(long, default_values_t = ["tokio-tungstenite", "python", "ws", "gorilla"].map(String::from))]
    library: Vec<String>,
    /// Runs of the proof with each server, all but the first one over a path that loses packets
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    proofs: u64,
    /// Echoes of each setting in a round
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    echoes: u32,
    /// Megabytes of each upload
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    megabytes: u32,
    /// Rounds, which take turns; the median counts
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Rounds over paths that lose packets
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    loss_rounds: u32,
    /// Only the proof, with compiled servers, and the behaviour, on a kernel of this series in a virtual
    /// machine
    #[arg(long, value_name = "VERSION")]
    kernel: Option<Release>,
    /// Take this object instead of a fresh build, and the other benchmarks' beside it
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Show that no more pings than the limit are answered, whatever the path does
    Proof,
    /// Show what a server sees of its sockets
    Behaviour,
    /// Time echoes and uploads
    Cost,
    /// Measure what paths cost that lose packets
    Loss,
}

/// All rounds of one way to attach.
#[derive(Debug, Serialize)]
struct Figures {
    attached: Attached,
    echoes: Vec<Echoes>,
    uploads: [Vec<Upload>; SIZES.len()],
}

/// All rounds of one kind of traffic over one kind of path.
#[derive(Debug, Serialize)]
struct Lossy {
    traffic: Traffic,
    path: &'static str,
    attached: Attached,
    samples: Vec<loss::Sample>,
}

#[derive(Debug, Default, Serialize)]
struct Results {
    behaviour: Vec<[String; 4]>,
    cost: Vec<Figures>,
    loss: Vec<Lossy>,
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let object = kernel::object(args.object.clone(), OBJECT)?;
    if let Some(release) = args.kernel {
        return machine::run(release, &object, args.proofs);
    }
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let mut results = Results::default();
    if wants(Part::Proof) {
        prove(&args, &object)?;
    }
    if wants(Part::Behaviour) {
        results.behaviour = behaviour::observe(&object)?;
        println!("{}\n", table::behaviour(&results.behaviour));
    }
    if wants(Part::Cost) || wants(Part::Loss) {
        step::run("building the echo server", tools::build_tungstenite_echo())?;
        Profile::Dev.build()?;
    }
    let packets = object.with_file_name(kernel::OBJECT);
    let objects = Objects { socket: object, packets };
    if wants(Part::Cost) {
        results.cost = cost(&args, &objects)?;
        println!("{}\n", table::cost(&results.cost));
    }
    if wants(Part::Loss) {
        results.loss = lossy(&args, &objects)?;
        println!("{}\n", table::loss(&results.loss));
    }
    super::write("socket", &results)
}

fn prove(args: &Args, object: &Path) -> Result<()> {
    for name in &args.library {
        let library: Library = name.parse()?;
        for parser in [false, true] {
            let how = if parser { "with a parser" } else { "without a parser" };
            match proof::prove(object, library, parser, args.proofs) {
                Ok(()) => println!("{name}, {how}: exact in {} runs", args.proofs),
                Err(error) => println!("{name}, {how}: {error:#}"),
            }
        }
    }
    Ok(())
}

fn cost(args: &Args, objects: &Objects) -> Result<Vec<Figures>> {
    let settings = ATTACHED.map(|attached| Setting::over_pair(attached, objects));
    let settings = settings.into_iter().collect::<Result<Vec<_>>>()?;
    let clients = settings.iter().map(|setting| setting.connect(PORT, false));
    let mut clients = clients.collect::<Result<Vec<_>>>()?;
    let new = |attached| Figures { attached, echoes: Vec::new(), uploads: Default::default() };
    let mut results = ATTACHED.map(new);
    for round in 1..=args.rounds {
        eprintln!("  round {round} of {}", args.rounds);
        for ((setting, client), figures) in settings.iter().zip(&mut clients).zip(&mut results) {
            figures.echoes.push(setting.echoes(client, args.echoes)?);
        }
        for (n, size) in SIZES.into_iter().enumerate() {
            for (setting, figures) in settings.iter().zip(&mut results) {
                let bytes = args.megabytes as usize * 1_000_000;
                let upload = setting.upload(size, bytes);
                let how = || format!("{}, frames of {size}", figures.attached.name());
                figures.uploads[n].push(upload.with_context(how)?);
            }
        }
    }
    drop(clients);
    settings.into_iter().try_for_each(Setting::end)?;
    Ok(results.into())
}

fn lossy(args: &Args, objects: &Objects) -> Result<Vec<Lossy>> {
    let settings = OVER_PATHS.map(|attached| Setting::over_path(attached, objects));
    let settings = settings.into_iter().collect::<Result<Vec<_>>>()?;
    let mut results = Vec::new();
    for traffic in loss::TRAFFIC {
        // Not the late ones: lost segments are late as well, and by more.
        for (path, _) in &loss::impairments()[..3] {
            let new = |attached| Lossy { traffic, path, attached, samples: Vec::new() };
            results.extend(OVER_PATHS.map(new));
        }
    }
    for round in 1..=args.loss_rounds {
        eprintln!("  round {round} of {}", args.loss_rounds);
        for lossy in &mut results {
            let found = OVER_PATHS.iter().position(|attached| *attached == lossy.attached);
            let impairment = loss::impairments().into_iter().find(|(name, _)| *name == lossy.path);
            let (Some(setting), Some((_, impairment))) = (found, impairment) else { continue };
            let impairment = Impairment { seed: round.into(), ..impairment };
            let time = Duration::from_secs(5);
            let sample = settings[setting].impaired(lossy.traffic, impairment, 300_000, time)?;
            eprintln!("    {:?}, {}, {:?}: {sample:?}", lossy.traffic, lossy.path, lossy.attached);
            lossy.samples.push(sample);
        }
    }
    settings.into_iter().try_for_each(Setting::end)?;
    Ok(results)
}
