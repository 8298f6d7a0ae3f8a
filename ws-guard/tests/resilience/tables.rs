//! Full tables: newcomers are counted and treated as configured, others stay.
use std::thread;

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::Frame,
    netns::Family,
};

use crate::stage::{Stage, eventually, number};

/// Capacity of the table under test.
const ROOM: usize = 64;
const MORE: usize = 36;
/// Number of client addresses: enough that no source comes near its limit.
const ADDRESSES: u8 = 100;

/// Counters of the metrics page.
const REFUSED_FLOWS: &str = r#"wsguard_flow_events_total{event="refused"}"#;
const REFUSED_SOURCES: &str = r#"wsguard_source_events_total{event="refused"}"#;

/// Send a message and a ping on each connection, and wait for both answers.
fn talk(clients: &mut [Client]) -> Result<()> {
    let frames = [Frame::text("hello"), Frame::ping("?")];
    clients.iter_mut().try_for_each(|client| client.send(&frames, &Cut::Whole))?;
    for client in clients {
        let sent = client.sent();
        eventually("the answers", || {
            let received = client.received();
            Ok((received.messages, received.pongs) == (sent.messages, sent.pings))
        })
        .with_context(|| format!("{} sent {sent:?}", client.local()))?;
    }
    Ok(())
}

/// Check that each flow is in the table, with everything that the client sent.
fn tracked(stage: &Stage, clients: &[Client]) -> Result<()> {
    let flows = stage.ask("flows")?;
    for client in clients {
        let (name, sent) = (client.local().to_string(), client.sent());
        let flow = flows.as_array().and_then(|rows| rows.iter().find(|row| row["client"] == name));
        let flow = flow.with_context(|| format!("{name} is not in {flows}"))?;
        let counts = (number(&flow["frames_in"])?, number(&flow["pings_in"])?);
        ensure!(counts == (sent.frames, sent.pings), "{sent:?}: {flow}");
    }
    // Connections that the table had no room for are midstream candidates.
    let open =
        flows.as_array().map(|rows| rows.iter().filter(|row| row["state"] == "open").count());
    ensure!(open == Some(clients.len()), "others are in {flows}");
    Ok(())
}

/// Return a counter that must be in the metrics.
fn metric(stage: &Stage, name: &str) -> Result<u64> {
    let figures = stage.metrics()?;
    figures.get(name).copied().with_context(|| format!("no {name} in {figures:?}"))
}

/// Wait until the metric has this value.
/// An answer to a scrape holds for up to a second.
fn reaches(stage: &Stage, name: &str, wanted: u64) -> Result<()> {
    eventually(&format!("{name} is {wanted}"), || Ok(metric(stage, name)? == wanted))
}

fn connect(stage: &Stage, numbers: std::ops::Range<usize>) -> Result<Vec<Client>> {
    numbers.map(|n| stage.connect(n as u8)).collect()
}

#[test]
fn a_full_flow_table_lets_newcomers_through_untracked() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(ADDRESSES, &["--max-flows", "64"])?;
    let mut settled = connect(&stage, 0..ROOM)?;
    talk(&mut settled)?;
    let mut others = connect(&stage, ROOM..ROOM + MORE)?;
    reaches(&stage, REFUSED_FLOWS, MORE as u64)?;
    talk(&mut others)?;
    talk(&mut settled)?;
    tracked(&stage, &settled)?;

    // Room is freed when a connection ends; the table is searched for it once a second.
    settled.pop().context("no connection")?.close()?;
    eventually("a newcomer is tracked", || {
        let newcomer = stage.connect(0)?;
        Ok(stage.flow(newcomer.local()).is_ok())
    })?;
    drop((settled, others));
    let totals = stage.stop_server()?;
    ensure!(totals.pings == (2 * ROOM + MORE) as u64, "{totals:?}");
    stage.finish()
}

