//! `cargo xtask test`: every check and test, one after the other, and a summary.
mod report;

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Result, ensure};
use ws_guard_testkit::{netns, skip_reason, tools};

use crate::{build_ebpf, setup, step};
use report::{Report, Tally};

/// Where the daemon takes its object from instead of the one it holds.
const OBJECT: &str = "WS_GUARD_OBJECT";
/// How many cases each property test runs instead of its ordinary number.
const CASES: &str = "WS_GUARD_CASES";
const NIGHTLY_CASES: &str = "1000000";

#[derive(clap::Args)]
pub struct Args {
    /// Leave out the second run of the kernel tests, against the committed object
    #[arg(long, conflicts_with = "nightly")]
    quick: bool,
    /// A million cases for each property test, and the tests that are ignored otherwise
    #[arg(long)]
    nightly: bool,
}

pub fn main(args: Args) -> Result<()> {
    let mut report = Report::default();
    let toolchain = setup::all()?;
    for name in netns::remove_stale()? {
        eprintln!("removed the namespace {name}, which an earlier run left behind");
    }
    report.check("formatting", || step::run("formatting", cargo(&["fmt", "--all", "--check"])));
    report.check("lints, host crates", || {
        let lint = ["clippy", "--all-targets", "--", "-Dwarnings"];
        step::run("linting the host crates", cargo(&lint))
    });
    let mut how = "";
    report.check("lints, kernel programs", || {
        how = build_ebpf::lint(&toolchain)?;
        Ok(())
    });
    report.note(how);
    let mut fresh = None;
    report.check("kernel programs, fresh build", || {
        fresh = Some(build_ebpf::product(&build_ebpf::build(&toolchain)?)?);
        Ok(())
    });
    report.check("committed object is fresh", build_ebpf::check);
    host_tests(&mut report, &args);
    if let Some(fresh) = fresh {
        kernel_tests(&mut report, &args, &fresh)?;
    }
    let tally = report.print();
    ensure!(tally.failed == 0, "{} of the checks and tests failed", tally.failed);
    Ok(())
}

fn host_tests(report: &mut Report, args: &Args) {
    let mut common = cargo(&["test", "--package", "ws-guard-common"]);
    if args.nightly {
        // Optimised: the cases are many, and pure computation.
        common.arg("--release").env(CASES, NIGHTLY_CASES);
    }
    tests(report, "tests, tracker", common, args);
    // The committed object has a step of its own above.
    let others =
        cargo(&["test", "--package", "xtask", "--package", "ws-guard-testkit", "--no-fail-fast"]);
    tests(report, "tests, xtask and test kit", others, args);
    let daemon = cargo(&["test", "--package", "ws-guard", "--lib", "--bins"]);
    tests(report, "tests, daemon", daemon, args);
    let docs = cargo(&["test", "--package", "ws-guard", "--doc"]);
    tests(report, "tests, daemon's documentation", docs, args);
}

/// The tests on the real kernel, against the fresh object and against the committed one.
fn kernel_tests(report: &mut Report, args: &Args, fresh: &Path) -> Result<()> {
    let committed = build_ebpf::committed();
    let same = std::fs::read(fresh).ok() == std::fs::read(&committed).ok();
    let mut objects = vec![("tests on the kernel, fresh object", fresh)];
    if !same && !args.quick {
        objects.push(("tests on the kernel, committed object", &*committed));
    }
    for (name, object) in objects {
        if let Some(reason) = skip_reason() {
            report.skip(name, &reason);
            continue;
        }
        // One at a time: they measure rates and times, and there may be few CPUs.
        let mut command =
            cargo(&["test", "--package", "ws-guard", "--test", "*", "--no-fail-fast"]);
        command.env(OBJECT, object).env("RUST_TEST_THREADS", "1");
        tests(report, name, command, args);
    }
    if same {
        report.note("the committed object has the same bytes");
    } else if args.quick {
        report.skip("tests on the kernel, committed object", "--quick");
    }
    Ok(())
}

/// Run a `cargo test` command; its failures are printed, and its results added up.
fn tests(report: &mut Report, name: &str, mut command: Command, args: &Args) {
    command.args(["--", "--show-output"]);
    if args.nightly {
        command.arg("--include-ignored");
    }
    eprintln!("  {name} ...");
    let start = Instant::now();
    let tally = match step::stream(command, show) {
        Err(error) => {
            eprintln!("  {error:#}");
            Tally { failed: 1, ..Tally::default() }
        }
        Ok(outcome) => {
            let mut tally = Tally::of(&outcome.lines);
            if !outcome.status.success() {
                report::print_failures(&outcome.lines);
                // It may have failed before any test did, while compiling for example.
                tally.failed = tally.failed.max(1);
            }
            tally
        }
    };
    report.add(name, start.elapsed(), tally);
}

/// What shows that a long step goes on: one line a test, and what cargo does.
fn show(line: &str) {
    let line = line.trim_end();
    if line.starts_with("test ") && !line.starts_with("test result") || line.starts_with("skipped:")
    {
        eprintln!("    {line}");
    }
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args).current_dir(tools::workspace()).env("CARGO_TERM_COLOR", "never");
    command
}
