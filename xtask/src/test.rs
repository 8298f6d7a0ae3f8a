//! `cargo xtask test`: every check and test, one after the other, and a summary.
mod client;
mod dependencies;
mod events;
mod kernels;
mod report;

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::{netns, skip_reason, tools};

use crate::{autobahn, bench, build_ebpf, image, k8s, setup, step, vm};
use events::Events;
use kernels::{Choice, Suite};
use report::{Report, Tally};

/// Environment variable with the daemon's object, in place of the one it holds.
const OBJECT: &str = "WS_GUARD_OBJECT";
/// Environment variable with the number of cases of each property test.
const CASES: &str = "WS_GUARD_CASES";
const NIGHTLY_CASES: &str = "1000000";
/// Test target that reports the verifier's work, and holds a budget for it.
const VERIFIER: &str = "programs";
/// Step that checks that the kernel benchmark's rows do their work.
const BENCH: &str = "rows of the kernel benchmark";
/// Test target that runs the kernel programs on generated streams.
const DIFFERENTIAL: &str = "differential";
/// Test targets whose tests run at the same time.
/// Each has separate namespaces or a separate server. Those of the others measure times, or take
/// all the descriptors that a process may have.
const TOGETHER: [&str; 7] =
    ["adversary", "attach", "deploy", "guard", "loader", "proxies", "server"];

/// Libraries whose documentation may hold tests.
const DOCUMENTED: [&str; 5] =
    ["ws-guard", "ws-guard-common", "ws-guard-inspect", "ws-guard-server", "ws-guard-testkit"];

#[derive(clap::Args)]
pub struct Args {
    /// Leave out the second run of the kernel tests, against the committed object; with --kernel,
    /// run only the packet suite there
    #[arg(long, conflicts_with = "nightly")]
    quick: bool,
    /// A million cases for each property test, a million streams through the kernel programs, all tested
    /// kernels, and the tests that are ignored otherwise
    #[arg(long)]
    nightly: bool,
    /// Run the kernel tests on a kernel of this series in a virtual machine, and nothing else: 6.1,
    /// 6.12, or `running` for the ordinary run; can be given several times
    #[arg(long, value_name = "VERSION")]
    kernel: Vec<Choice>,
    #[command(subcommand)]
    only: Option<Only>,
}

/// Tests that can be run alone.
#[derive(clap::Subcommand)]
enum Only {
    /// Run all cases of Autobahn|Testsuite, compression included, against the companion server
    Autobahn(autobahn::Args),
    /// Run the program for arm64, and the kernel programs in it, on a kernel of that architecture in an
    /// emulated machine
    Arm64(vm::arm64::Args),
    /// Run the image, the chart and the kubectl plug-in on a real cluster: that of KUBECONFIG, or one of
    /// one node that the test brings up
    K8s(k8s::Args),
}

pub fn main(mut args: Args) -> Result<()> {
    match args.only.take() {
        Some(Only::Autobahn(args)) => return autobahn::main(&args),
        Some(Only::Arm64(args)) => return vm::arm64::main(args),
        Some(Only::K8s(args)) => return k8s::main(args),
        None => {}
    }
    let mut report = Report::default();
    let chosen: Vec<vm::Release> = args.kernel.iter().filter_map(Choice::release).collect();
    if args.kernel.is_empty() || args.kernel.contains(&Choice::Running) {
        everything(&mut report, &args)?;
    }
    if !chosen.is_empty() {
        let suite = if args.quick { Suite::Packets } else { Suite::Whole };
        kernels::test(&mut report, &chosen, suite);
    } else if args.kernel.is_empty() {
        let kernels: &[vm::Release] = if args.nightly { &vm::TESTED } else { &vm::TESTED[..1] };
        kernels::test(&mut report, kernels, Suite::Sample);
    }
    let tally = report.print();
    ensure!(tally.failed == 0, "{} of the checks and tests failed", tally.failed);
    Ok(())
}

