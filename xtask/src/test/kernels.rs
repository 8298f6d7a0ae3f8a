//! Kernel tests on other kernels than the running one, in virtual machines.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use ws_guard_testkit::tools;

use super::{
    OBJECT, VERIFIER, cargo,
    report::{Report, Tally},
    telling,
};
use crate::{
    build_ebpf,
    setup::{self, Toolchain},
    step,
    vm::{self, Initramfs, Job, Kernel, Outcome, Release},
};

/// `--kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Running,
    Release(Release),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        if text == "running" { Ok(Choice::Running) } else { text.parse().map(Choice::Release) }
    }
}

impl Choice {
    pub fn release(&self) -> Option<Release> {
        match self {
            Choice::Running => None,
            Choice::Release(release) => Some(*release),
        }
    }
}

/// Extent of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Loading, and the table of packets, each hook and each address family once.
    Sample,
    /// Loading and the whole table of packets.
    Packets,
    /// Attaching, pinning, and traffic between namespaces as well.
    Whole,
}

/// One of the daemon's test targets.
struct Target {
    name: &'static str,
    /// Time limit under emulation on a busy machine, in minutes.
    minutes: u64,
    /// Names of the tests to run; all when empty.
    only: &'static [&'static str],
    /// Names of the tests to skip.
    skip: &'static [&'static str],
}

/// The table of packets, and the verifier's work for the programs.
const PACKETS: Target = Target { name: VERIFIER, minutes: 12, only: &[], skip: &[] };
/// Without the cases that the running kernel has covered.
/// Each hook and family takes a minute here.
const SAMPLE: Target = Target { skip: &["packets_at_xdp_ipv6", "packets_at_tc_ipv4"], ..PACKETS };
/// Without the tests that take over a dozen times and more.
/// Under emulation a load takes half a minute. One is left, with the hook that old kernels fall
/// back to.
const LOADER: Target = Target {
    name: "loader",
    minutes: 45,
    only: &[],
    skip: &[
        "takeover::a_daemon_may_die_at_any_moment",
        "takeover::no_packet_is_unguarded_while_daemons_change_tcx",
        "takeover::no_packet_is_unguarded_while_daemons_change_xdp",
        "takeover::no_packet_is_unguarded_while_the_mode_changes",
    ],
};
/// Real traffic, with compiled servers in the machine.
/// Tests marked as needing a fast machine are left out.
const TRAFFIC: Target = Target {
    name: "guard",
    minutes: 20,
    only: &[
        "defuse::native_xdp_before_tokio_tungstenite",
        "defuse::clsact_before_gorilla",
        "checksums::partial_checksums_are_left_alone",
        "checksums::real_checksums_are_put_right",
    ],
    skip: &[],
};

impl Suite {
    fn targets(self) -> &'static [Target] {
        const WHOLE: [Target; 3] = [PACKETS, TRAFFIC, LOADER];
        match self {
            Suite::Sample => &[SAMPLE],
            Suite::Packets => &WHOLE[..1],
            Suite::Whole => &WHOLE,
        }
    }
}

/// Other programs that the tests call.
const TOOLS: [&str; 4] = ["ip", "tc", "ethtool", "nsenter"];
/// Modules that the tests need for their kinds of interfaces and for clsact.
const MODULES: [&str; 8] =
    ["veth", "dummy", "8021q", "bridge", "sch_ingress", "cls_bpf", "sch_netem", "tun"];

/// Run a suite on all kernels at the same time: a machine has one CPU.
/// An unavailable kernel is skipped.
pub fn test(report: &mut Report, releases: &[Release], suite: Suite) {
    let mut kernels = Vec::new();
    for release in releases {
        match setup::machine(*release) {
            Ok(kernel) => kernels.push(kernel),
            Err(error) => report.skip(&format!("Linux {release}"), &format!("{error:#}")),
        }
    }
    if kernels.is_empty() {
        return;
    }
    let mut built = None;
    report.check("programs for virtual machines", || {
        built = Some(Built::new(suite)?);
        Ok(())
    });
    let Some(built) = built else { return };
    let results = thread::scope(|scope| {
        let built = &built;
        let one = |kernel| scope.spawn(move || test_one(kernel, built, suite));
        let machines: Vec<_> = kernels.iter().map(one).collect();
        machines.into_iter().map(|machine| machine.join()).collect::<Vec<_>>()
    });
    for (kernel, result) in kernels.iter().zip(results) {
        match result.unwrap_or_else(|_| Err(anyhow!("it panicked"))) {
            Ok(outcomes) => outcomes.iter().for_each(|outcome| add(report, kernel, outcome)),
            Err(error) => report.check(&format!("Linux {}", kernel.version), || Err(error)),
        }
    }
}

fn test_one(kernel: &Kernel, built: &Built, suite: Suite) -> Result<Vec<Outcome>> {
    let targets = suite.targets();
    let jobs = targets.iter().map(|target| built.job(target)).collect::<Result<Vec<Job>>>()?;
    let files = built.files(kernel, suite)?;
    eprintln!("  booting Linux {} ...", kernel.version);
    vm::run(kernel, files, &jobs, |line| {
        if let Some(line) = telling(line) {
            eprintln!("    {}: {line}", kernel.version);
        }
    })
}

