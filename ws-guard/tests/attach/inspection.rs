//! Attachments removed under a daemon: it notices, reports, and attaches again.
use std::{fs, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{leftovers::hooks, netns::Namespace};

use crate::guard::{Guard, eventually};

const INTERFACE: &str = "--interface cali0";
/// Time limit for noticing and reporting it.
pub const NOTICE: std::time::Duration = std::time::Duration::from_secs(5);

fn node() -> Result<Namespace> {
    let node = Namespace::new("inspection")?;
    node.ip("link add cali0 type veth peer name p0")?;
    node.ip("link set cali0 up")?;
    Ok(node)
}

fn tc(node: &Namespace, words: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", node.path().display())).args(["--", "tc"]);
    let status = command.args(words.split_whitespace()).status()?;
    ensure!(status.success(), "tc {words}: {status}");
    Ok(())
}

/// Return the attached hooks, without the numbers of programs and links.
fn shape(node: &Namespace) -> Result<String> {
    let hooks = hooks(node, "cali0")?;
    let words = hooks.split_whitespace().filter(|word| word.parse::<u64>().is_err());
    Ok(words.filter(|word| !word.contains("tag")).collect::<Vec<_>>().join(" "))
}

/// Remove the pins in a folder with this part in their names; return their number.
/// It is at least one.
pub fn remove(guard: &Guard, folder: &str, part: &str) -> Result<usize> {
    let folder = guard.pin_dir.join(folder);
    let entries = fs::read_dir(&folder)?.flatten();
    let found: Vec<_> =
        entries.filter(|entry| entry.file_name().to_string_lossy().contains(part)).collect();
    ensure!(!found.is_empty(), "no {part} in {}", folder.display());
    found.iter().try_for_each(|entry| fs::remove_file(entry.path()))?;
    Ok(found.len())
}

type Theft = fn(&Namespace, &Guard) -> Result<()>;

#[test]
fn what_is_taken_away_is_put_back_and_said() -> Result<()> {
    needs_root!();
    let thefts: [(&str, &str, Theft); 6] = [
        ("clsact", "the qdisc", |node, _| tc(node, "qdisc del dev cali0 clsact")),
        ("clsact", "one filter", |node, _| tc(node, "filter del dev cali0 ingress")),
        ("clsact", "the pins of filters", |_, guard| remove(guard, "filters", "-clsact").map(drop)),
        ("tcx", "the pin of a link", |_, guard| remove(guard, "links", "-in-tcx").map(drop)),
        ("xdp-generic", "the pin of the XDP link", |_, guard| {
            remove(guard, "links", "-in-xdp").map(drop)
        }),
        ("tcx", "the folder of links", |_, guard| {
            remove(guard, "links", "cali0")?;
            Ok(fs::remove_dir(guard.pin_dir.join("links"))?)
        }),
    ];
    for (attach, what, steal) in thefts {
        let node = node()?;
        let guard = Guard::start(&node, &format!("{INTERFACE} --attach {attach}"))?;
        let (before, pins) = (shape(&node)?, guard.pins());
        let start = Instant::now();
        steal(&node, &guard).with_context(|| what.to_owned())?;
        eventually(what, || Ok(guard.log().contains("cali0 is reattached")))?;
        let noticed = start.elapsed();
        println!("{attach}: {what} noticed after {noticed:?}");
        ensure!(noticed < NOTICE, "{what}: {noticed:?}");
        ensure!(guard.log().contains("cali0 lost its attachment"), "{}", guard.log());
        ensure!(guard.attached()? == 1, "{what}");
        ensure!(shape(&node)? == before, "{what}: {before}\n{}", shape(&node)?);
        let notes = |pins: &[String]| {
            pins.iter().filter(|pin| !pin.contains("-qdisc-")).cloned().collect::<Vec<_>>()
        };
        ensure!(notes(&guard.pins()) == notes(&pins), "{what}: {:?}", guard.pins());
        guard.finish()?;
    }
    Ok(())
}

#[test]
fn who_asks_not_to_be_attached_again_is_told() -> Result<()> {
    needs_root!();
    let node = node()?;
    let guard = Guard::start(&node, &format!("{INTERFACE} --attach clsact --reattach=false"))?;
    tc(&node, "qdisc del dev cali0 clsact")?;
    eventually("it says so", || Ok(guard.log().contains("it is not reattached")))?;
    let row = guard.interface("cali0")?.context("cali0")?;
    ensure!(row["ingress"].is_null() && row["egress"].is_null(), "{row}");
    std::thread::sleep(NOTICE);
    ensure!(guard.attached()? == 0);
    let said = guard.log().matches("ERROR").count();
    ensure!(said == 1, "said {said} times: {}", guard.log());
    guard.finish()
}

#[test]
fn a_daemon_with_another_socket_is_not_unloaded() -> Result<()> {
    needs_root!();
    let node = node()?;
    let mut guard = Guard::start(&node, INTERFACE)?;
    let unload = |more: &[&str]| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", node.path().display())).arg("--");
        command.arg(env!("CARGO_BIN_EXE_ws-guard")).arg("--pin-dir").arg(&guard.pin_dir);
        command.args(["--control-socket", "/nowhere/control.sock", "unload"]).args(more);
        command.output().context("ws-guard")
    };
    let refused = unload(&[])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && said.contains("another ws-guard runs"), "{said}");
    ensure!(guard.attached()? == 1);
    let forced = unload(&["--force"])?;
    ensure!(forced.status.success(), "{}", String::from_utf8_lossy(&forced.stderr));
    eventually("it says so", || Ok(guard.log().contains("were removed: they are not restored")))?;
    eventually("it knows", || Ok(guard.attached()? == 0))?;
    guard.stop()?;
    ensure!(!guard.pin_dir.exists(), "{} is left behind", guard.pin_dir.display());
    // The pins without a daemon: nothing is loaded.
    let status = guard.outside("status")?;
    ensure!(!status.status.success());
    Ok(())
}