/// Run everything that can be tested on this machine's kernel.
fn everything(report: &mut Report, args: &Args) -> Result<()> {
    eprintln!("On 2 cores all of it takes about an hour, and what it builds first a quarter more.");
    let toolchain = setup::all()?;
    for name in netns::remove_stale()? {
        eprintln!("removed the namespace {name}, which an earlier run left behind");
    }
    report.check("formatting", || step::run("formatting", cargo(&["fmt", "--all", "--check"])));
    dependencies::check(report);
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
    host_tests(report, args);
    client::check(report, args.nightly);
    match skip_reason() {
        Some(reason) => report.skip("container image", &reason),
        // The deployment tests run its content.
        None => report.check("container image", || image::for_tests().map(drop)),
    }
    if let Some(fresh) = fresh {
        kernel_tests(report, args, &fresh)?;
    }
    match skip_reason() {
        Some(reason) => report.skip(BENCH, &reason),
        // The packet that a row measures may change unnoticed.
        None => report.check(BENCH, bench::kernel::prove),
    }
    Ok(())
}

fn host_tests(report: &mut Report, args: &Args) {
    let mut common = cargo(&["test", "--package", "ws-guard-common", "--tests"]);
    if args.nightly {
        // Optimised: the cases are many, and pure computation.
        common.arg("--release").env(CASES, NIGHTLY_CASES);
    }
    tests(report, "tests, tracker", common, args);
    // The committed object has a separate step above.
    let each = ["--tests", "--no-fail-fast"];
    let mut inspector = cargo(&["test", "--package", "ws-guard-inspect"]);
    inspector.args(each);
    tests(report, "tests, inspector", inspector, args);
    let mut server = cargo(&["test", "--package", "ws-guard-server"]);
    server.args(each);
    tests(report, "tests, companion server", server, args);
    let mut others = cargo(&["test", "--package", "xtask", "--package", "ws-guard-testkit"]);
    others.args(["--package", "kubectl-ws-guard", "--package", "ws-guard-chaos"]).args(each);
    tests(report, "tests, xtask, test kit, kubectl plug-in, chaos runs", others, args);
    let daemon = cargo(&["test", "--package", "ws-guard", "--lib", "--bins"]);
    tests(report, "tests, daemon", daemon, args);
    let mut docs = cargo(&["test", "--doc", "--no-fail-fast"]);
    for package in DOCUMENTED {
        docs.args(["--package", package]);
    }
    tests(report, "tests, documentation", docs, args);
}

/// Run the tests on the real kernel, with the fresh object and the committed one.
fn kernel_tests(report: &mut Report, args: &Args, fresh: &Path) -> Result<()> {
    let committed = build_ebpf::committed();
    let same = std::fs::read(fresh).ok() == std::fs::read(&committed).ok();
    let targets = kernel_targets()?;
    for target in &targets {
        kernel_test(report, args, target, ("fresh", fresh));
    }
    let mut why = "";
    if same {
        why = "the same bytes as the fresh one";
    } else if args.quick {
        why = "--quick";
    }
    if !why.is_empty() {
        report.skip("kernel tests, committed object", why);
        return Ok(());
    }
    for target in &targets {
        kernel_test(report, args, target, ("committed", &committed));
    }
    Ok(())
}

