//! Changes of policy: in force from the next packet on.
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::Frame,
};

use crate::stage::{Stage, eventually, number};

/// Interval between two pings: 30 in the window below.
const EVERY: Duration = Duration::from_millis(100);
const WINDOW: Duration = Duration::from_secs(3);
/// Steps of the guard's clock, and the transit time of a packet.
const SLACK: Duration = Duration::from_millis(60);

/// Send numbered pings at a steady pace until stopped; return the time of each.
fn ping_steadily(client: &mut Client, stop: &AtomicBool) -> Result<Vec<Instant>> {
    let mut sent = Vec::new();
    while !stop.load(Relaxed) {
        client.send_one(Frame::ping(sent.len().to_string()))?;
        sent.push(Instant::now());
        thread::sleep(EVERY);
    }
    Ok(sent)
}

/// Return for each ping whether it was answered.
fn answered(client: &Client, pings: usize) -> Vec<bool> {
    let mut answered = vec![false; pings];
    for payload in &client.received().pong_payloads {
        let number = String::from_utf8_lossy(payload).parse::<usize>();
        if let Some(slot) = number.ok().and_then(|number| answered.get_mut(number)) {
            *slot = true;
        }
    }
    answered
}

/// Times around a change of policy.
/// It is in force when the call returns, and not only some time later.
struct Change {
    before: Instant,
    after: Instant,
}

fn set(stage: &Stage, limit: &str) -> Result<Change> {
    let before = Instant::now();
    stage.cli(&["policy", "set", "--max-ping-rate", limit])?;
    Ok(Change { before, after: Instant::now() })
}

#[test]
fn a_new_limit_holds_from_the_next_ping_on_and_back() -> Result<()> {
    needs_root!();
    let options = ["--max-ping-rate", "60", "--window-seconds", "3", "--connection-share", "0"];
    let mut stage = Stage::new(1, &options)?;
    let mut client = stage.connect(0)?;
    let local = client.local();
    let stop = AtomicBool::new(false);
    let (sent, lower, higher) = thread::scope(|scope| -> Result<_> {
        let pinging = scope.spawn(|| ping_steadily(&mut client, &stop));
        thread::sleep(Duration::from_millis(2500));
        let changes = set(&stage, "10").and_then(|lower| {
            thread::sleep(Duration::from_secs(1));
            Ok((lower, set(&stage, "60")?))
        });
        thread::sleep(WINDOW + Duration::from_secs(2));
        stop.store(true, Relaxed);
        let sent = pinging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (lower, higher) = changes?;
        Ok((sent, lower, higher))
    })?;
    let pings = sent.len() as u64;
    eventually("every ping is counted", || {
        Ok(number(&stage.source(local.ip())?["pings_total"])? >= pings)
    })?;
    let source = stage.source(local.ip())?;
    let passed = pings - number(&source["defused_total"])?;
    eventually("pongs arrive", || Ok(client.received().pongs >= passed))?;

    let answered = answered(&client, sent.len());
    let (mut early, mut late, mut freed) = (0, 0, 0);
    for (number, (at, answered)) in sent.iter().zip(&answered).enumerate() {
        if *at < lower.before {
            ensure!(answered, "ping {number} kept to the limit of 60 and was not answered");
            early += 1;
        } else if *at > lower.after + SLACK && *at + SLACK < higher.before {
            ensure!(!answered, "ping {number} was over the limit of 10 and was answered");
            late += 1;
        } else if *at > higher.after + SLACK {
            ensure!(answered, "ping {number} kept to the limit of 60 again, not answered");
            freed += 1;
        }
    }
    println!("{early} answered, then {late} not, then {freed} answered, of {pings} pings");
    ensure!(early > 15 && late > 5 && freed > 5, "too few pings to prove anything");
    ensure!(client.received().pongs == passed, "{} pongs", client.received().pongs);
    ensure!(number(&source["pings_total"])? == pings, "{source}");
    drop(client);
    let totals = stage.stop_server()?;
    ensure!(totals.pings == passed && totals.pongs == pings - passed, "{totals:?}");
    stage.finish()
}

/// Send pings in one segment; return the number of answers, once all were counted.
fn burst(stage: &Stage, client: &mut Client, pings: usize) -> Result<u64> {
    let before = client.received().pongs;
    client.send(&vec![Frame::ping("?"); pings], &Cut::Whole)?;
    let messages = client.sent().messages + 1;
    // The echo follows the pongs.
    client.send_one(Frame::text("done"))?;
    eventually("the echo", || Ok(client.received().messages >= messages))?;
    let source = stage.source(client.local().ip())?;
    ensure!(number(&source["pings_total"])? == client.sent().pings, "{source}");
    let pongs = client.received().pongs;
    Ok(pongs - before)
}

/// Send 50 pings under one limit, then 10 under a lower one, already exceeded.
fn lowered(from: &str, to: &str) -> Result<()> {
    let options = ["--max-ping-rate", from, "--window-seconds", "600", "--connection-share", "0"];
    let stage = Stage::new(1, &options)?;
    let mut client = stage.connect(0)?;
    ensure!(burst(&stage, &mut client, 50)? == 50, "the limit was {from}");
    set(&stage, to)?;
    let answered = burst(&stage, &mut client, 10)?;
    ensure!(answered == 0, "{answered} of 10 pings answered after 50, from {from} down to {to}");
    drop(client);
    stage.finish()
}

#[test]
fn pings_from_before_count_under_the_new_limit() -> Result<()> {
    needs_root!();
    lowered("60", "30")
}

/// Above 64 the window's log counts in groups (`ws_guard_common::window`):
/// it is rewritten when the limit crosses that, in both directions.
#[test]
fn pings_from_before_count_where_the_log_changes_its_groups() -> Result<()> {
    needs_root!();
    lowered("100", "30")?;
    let options = ["--max-ping-rate", "60", "--window-seconds", "600", "--connection-share", "0"];
    let stage = Stage::new(1, &options)?;
    let mut client = stage.connect(0)?;
    ensure!(burst(&stage, &mut client, 50)? == 50, "the limit was 60");
    set(&stage, "100")?;
    let answered = burst(&stage, &mut client, 60)?;
    // 50 of the new limit are gone; a group of two may be one short.
    ensure!((50..=51).contains(&answered), "{answered} of 60 pings answered, from 60 up to 100");
    drop(client);
    stage.finish()
}
