//! Interfaces added, removed and renamed while the daemon runs, and while not.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use ws_guard_testkit::{leftovers::hooks, netns::Namespace, process::Process};

use crate::guard::{Guard, eventually};

const PODS: &str = "--pod-interface cali*";

/// Return `ip` lines that make the veth pairs `cali0`, `p0` etc. and bring them up.
fn veths(numbers: std::ops::Range<usize>) -> String {
    let line = |n| format!("link add cali{n} type veth peer name p{n}\nlink set cali{n} up\n");
    numbers.map(line).collect()
}

fn removals(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|n| format!("link del cali{n}\n")).collect()
}

/// Wait until this number of interfaces is attached; return the time it took.
fn time_until_attached(guard: &Guard, count: usize) -> Result<Duration> {
    let start = Instant::now();
    eventually("all are attached", || Ok(guard.attached()? == count))?;
    Ok(start.elapsed())
}

#[test]
fn pods_are_guarded_as_they_come_and_leave_nothing() -> Result<()> {
    needs_root!();
    for attach in ["auto", "clsact"] {
        let node = Namespace::new("hotplug")?;
        let guard = Guard::start(&node, &format!("{PODS} --attach {attach}"))?;
        ensure!(guard.log().contains("no interface matches"), "{}", guard.log());
        ensure!(guard.pins().is_empty(), "{:?}", guard.pins());
        node.ip_batch(&veths(0..1))?;
        let one = time_until_attached(&guard, 1)?;
        let mode = if attach == "auto" { "tcx" } else { attach };
        let row = guard.interface("cali0")?.context("cali0")?;
        ensure!((&row["ingress"], &row["egress"]) == (&mode.into(), &mode.into()), "{row}");
        ensure!(row["role"] == "pod", "{row}");
        let start = Instant::now();
        node.ip_batch(&veths(1..50))?;
        let made = start.elapsed();
        let many = time_until_attached(&guard, 50)?;
        // TCX waits for an RCU grace period per attachment, and simultaneous ones queue.
        println!(
            "{attach}: one pod {one:?}; 49 more made in {made:?}, all attached {many:?} later"
        );
        node.ip_batch(&removals(0..50))?;
        eventually("no pins are left", || Ok(guard.pins().is_empty()))?;
        ensure!(guard.attached()? == 0);
        guard.finish()?;
    }
    Ok(())
}

/// A daemon stopped for a while, which loses notifications of the kernel.
/// One of them is the end of an interface whose beginning is still queued. It shows the interfaces
/// that exist, and no other.
#[test]
fn changes_that_were_lost_leave_no_ghost() -> Result<()> {
    needs_root!();
    let node = Namespace::new("ghost")?;
    node.ip_batch(&veths(0..1))?;
    let guard = Guard::start(&node, PODS)?;
    time_until_attached(&guard, 1)?;
    guard.signal(Signal::SIGSTOP)?;
    node.ip_batch(&veths(1..2))?;
    let noise = |n| format!("link set lo mtu {}\n", 1400 + n % 2);
    node.ip_batch(&(0..2000).map(noise).collect::<String>())?;
    node.ip_batch(&removals(0..2))?;
    node.ip_batch(&veths(2..3))?;
    guard.signal(Signal::SIGCONT)?;
    eventually("what exists is guarded, and nothing else is shown", || {
        let shown = ["cali0", "cali1", "cali2"].map(|name| guard.interface(name));
        let [gone, ghost, new] = shown;
        let attached = new?.is_some_and(|row| row["egress"].is_string());
        let pins = guard.pins();
        let left = pins.iter().any(|pin| pin.contains("cali0") || pin.contains("cali1"));
        Ok(gone?.is_none() && ghost?.is_none() && attached && !left)
    })?;
    guard.finish()
}

/// Interfaces renamed by CNI plugins.
/// Renaming out of the pattern ends the guard there, with nothing left.
#[test]
fn a_name_decides_whether_an_interface_is_guarded() -> Result<()> {
    needs_root!();
    for attach in ["auto", "clsact"] {
        let node = Namespace::new("rename")?;
        node.ip("link add tmp0 type veth peer name p0")?;
        let bare = |name: &str| Ok::<_, anyhow::Error>(hooks(&node, name)?.replace(name, "IF"));
        let before = bare("tmp0")?;
        let guard = Guard::start(&node, &format!("{PODS} --attach {attach}"))?;
        for _ in 0..2 {
            node.ip("link set tmp0 name cali0")?;
            eventually("it is guarded", || Ok(guard.attached()? == 1))?;
            node.ip("link set cali0 name cali1.5")?;
            eventually("it is guarded by its new name", || {
                let new = guard.interface("cali1.5")?;
                let attached = new.is_some_and(|row| row["egress"].is_string());
                Ok(attached && guard.interface("cali0")?.is_none())
            })?;
            ensure!(guard.pins().iter().all(|pin| !pin.contains("cali0")), "{:?}", guard.pins());
            node.ip("link set cali1.5 name tmp0")?;
            eventually("no pins are left", || Ok(guard.pins().is_empty()))?;
            ensure!(guard.attached()? == 0);
            let after = bare("tmp0")?;
            ensure!(after == before, "it was\n{before}\nand is\n{after}");
        }
        guard.finish()?;
    }
    Ok(())
}

