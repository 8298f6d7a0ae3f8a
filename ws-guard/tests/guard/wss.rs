//! `run --listen` with TLS:
//! frames that the server decrypts are charged to the sources of the kernel, which then acts on the
//! floods of `wss://` that it cannot read.
use std::{
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    netns::{Family, Pair, PairOptions},
    tools,
};

use crate::{
    process::Guard,
    stage::{Source, eventually},
};

const PORT: u16 = 9443;
const LIMIT: u64 = 30;
const WINDOW: Duration = Duration::from_secs(10);

/// Write a certificate for any name: names are not tested.
fn certify(folder: &Path) -> Result<String> {
    let made = rcgen::generate_simple_self_signed(vec!["ws-guard.test".into()])?;
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem())?;
    std::fs::write(path("chain.pem"), made.cert.pem())?;
    Ok(format!("--tls-certificate {} --tls-key {}", path("chain.pem"), path("key.pem")))
}

/// Ping over TLS as client number `n`, up to `most` times;
/// return the number of answers. Wait for each answer, or do not where `how` is `hurry`.
fn ping(pair: &Pair, family: Family, n: u8, most: u64, how: &str) -> Result<u64> {
    let mut command = pair.client.command(tools::python());
    command.arg(tools::foreign().join("wss_flood.py"));
    command.args([family.client(n).to_string(), family.server().to_string()]);
    command.args([PORT.to_string(), most.to_string(), how.to_string()]);
    let output = command.output().context("the flooder")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let line: Value = serde_json::from_str(text.trim()).with_context(|| error)?;
    line["answered"].as_u64().context("a number")
}

fn source(guard: &Guard, family: Family, n: u8) -> Result<Source> {
    let sources: Vec<Source> = guard.ask("sources")?;
    let name = crate::stage::source_name(family.client(n));
    Ok(sources.into_iter().find(|source| source.source == name).unwrap_or_default())
}

/// Return the pings of client number `n` in the server's log.
fn decrypted(access_log: &Path, family: Family, n: u8) -> Result<u64> {
    let client = SocketAddr::new(family.client(n), 0).to_string();
    let client = client.trim_end_matches('0');
    let text = std::fs::read_to_string(access_log)?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let of_client = lines.iter().filter(|line| {
        line["event"] == "close"
            && line["peer"].as_str().is_some_and(|peer| peer.starts_with(client))
    });
    Ok(of_client.filter_map(|line| line["pings_in"].as_u64()).sum())
}

#[test]
fn a_flood_inside_tls_is_dropped_and_others_are_served() -> Result<()> {
    needs_root!();
    flood(Family::V4, &format!("--port {PORT}/tls --action drop"), |source| {
        source.dropped_total > 0
    })
}

#[test]
fn over_ipv6_as_well() -> Result<()> {
    needs_root!();
    flood(Family::V6, &format!("--port {PORT}/tls --action drop"), |source| {
        source.dropped_total > 0
    })
}

/// Inside TLS nothing can be defused:
/// on a port that is marked, the connection is paced, and loses nothing.
#[test]
fn defuse_paces_on_a_port_that_is_marked() -> Result<()> {
    needs_root!();
    // Records alone do not cause it here.
    let words = format!("--port {PORT}/tls --max-record-rate 0 --action defuse");
    let paced = |source: &Source| source.paced == 1 && source.dropped_total == 0;
    Family::BOTH.into_iter().try_for_each(|family| flood(family, &words, paced))
}

/// On an unmarked port the sources are counted; only the server's limit applies.
#[test]
fn defuse_alone_leaves_it_to_the_server() -> Result<()> {
    needs_root!();
    let (pair, folder) = (Pair::new(PairOptions::default())?, tempfile::tempdir()?);
    let guard = start(&pair, folder.path(), &format!("--port {PORT} --action defuse"))?;
    let answered = ping(&pair, Family::V4, 0, 20_000, "hurry")?;
    ensure!(answered == LIMIT, "{answered} answered");
    eventually("it is throttled", || Ok(source(&guard, Family::V4, 0)?.state == "throttled"))?;
    let flooder = source(&guard, Family::V4, 0)?;
    ensure!(flooder.dropped_total == 0, "{flooder:?}");
    guard.finish()
}

fn start(pair: &Pair, folder: &Path, words: &str) -> Result<Guard> {
    let (access_log, tls) = (folder.join("access.jsonl"), certify(folder)?);
    Guard::start(
        &pair.server,
        &format!(
            "{words} --listen [::]:{PORT} --access-log {} {tls} --drain-timeout 1s \
             --stall-refuse 1h --stall-shed 1h --state-file none",
            access_log.display()
        ),
    )
}

/// Check that flooding client 0 is acted on within a window.
/// Client 1, within the limit, is served.
fn flood(family: Family, words: &str, acted_on: fn(&Source) -> bool) -> Result<()> {
    let pair = Pair::new(PairOptions { clients: 2, ..PairOptions::default() })?;
    let folder = tempfile::tempdir()?;
    let guard = start(&pair, folder.path(), words)?;

    // Pings within the limit are answered, and counted once.
    ensure!(
        ping(&pair, family, 1, 20, "patiently")? == 20,
        "20 pings keep to the limit of {LIMIT}"
    );
    eventually("the calm client's pings are charged", || {
        Ok(source(&guard, family, 1)?.pings_total >= 20)
    })?;
    let calm = source(&guard, family, 1)?;
    ensure!((calm.pings_total, &*calm.state, calm.dropped_total) == (20, "ok", 0), "{calm:?}");

    let start = Instant::now();
    let (answered, after) = thread::scope(|scope| {
        let flood = scope.spawn(|| ping(&pair, family, 0, 2_000_000, "hurry"));
        eventually("it is acted on", || Ok(acted_on(&source(&guard, family, 0)?)))?;
        let after = start.elapsed();
        let answered = flood.join().map_err(|_| anyhow!("the flooder panicked"))?;
        Ok::<_, anyhow::Error>((answered?, after))
    })?;
    ensure!(after < WINDOW, "not within a window: {after:?}");
    let flooder = source(&guard, family, 0)?;
    println!("{answered} answered; acted on {after:?} after the start: {flooder:?}");
    ensure!(answered <= LIMIT, "{answered} answered");
    ensure!(flooder.state == "throttled" && flooder.pings_total > LIMIT, "{flooder:?}");
    ensure!(ping(&pair, family, 1, 5, "patiently")? == 5, "the calm client is cut off as well");
    eventually("those are charged too", || Ok(source(&guard, family, 1)?.pings_total >= 25))?;
    ensure!(source(&guard, family, 1)?.dropped_total == 0, "of the calm client");
    // Bytes left in the flooder's TCP would arrive at the pace, long after its process has ended.
    guard.run("policy set --pace off")?;
    let access_log = folder.path().join("access.jsonl");
    let [mut charged, mut seen] = [[0; 2]; 2];
    let all = eventually("each ping is charged once", || {
        for n in [0, 1] {
            charged[n] = source(&guard, family, n as u8)?.pings_total;
            seen[n] = decrypted(&access_log, family, n as u8)?;
        }
        Ok(charged == seen)
    });
    all.with_context(|| format!("{seen:?} pings were decrypted, {charged:?} were charged"))?;
    guard.finish()
}