#[test]
fn a_full_flow_table_refuses_newcomers_where_it_shall() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(ADDRESSES, &["--max-flows", "64", "--on-full-flows", "closed"])?;
    let mut settled = connect(&stage, 0..ROOM)?;
    talk(&mut settled)?;
    let (start, stage_ref) = (ROOM as u8, &stage);
    let refused = thread::scope(|scope| {
        // Simultaneously: each waits for an answer that never comes.
        let connects = (start..start + MORE as u8).map(|n| move || stage_ref.connect(n).is_err());
        let all: Vec<_> = connects.map(|connect| scope.spawn(connect)).collect();
        all.into_iter().filter_map(|one| one.join().ok()).filter(|refused| *refused).count()
    });
    ensure!(refused == MORE, "only {refused} of {MORE} were refused");
    // The server retransmits its answer, and each one is refused.
    ensure!(metric(&stage, REFUSED_FLOWS)? >= MORE as u64, "{:?}", stage.metrics()?);
    talk(&mut settled)?;
    tracked(&stage, &settled)?;
    stage.stop_server()?;
    stage.finish()
}

/// Number of real connections, of 250 addresses:
/// about as many as a process may have with 20,000 files open, two each, in addition to the tests
/// that run at the same time.
const CROWD: usize = 9_400;

#[test]
fn a_crowd_of_connections_with_room_for_a_thousand() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(250, &["--max-flows", "1000", "--max-sources", "100"])?;
    let mut crowd = Vec::with_capacity(CROWD);
    for n in 0..CROWD {
        crowd.push(stage.connect((n % 250) as u8).with_context(|| format!("connection {n}"))?);
    }
    reaches(&stage, REFUSED_FLOWS, (CROWD - 1000) as u64)?;
    // Tracked connections are counted exactly, and the others are served all the same.
    talk(&mut crowd[..1000])?;
    talk(&mut crowd[CROWD - 100..])?;
    tracked(&stage, &crowd[..1000])?;
    ensure!(in_table(&stage)? == 100, "the source table is not full");
    // 250 addresses pinged once on each of four tracked connections.
    reaches(&stage, REFUSED_SOURCES, 150 * 4)?;
    for n in 0..100 {
        let source = stage.source(Family::V4.client(n))?;
        ensure!(number(&source["pings_total"])? == 4 && source["state"] == "ok", "{source}");
    }
    drop(crowd);
    stage.stop_server()?;
    stage.finish()
}

/// Return the number of source table entries, without coarser prefixes.
fn in_table(stage: &Stage) -> Result<u64> {
    number(&stage.ask("status")?["tables"]["sources"]["entries"])
}

/// Default of `--max-ping-rate`.
const LIMIT: u64 = 30;

/// Connect clients past the capacity of the source table;
/// return the pongs that the last ones got for a ping.
fn newcomers_among_sources(policy: &str) -> Result<u64> {
    let options = ["--max-sources", "64", "--on-full-sources", policy, "--connection-share", "0"];
    let mut stage = Stage::new(ADDRESSES, &options)?;
    let mut settled = connect(&stage, 0..ROOM)?;
    talk(&mut settled)?;
    let mut others = connect(&stage, ROOM..ROOM + MORE)?;
    for client in &mut others {
        client.send(&[Frame::ping("?"), Frame::text("hello")], &Cut::Whole)?;
    }
    for client in &others {
        // The echo follows the pong, if there is one.
        eventually("the echo", || Ok(client.received().messages == 1))?;
    }
    let pongs = others.iter().map(|client| client.received().pongs).sum();
    reaches(&stage, REFUSED_SOURCES, MORE as u64)?;
    talk(&mut settled)?;
    for n in 0..ROOM {
        let source = stage.source(Family::V4.client(n as u8))?;
        ensure!(number(&source["pings_total"])? == 2 && source["state"] == "ok", "{source}");
    }
    ensure!(in_table(&stage)? == ROOM as u64, "not {ROOM} sources");
    drop((settled, others));
    let totals = stage.stop_server()?;
    ensure!(totals.pings == 2 * ROOM as u64 + pongs, "{totals:?}");
    ensure!(totals.pongs == MORE as u64 - pongs, "{totals:?}");
    stage.finish()?;
    Ok(pongs)
}

#[test]
fn a_full_source_table_answers_newcomers_or_not() -> Result<()> {
    needs_root!();
    let (coarser, closed) =
        (newcomers_among_sources("coarser")?, newcomers_among_sources("closed")?);
    // Clients of one coarser prefix share a limit.
    ensure!((coarser, closed) == (LIMIT, 0), "{coarser} and {closed} pongs for {MORE} pings");
    Ok(())
}