/// Pods removed without a daemon leave pins.
/// The next daemon removes them and guards the others.
#[test]
fn pods_come_and_go_while_the_daemon_is_down() -> Result<()> {
    needs_root!();
    for attach in ["auto", "clsact"] {
        let node = Namespace::new("down")?;
        node.ip_batch(&veths(0..3))?;
        let mut guard = Guard::start(&node, &format!("{PODS} --attach {attach}"))?;
        time_until_attached(&guard, 3)?;
        guard.stop()?;
        ensure!(guard.attached()? == 3, "the pins say what is attached");
        ensure!(guard.interface("cali0")?.context("cali0")?["role"] == "pod");
        node.ip_batch(&removals(0..2))?;
        node.ip_batch(&veths(1..2))?;
        ensure!(guard.attached()? <= 2, "what is gone is not shown");
        guard.restart()?;
        time_until_attached(&guard, 2)?;
        let pins = guard.pins();
        ensure!(!pins.is_empty() && pins.iter().all(|pin| !pin.contains("cali0")), "{pins:?}");
        guard.finish()?;
    }
    Ok(())
}

/// One interface, first an uplink, then a pod's: the pins of the old role go.
#[test]
fn a_role_may_change() -> Result<()> {
    needs_root!();
    let node = Namespace::new("role")?;
    node.ip_batch(&veths(0..1))?;
    let mut guard = Guard::start(&node, "--interface *0 --attach tcx")?;
    for (words, role, pins) in [
        ("--pod-interface cali*", "pod", ["pod:cali0-in-tcx", "pod:cali0-out-tcx"]),
        ("--interface cali0 --pod-interface *", "uplink", ["cali0-in-xdp-native", "cali0-out-tcx"]),
        ("--interface * --pod-interface cali0", "pod", ["pod:cali0-in-tcx", "pod:cali0-out-tcx"]),
    ] {
        guard.stop()?;
        guard.set_words(words);
        guard.restart()?;
        let row = guard.interface("cali0")?.context("cali0")?;
        ensure!(row["role"] == role, "{words}: {row}");
        let found: Vec<String> =
            guard.pins().into_iter().filter(|pin| pin.contains("cali0")).collect();
        ensure!(found == pins, "{words}: {found:?}");
    }
    guard.finish()
}

#[test]
fn a_missing_name_is_an_error_and_an_idle_pattern_is_not() -> Result<()> {
    needs_root!();
    let node = Namespace::new("missing")?;
    let pin_dir = format!("/sys/fs/bpf/wsg-missing-{}", std::process::id());
    let mut command = node.command(env!("CARGO_BIN_EXE_ws-guard"));
    command.args(["--pin-dir", &pin_dir, "run", "--port", "80", "--interface", "eth7"]);
    let mut daemon = Process::spawn("ws-guard run", command)?;
    daemon.wait_for(Duration::from_secs(10), |line| {
        (line.contains("eth7 does not exist") && line.contains("'eth7*'")).then_some(())
    })?;
    eventually("it ends", || Ok(daemon.ended()?.is_some()))?;
    ensure!(daemon.ended()?.context("ended")?.code() == Some(1));
    ensure!(!std::path::Path::new(&pin_dir).exists(), "nothing was loaded");

    let guard = Guard::start(&node, "--interface eth7*")?;
    let status = guard.ask("status")?;
    let pattern = serde_json::json!({"pattern": "eth7*", "role": "uplink", "interfaces": 0});
    ensure!(status["patterns"][0] == pattern, "{status}");
    node.ip("link add eth7 type veth peer name p7")?;
    time_until_attached(&guard, 1)?;
    ensure!(guard.interface("eth7")?.context("eth7")?["role"] == "uplink");
    guard.finish()
}

/// Figures for the documentation: cost of many interfaces.
#[test]
fn two_hundred_pods() -> Result<()> {
    needs_root!();
    let node = Namespace::new("many")?;
    node.ip_batch(&veths(0..200))?;
    let start = Instant::now();
    let mut guard = Guard::start(&node, PODS)?;
    let first = start.elapsed();
    ensure!(guard.attached()? == 200);
    guard.stop()?;
    let start = Instant::now();
    guard.restart()?;
    let again = start.elapsed();
    ensure!(guard.attached()? == 200);
    println!("200 pods: ready after {first:?}, and {again:?} when taken over");
    let start = Instant::now();
    guard.finish()?;
    println!("unloaded in {:?}", start.elapsed());
    Ok(())
}
