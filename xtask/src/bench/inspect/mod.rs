//! `cargo xtask bench inspect`:
//! speed of `ws-guard inspect` on captures, compared with tshark on the same file in the same
//! round, and its memory for an endless one.

mod traffic;

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use self::traffic::{Shape, Written};
use super::median;
use crate::guard::Profile;

const BULK: Shape =
    Shape { name: "messages of 1 MiB, segments of 1,448 bytes", message: 1 << 20, segment: 1448 };
const OFFLOADED: Shape = Shape {
    name: "messages of 1 MiB, segments of 64,000 bytes",
    message: 1 << 20,
    segment: 64_000,
};
const SMALL: Shape =
    Shape { name: "messages of 32 bytes, one a segment", message: 32, segment: 38 };
const JOINED: Shape =
    Shape { name: "messages of 32 bytes, 38 a segment", message: 32, segment: 1448 };
/// Goals of this command's issue.
const BULK_GOAL: f64 = 1.0;
const SMALL_GOAL: f64 = 20.0;

#[derive(clap::Args)]
pub struct Args {
    /// Megabytes of each capture of bulk messages; those of small ones have a tenth
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    megabytes: u64,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Gigabytes that go through a pipe
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    gigabytes: u64,
}

/// A capture's figures.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    bytes: u64,
    packets: u64,
    frames: u64,
    /// Median seconds of the CPU and of the wall clock.
    cpu_s: f64,
    wall_s: f64,
    /// By CPU seconds, so that it is one core's.
    gigabytes_per_core_second: f64,
    tshark_cpu_s: Option<f64>,
    /// Median over the rounds of tshark's time divided by ours.
    times_tshark: Option<f64>,
}

/// Cost of an endless capture.
#[derive(Debug, Serialize)]
struct Stream {
    bytes: u64,
    wall_s: f64,
    /// Peak resident memory after a tenth of it, and at the end.
    early_kib: u64,
    end_kib: u64,
}

#[derive(Debug, Serialize)]
struct Results {
    rows: Vec<Row>,
    stream: Stream,
}

pub fn main(args: Args) -> Result<()> {
    Profile::Release.build()?;
    let binary = Profile::Release.program();
    let folder = tempfile::tempdir().context("making a directory for captures")?;
    let mut rows = Vec::new();
    for shape in [BULK, OFFLOADED, SMALL, JOINED] {
        let parts = if shape.message > 1000 { 1 } else { 10 };
        let file = folder.path().join("bench.pcap");
        let written = write(shape, args.megabytes * 1_000_000 / parts, &file)?;
        rows.push(row(shape, written, &binary, &file, args.rounds)?);
    }
    let stream = stream(&binary, args.gigabytes * 1_000_000_000)?;
    print(&rows, &stream);
    super::write("inspect", &Results { rows, stream })
}

fn write(shape: Shape, bytes: u64, file: &Path) -> Result<Written> {
    let out = BufWriter::with_capacity(1 << 20, File::create(file)?);
    traffic::write(shape, bytes, out).with_context(|| format!("writing {}", file.display()))
}

/// Run both programs on a capture, in turn.
fn row(shape: Shape, written: Written, binary: &Path, file: &Path, rounds: u32) -> Result<Row> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..rounds {
        let mut inspect = Command::new(binary);
        inspect.arg("inspect").arg(file).args(["-o", "json"]);
        let (cpu, wall, out) = timed(inspect)?;
        let report: serde_json::Value = serde_json::from_slice(&out)?;
        let frames = report["flows"][0]["frames_client"].as_u64();
        ensure!(frames == Some(written.frames), "{frames:?} of {} frames", written.frames);
        ours.push((cpu, wall));
        // Its options to print each frame's opcode and length, as `--kind frame` does.
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-Y", "websocket", "-T", "fields", "-e", "frame.number"]);
        tshark.args(["-e", "websocket.opcode", "-e", "websocket.payload_length", "-r"]).arg(file);
        if let Ok((cpu, ..)) = timed(tshark) {
            theirs.push(cpu);
        }
    }
    let cpu_s = median(ours.iter().map(|(cpu, _)| *cpu));
    let ratios = theirs.iter().zip(&ours).map(|(theirs, (cpu, _))| theirs / cpu);
    Ok(Row {
        name: shape.name,
        bytes: written.bytes,
        packets: written.packets,
        frames: written.frames,
        cpu_s,
        wall_s: median(ours.iter().map(|(_, wall)| *wall)),
        gigabytes_per_core_second: written.bytes as f64 / 1e9 / cpu_s,
        tshark_cpu_s: (!theirs.is_empty()).then(|| median(theirs.iter().copied())),
        times_tshark: (!theirs.is_empty()).then(|| median(ratios)),
    })
}

