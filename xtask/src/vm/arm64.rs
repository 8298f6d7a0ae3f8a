//! The program for arm64 on a kernel of that architecture:
//! a cross-compiled program is tried out before it is shipped. The kernel programs are the same
//! object for both.
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ws_guard_testkit::tools;

use super::{Initramfs, Job, Kernel, Outcome, Release, machine};
use crate::{
    apt::Lists,
    image::{Architecture, Build, Profile},
    setup,
};

/// Series of the kernel to try it on.
const RELEASE: Release = Release { major: 6, minor: 12 };
const PROGRAM: &str = "/usr/bin/ws-guard";
const SCRIPT: &str = "/try.sh";
/// Time limit under emulation on a busy machine: the verifier takes minutes.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Pings of the script's client, and the shipped limit.
const PINGS: u64 = 40;
const LIMIT: u64 = 30;

/// `cargo xtask test arm64`.
#[derive(clap::Args)]
pub struct Args {
    /// A static program for arm64, in the place of one that is compiled quickly
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

pub fn main(args: Args) -> Result<()> {
    setup::arm64()?;
    let compiled = || Build::new(Profile::Dev, Architecture::Arm64).guard();
    try_out(&args.program.map_or_else(compiled, Ok)?)
}

/// Run `doctor`, then `serve` with the guard before it and a client.
pub fn try_out(program: &Path) -> Result<()> {
    let kernel = RELEASE.of(Architecture::Arm64).fetch()?;
    eprintln!("  booting Linux {} for arm64 ...", kernel.version);
    let jobs = [job("doctor", PROGRAM, &["doctor"]), job("serve", SCRIPT, &[])];
    let outcomes = machine::run(&kernel, files(&kernel, program)?, &jobs, |_| {})?;
    let [doctor, serve] = &outcomes[..] else { bail!("two jobs, and other outcomes") };
    healthy(doctor)?;
    let (pings, defused) = counted(serve)?;
    println!(
        "arm64, Linux {}: doctor finds nothing wrong; {defused} of {pings} pings defused, {:.0} s",
        kernel.version,
        (doctor.time + serve.time).as_secs_f64()
    );
    ensure!(
        (pings, defused) == (PINGS, PINGS - LIMIT),
        "{PINGS} pings were sent, the limit is {LIMIT}:\n{}",
        serve.lines.join("\n")
    );
    Ok(())
}

fn job(name: &str, program: &str, arguments: &[&str]) -> Job {
    Job {
        name: name.to_owned(),
        limit: PATIENCE,
        environment: Vec::new(),
        program: program.into(),
        arguments: arguments.iter().map(ToString::to_string).collect(),
    }
}

fn files(kernel: &Kernel, program: &Path) -> Result<Initramfs> {
    let mut files = Initramfs::default();
    files.add("/bin/busybox", fs::read(busybox()?).context("busybox for arm64")?);
    files.add(PROGRAM, fs::read(program).with_context(|| program.display().to_string())?);
    files.add(SCRIPT, include_bytes!("arm64.sh").to_vec());
    files.add_modules(kernel, &["sch_ingress", "cls_bpf"])?;
    Ok(files)
}

/// Return the shell of the machine, fetched once.
fn busybox() -> Result<PathBuf> {
    let folder = tools::target().join("vm/busybox-arm64");
    let program = folder.join("root/bin/busybox");
    if !program.exists() {
        let lists = Lists::of(Architecture::Arm64)?;
        lists.update_once()?;
        lists.unpack(&["busybox-static"], &folder, &folder.join("root"))?;
    }
    Ok(program)
}

fn healthy(doctor: &Outcome) -> Result<()> {
    let said = doctor.lines.join("\n");
    ensure!(doctor.status == Some(0), "doctor on arm64, status {:?}:\n{said}", doctor.status);
    ensure!(said.contains(" 0 failed"), "doctor on arm64:\n{said}");
    Ok(())
}

/// Return the pings of the one source, and how many of them became pongs.
fn counted(serve: &Outcome) -> Result<(u64, u64)> {
    let said = serve.lines.join("\n");
    ensure!(serve.status == Some(0), "serve on arm64, status {:?}:\n{said}", serve.status);
    let found = serve.lines.iter().find_map(|line| line.strip_prefix("counted "));
    let found = found.with_context(|| format!("no sources:\n{said}"))?;
    let sources: Value = serde_json::from_str(found).context(found.to_owned())?;
    let of = |name: &str| sources[0][name].as_u64().with_context(|| format!("no {name}: {found}"));
    Ok((of("pings_total")?, of("defused_total")?))
}
