//! `unload` from another network namespace than the interface's.
use std::fs;

use anyhow::{Result, ensure};
use ws_guard_testkit::{leftovers::hooks, netns::Namespace};

use crate::guard::Guard;

fn guarded(attach: &str) -> Result<(Namespace, Guard, String)> {
    let node = Namespace::new("elsewhere")?;
    node.ip("link add cali0 type veth peer name p0")?;
    node.ip("link set cali0 up")?;
    let bare = hooks(&node, "cali0")?;
    let mut guard =
        Guard::start(&node, &format!("--interface p0 --pod-interface cali* --attach {attach}"))?;
    ensure!(guard.attached()? == 2);
    guard.stop()?;
    Ok((node, guard, bare))
}

#[test]
fn unload_reaches_other_namespaces() -> Result<()> {
    needs_root!();
    for attach in ["auto", "clsact"] {
        let (node, guard, bare) = guarded(attach)?;
        let status = guard.outside("status -o json")?;
        let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
        ensure!(status["interfaces"].as_array().is_some_and(|rows| rows.len() == 2), "{status}");
        let output = guard.outside("unload")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{attach}: {said}");
        ensure!(!guard.pin_dir.exists());
        let now = hooks(&node, "cali0")?;
        ensure!(now == bare, "{attach}: it was\n{bare}\nand is\n{now}");
    }
    Ok(())
}

/// An unreachable namespace:
/// unload says what it could not reach, and leaves everything needed to do it from there.
#[test]
fn unload_says_what_it_cannot_reach() -> Result<()> {
    needs_root!();
    let (node, guard, _) = guarded("clsact")?;
    // No file of a namespace has this inode.
    let filters = guard.pin_dir.join("filters");
    let note = guard.pins().into_iter().find(|name| name.starts_with("cali0-netns-"));
    let note = note.ok_or_else(|| anyhow::anyhow!("no note: {:?}", guard.pins()))?;
    fs::rename(filters.join(&note), filters.join("cali0-netns-1"))?;
    let output = guard.outside("unload")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{said}");
    for part in ["cali0", "nsenter --net", "namespace 1,"] {
        ensure!(said.contains(part), "{part} in {said}");
    }
    ensure!(hooks(&node, "p0")?.contains("XDP: false"), "what can be reached is");
    ensure!(!hooks(&node, "p0")?.contains("ws_guard"), "what can be reached is detached");
    ensure!(hooks(&node, "cali0")?.contains("ws_guard"), "what cannot be is not");
    ensure!(guard.pin_dir.join("FLOWS").exists(), "the maps of what still runs stay");
    fs::rename(filters.join("cali0-netns-1"), filters.join(&note))?;
    let output = guard.outside("unload")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!hooks(&node, "cali0")?.contains("ws_guard"));
    Ok(())
}