/// Return the daemon's test targets, each a separate program:
/// those that load the kernel programs. The verifier's comes first: where it refuses, nothing else
/// can work.
fn kernel_targets() -> Result<Vec<String>> {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("running cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|package| package["name"] == "ws-guard")
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "test");
    let names = targets.filter_map(|target| target["name"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_by_key(|name| (name != VERIFIER, name.clone()));
    ensure!(!names.is_empty(), "cargo metadata names no test target of ws-guard");
    Ok(names)
}

/// Run one test target against one build of the kernel programs.
fn kernel_test(report: &mut Report, args: &Args, target: &str, (build, object): (&str, &Path)) {
    let what = if target == VERIFIER { "verifier and programs" } else { target };
    let name = format!("kernel tests, {what}, {build} object");
    if let Some(reason) = skip_reason() {
        report.skip(&name, &reason);
        return;
    }
    let mut command = cargo(&["test", "--package", "ws-guard", "--test", target]);
    if args.nightly && target == DIFFERENTIAL {
        command.env(CASES, NIGHTLY_CASES);
    }
    if !TOGETHER.contains(&target) {
        command.env("RUST_TEST_THREADS", "1");
    }
    command.env(OBJECT, object);
    tests(report, &name, command, args);
}

/// Run a `cargo test` command, and add up its results.
/// Its failures are printed; a few failed tests run once more, alone.
fn tests(report: &mut Report, name: &str, mut command: Command, args: &Args) {
    // rustdoc runs its tests itself, without cargo's runner.
    if command.get_args().any(|argument| argument == "--doc") {
        command.args(["--", "--show-output"]);
    } else {
        command.args(["--config", events::RUNNER, "--", "--show-output"]).args(events::ARGUMENTS);
    }
    if args.nightly {
        command.arg("--include-ignored");
    }
    eprintln!("  {name} ...");
    let start = Instant::now();
    let mut attempt = attempt(&mut command);
    if attempt.tally.failed > 0 {
        let told = report.failed(name, &attempt.told);
        if !args.nightly && report.may_repeat(&attempt.tally, &attempt.events.failed) {
            repeat(report, name, told, &mut command, &mut attempt);
        }
    }
    report.timed(name, attempt.events.times);
    report.add(name, start.elapsed(), attempt.tally);
}

/// Run the failed tests once more, without others at the same time.
///
/// Many tests drive real servers over real networks, and on a machine with two processors a second
/// of other work fails one of hundreds. Tests that then pass are reported separately.
fn repeat(
    report: &mut Report,
    name: &str,
    told: usize,
    command: &mut Command,
    first: &mut Attempt,
) {
    let failed = &first.events.failed;
    eprintln!("  once more, alone: {}", failed.join(", "));
    command.arg("--exact").args(failed).env("RUST_TEST_THREADS", "1");
    let second = attempt(command);
    if second.tally.failed == 0 && second.tally.passed >= first.tally.failed {
        first.tally.repair();
        report.passed_again(told);
    } else {
        report.failed(name, &second.told);
    }
}

/// Results of one run of a `cargo test` command.
struct Attempt {
    tally: Tally,
    told: Vec<String>,
    events: Events,
}

fn attempt(command: &mut Command) -> Attempt {
    let (mut events, mut told) = (Events::default(), Vec::new());
    let each = |line: &str| {
        let lines = events.tell(line);
        lines.iter().for_each(|line| show(line));
        told.extend(lines);
    };
    let tally = match step::stream(command, each) {
        Err(error) => {
            eprintln!("  {error:#}");
            Tally { failed: 1, ..Tally::default() }
        }
        Ok(outcome) => {
            let mut tally = Tally::of(&told);
            if !outcome.status.success() {
                // It may have failed before any test did, while compiling for example.
                tally.failed = tally.failed.max(1);
            }
            tally
        }
    };
    Attempt { tally, told, events }
}

fn show(line: &str) {
    if let Some(line) = telling(line) {
        eprintln!("    {line}");
    }
}

/// Return progress of a long step: one line a test, and cargo's own.
fn telling(line: &str) -> Option<&str> {
    let line = line.trim_end();
    let result = line.starts_with("test ") && !line.starts_with("test result");
    let told = [" instructions verified", " streams in "].iter().any(|part| line.contains(part));
    (result || told || line.starts_with("skipped:")).then_some(line)
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args).current_dir(tools::workspace()).env("CARGO_TERM_COLOR", "never");
    command
}