/// Add the result of a job, as a step of the report.
fn add(report: &mut Report, kernel: &Kernel, outcome: &Outcome) {
    let mut tally = Tally::of(&outcome.lines);
    let name = format!("Linux {}, {}", kernel.version, outcome.name);
    if outcome.status != Some(0) {
        report.failed(&name, &outcome.lines);
        tally.failed = tally.failed.max(1);
    }
    report.add(&name, outcome.time, tally);
    match outcome.status {
        Some(0) => {}
        Some(143) => report.note("took too long"),
        Some(status) => report.note(&format!("exit status {status}")),
        None => report.note("the machine died"),
    }
}

/// Programs compiled once, for all kernels.
struct Built {
    object: PathBuf,
    /// The daemon and its tests, by name.
    programs: BTreeMap<String, PathBuf>,
    toolchain: Toolchain,
}

impl Built {
    fn new(suite: Suite) -> Result<Built> {
        let toolchain = setup::ebpf()?;
        let object = build_ebpf::product(&build_ebpf::build(&toolchain)?)?;
        let mut build = cargo(&["test", "--package", "ws-guard", "--no-run"]);
        build.arg("--message-format=json-render-diagnostics");
        for target in suite.targets() {
            build.args(["--test", target.name]);
        }
        eprintln!("  building the tests ...");
        let outcome = step::stream(&mut build, |_| {})?;
        ensure!(outcome.status.success(), "building the tests:\n{}", outcome.lines.join("\n"));
        if suite == Suite::Whole {
            step::run("building the server in Rust", tools::build_tungstenite_echo())?;
            setup::demo(ws_guard_testkit::servers::Library::Gorilla)?;
        }
        Ok(Built { object, programs: executables(&outcome.lines), toolchain })
    }

    fn program(&self, name: &str) -> Result<&Path> {
        let path = self.programs.get(name);
        path.map(PathBuf::as_path).with_context(|| format!("cargo built no {name}"))
    }

    fn job(&self, target: &Target) -> Result<Job> {
        let mut arguments = vec!["--show-output".to_owned()];
        if !target.only.is_empty() {
            arguments.push("--exact".to_owned());
        }
        arguments.extend(target.only.iter().map(ToString::to_string));
        arguments.extend(target.skip.iter().map(|name| format!("--skip={name}")));
        Ok(Job {
            name: target.name.to_owned(),
            limit: Duration::from_secs(target.minutes * 60),
            environment: vec![
                (OBJECT, self.object.display().to_string()),
                ("RUST_TEST_THREADS", "1".to_owned()),
            ],
            program: self.program(target.name)?.to_owned(),
            arguments,
        })
    }

    /// Return the file system of a machine.
    /// Everything has the same path as on this one, because the paths were compiled into the tests.
    fn files(&self, kernel: &Kernel, suite: Suite) -> Result<Initramfs> {
        let strip = self.toolchain.llvm_folder()?.join("llvm-objcopy");
        let mut files = Initramfs::default();
        files.add_tool("busybox", "/bin/busybox", &strip)?;
        files.add_tool("modprobe", "/sbin/modprobe", &strip)?;
        files.add_file(&self.object)?;
        for target in suite.targets() {
            let path = self.program(target.name)?;
            files.add_program(path, path, &strip)?;
        }
        if suite == Suite::Whole {
            let daemon = self.program("ws-guard")?;
            for path in [daemon, &tools::tungstenite_echo(), &tools::gorilla_echo()] {
                files.add_program(path, path, &strip)?;
            }
            files.add_modules(kernel, &MODULES)?;
        }
        for tool in TOOLS {
            files.add_tool(tool, &format!("/usr/bin/{tool}"), &strip)?;
        }
        Ok(files)
    }
}

/// Return the programs that cargo reports as built, by the names of their targets.
fn executables(lines: &[String]) -> BTreeMap<String, PathBuf> {
    let messages = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let artifacts = messages.filter(|message| message["reason"] == "compiler-artifact");
    let programs = artifacts.filter_map(|artifact| {
        let name = artifact["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(artifact["executable"].as_str()?)))
    });
    programs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let lines = [
            r#"{"reason":"compiler-artifact","target":{"name":"aya"},"executable":null}"#,
            "   Compiling ws-guard",
            r#"{"reason":"compiler-artifact","target":{"name":"guard"},"executable":"/t/guard-1"}"#,
        ];
        let found = executables(&lines.map(String::from));
        assert_eq!(found, BTreeMap::from([("guard".to_owned(), PathBuf::from("/t/guard-1"))]));
    }

    #[test]
    fn a_kernel_is_chosen_by_its_series() {
        assert_eq!("running".parse(), Ok(Choice::Running));
        assert_eq!("6.1".parse(), Ok(Choice::Release(Release { major: 6, minor: 1 })));
        assert!("newest".parse::<Choice>().is_err());
    }
}