/// Run to the end; return seconds of CPU and of the wall clock, and the output.
fn timed(mut command: Command) -> Result<(f64, f64, Vec<u8>)> {
    let before = children_cpu()?;
    let start = Instant::now();
    let output = command.stderr(Stdio::null()).output()?;
    ensure!(output.status.success(), "{:?}: {}", command.get_program(), output.status);
    let cpu = children_cpu()? - before;
    Ok((cpu.as_secs_f64(), start.elapsed().as_secs_f64(), output.stdout))
}

/// Return the CPU time of all ended children.
fn children_cpu() -> Result<Duration> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64)
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

/// Read through a pipe, generated meanwhile.
fn stream(binary: &Path, bytes: u64) -> Result<Stream> {
    let mut command = Command::new(binary);
    command.args(["inspect", "-", "-o", "json"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().context("starting ws-guard")?;
    let input = child.stdin.take().context("its standard input")?;
    let mut watched = Watched { out: input, child: &child, left: bytes / 10, early_kib: 0 };
    let out = BufWriter::with_capacity(1 << 20, &mut watched);
    let written = traffic::write(BULK, bytes, out).context("writing into the pipe")?;
    let (early_kib, end_kib) = (watched.early_kib, peak_kib(&child)?);
    drop(watched);
    let output = child.wait_with_output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["flows"][0]["frames_client"].as_u64() == Some(written.frames), "not all frames");
    Ok(Stream { bytes: written.bytes, wall_s: start.elapsed().as_secs_f64(), early_kib, end_kib })
}

/// A pipe into a child whose memory is checked after a tenth.
struct Watched<'a, W> {
    out: W,
    child: &'a Child,
    left: u64,
    early_kib: u64,
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.left = self.left.saturating_sub(written as u64);
        if self.left == 0 && self.early_kib == 0 {
            self.early_kib = peak_kib(self.child).map_err(std::io::Error::other)?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Return the peak resident memory so far.
fn peak_kib(child: &Child) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.and_then(|number| number.parse().ok()).context("no VmHWM")
}

fn print(rows: &[Row], stream: &Stream) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "CAPTURE",
        "PACKETS",
        "FRAMES",
        "CPU",
        "GB/S A CORE",
        "TSHARK",
        "TIMES TSHARK",
    ]);
    for row in rows {
        let seconds = |seconds: f64| format!("{seconds:.2}s");
        table.add_row([
            row.name.into(),
            row.packets.to_string(),
            row.frames.to_string(),
            seconds(row.cpu_s),
            format!("{:.2}", row.gigabytes_per_core_second),
            row.tshark_cpu_s.map_or("-".into(), seconds),
            row.times_tshark.map_or("-".into(), |times| format!("{times:.0}")),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    let Stream { bytes, wall_s, early_kib, end_kib } = stream;
    println!(
        "{:.1} GB through a pipe in {wall_s:.0} s: {early_kib} KiB after a tenth, {end_kib} KiB at the end",
        *bytes as f64 / 1e9
    );
    let slow =
        rows.iter().find(|row| row.name == BULK.name && row.gigabytes_per_core_second < BULK_GOAL);
    let behind = rows.iter().find(|row| {
        row.name == SMALL.name && row.times_tshark.is_some_and(|times| times < SMALL_GOAL)
    });
    for row in slow.into_iter().chain(behind) {
        println!("below its goal: {}", row.name);
    }
}
