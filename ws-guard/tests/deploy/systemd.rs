//! Systemd units of hosts without Kubernetes.
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::files::{self, find, objects};

/// Unit, and its maximum exposure: 0 is none, 10 all.
const UNITS: [(&str, f64); 2] = [("ws-guard", 2.0), ("ws-guard-server", 1.5)];

#[test]
fn units_are_hardened() -> Result<()> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped: there is no systemd-analyze");
        return Ok(());
    }
    for (name, most) in UNITS {
        let unit = format!("{name}.service");
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", "--no-pager"]);
        analyze.arg(files::path(&format!("deploy/systemd/{unit}")));
        let said = files::run(analyze)?;
        let (_, level) = said.split_once(&format!("for {unit}: ")).context("no overall level")?;
        let level: f64 = level.split_whitespace().next().context("no figure")?.parse()?;
        println!("{unit}: exposure {level}");
        ensure!(level <= most, "{unit} has an exposure of {level}, more than {most}");
    }
    Ok(())
}

/// The same capabilities with and without Kubernetes.
#[test]
fn the_guard_has_the_capabilities_of_its_container() -> Result<()> {
    let objects = objects("base")?;
    let guard = find(&objects, "DaemonSet", "ws-guard")?;
    let container = &guard["spec"]["template"]["spec"]["containers"][0];
    let added = container["securityContext"]["capabilities"]["add"].as_array();
    let added: Vec<String> = added
        .context("no capabilities")?
        .iter()
        .filter_map(|name| name.as_str())
        .map(|name| format!("CAP_{name}"))
        .collect();
    let unit = files::read("deploy/systemd/ws-guard.service")?;
    for setting in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        let line = format!("{setting}={}", added.join(" "));
        ensure!(unit.lines().any(|has| has == line), "the unit has no line `{line}`");
    }
    Ok(())
}
