//! Spoofed packets: they create no state, and hurt no connection.
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::{Frame, encode},
    packets::{REQUEST, SWITCHING},
    raw::{Flags, SPOOFED, Segment, Sender},
};

use crate::stage::{Stage, eventually, number};

/// Number of packets, each from a separate source.
const PACKETS: u32 = 1_000_000;
/// Size of the table of pending handshakes, the daemon's default.
const PENDING: u64 = 4096;

/// Return payloads of spoofed data segments.
fn payloads() -> Vec<Vec<u8>> {
    let pings = encode(&vec![Frame::ping("x"); 20]);
    vec![pings, REQUEST.to_vec(), encode(&[Frame::text("hello")]), SWITCHING.to_vec()]
}

/// Make the server answer spoofed sources, so that its side is in the flood too.
fn route_back(stage: &Stage) -> Result<()> {
    stage.pair.server.ip(&format!("route add {SPOOFED} via 10.77.0.1"))
}

/// Return the state that must not grow: flows, sources, unsynced and throttled.
fn state(stage: &Stage) -> Result<[u64; 4]> {
    let status = stage.ask("status")?;
    let tables = &status["tables"];
    let states = &status["flow_states"];
    Ok([
        number(&tables["flows"]["entries"])?,
        number(&tables["sources"]["entries"])?,
        number(&states["unsynced"])?,
        number(&status["throttled"])?,
    ])
}

/// Check that everything the client sent was counted once, and answered.
fn exact(stage: &Stage, client: &Client) -> Result<()> {
    let sent = client.sent();
    let name = client.local();
    eventually("all answers", || Ok(client.received().messages >= sent.messages))?;
    eventually("all pongs", || Ok(client.received().pongs >= sent.pings))?;
    let flow = stage.flow(name)?;
    ensure!(flow["state"] == "open", "{flow}");
    ensure!(number(&flow["frames_in"])? == sent.frames, "{sent:?} was sent: {flow}");
    ensure!(number(&flow["pings_in"])? == sent.pings, "{sent:?} was sent: {flow}");
    ensure!(number(&flow["defused"])? == 0, "{flow}");
    let received = client.received();
    ensure!((received.messages, received.pongs) == (sent.messages, sent.pings), "{received:?}");
    drop(received);
    let source = stage.source(name.ip())?;
    ensure!(source["state"] == "ok", "{source}");
    ensure!(number(&source["pings_total"])? == sent.pings, "{sent:?} was sent: {source}");
    Ok(())
}

/// Send a message and a ping.
fn talk(client: &mut Client) -> Result<()> {
    client.send(&[Frame::text("still here"), Frame::ping("?")], &Cut::Whole)
}

#[test]
fn a_million_spoofed_sources_make_no_state_and_evict_none() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(8, &["--max-ping-rate", "30"])?;
    route_back(&stage)?;
    let mut settled = stage.connect(0)?;
    talk(&mut settled)?;
    exact(&stage, &settled)?;
    let before = state(&stage)?;
    ensure!(before == [1, 1, 0, 0], "{before:?}");
    let seen = number(&stage.ask("status")?["packets"]["seen"])?;

    let sender = Sender::new(&stage.pair)?;
    let destination = stage.address();
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let (mut newcomers, took, during) = thread::scope(|scope| -> Result<_> {
        let flooding = scope.spawn(|| {
            let result = sender.spoofed_flood(destination, PACKETS, &payloads());
            done.store(true, Relaxed);
            result.map(|()| start.elapsed())
        });
        let newcomers = join_during(&stage, &mut settled, &done);
        let took = flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (newcomers, during) = newcomers?;
        Ok((newcomers, took, during))
    })?;
    let status = stage.ask("status")?;
    let flooded = number(&status["packets"]["seen"])? - seen;
    println!(
        "{PACKETS} packets in {took:?}, {flooded} seen, {during} rounds of talk meanwhile, \
         pending {}",
        status["tables"]["pending"]
    );
    ensure!(flooded >= u64::from(PACKETS), "the guard saw only {flooded} of {PACKETS} packets");
    ensure!(during > 0, "the flood was over before anybody could say a word");
    exact(&stage, &settled)?;
    newcomers.iter().try_for_each(|client| exact(&stage, client))?;
    let known = 1 + newcomers.len() as u64;
    let after = state(&stage)?;
    ensure!(after == [known, known, 0, 0], "{known} clients, and {after:?}");
    let pending = &status["tables"]["pending"];
    ensure!(number(&pending["capacity"])? == PENDING, "{pending}");
    ensure!(number(&pending["entries"])? <= PENDING, "{pending}");
    let mut sent = settled.sent().pings;
    for client in newcomers.drain(..) {
        sent += client.sent().pings;
    }
    drop(settled);
    let totals = stage.stop_server()?;
    ensure!((totals.pings, totals.pongs) == (sent, 0), "{sent} pings were sent: {totals:?}");
    stage.finish()
}

/// Connect newcomers during the flood, and talk on all connections to its end.
fn join_during(
    stage: &Stage,
    settled: &mut Client,
    done: &AtomicBool,
) -> Result<(Vec<Client>, u32)> {
    let mut newcomers = Vec::new();
    let mut rounds = 0;
    for n in 1..8 {
        newcomers.push(stage.connect(n).with_context(|| format!("client {n} in the flood"))?);
        ensure!(!done.load(Relaxed), "the flood was over when client {n} had connected");
    }
    while !done.load(Relaxed) && rounds < 12 {
        talk(settled)?;
        newcomers.iter_mut().try_for_each(talk)?;
        rounds += 1;
        thread::sleep(Duration::from_millis(200));
    }
    Ok((newcomers, rounds))
}

/// Return flags and payload of forged segment `n` in a victim's name.
/// Each has a different sequence number.
fn impostor(n: u32, pings: &[u8]) -> (Flags, &[u8]) {
    match n % 8 {
        0 => (Flags::Rst, &[]),
        1 => (Flags::FinAck, &[]),
        2 => (Flags::Syn, &[]),
        _ => (Flags::Ack, pings),
    }
}

/// Send them at full speed, a round of them before each look at `stop`.
fn impersonate(stage: &Stage, source: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let sender = Sender::new(&stage.pair)?;
    let pings = encode(&vec![Frame::ping("not mine"); 40]);
    let destination = stage.address();
    let mut sent = 0;
    while !stop.load(Relaxed) && sent < 200_000 {
        for n in 0..80 {
            let (flags, payload) = impostor(n, &pings);
            let (seq, ack) = (fastrand::u32(..), fastrand::u32(..));
            sender.send(&Segment { source, destination, seq, ack, flags, payload })?;
            sent += 1;
        }
    }
    Ok(sent)
}

#[test]
fn pings_in_a_victims_name_do_not_throttle_it() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(1, &["--max-ping-rate", "30"])?;
    let mut victim = stage.connect(0)?;
    talk(&mut victim)?;
    exact(&stage, &victim)?;
    let name = victim.local();
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> Result<u64> {
        let spoofing = scope.spawn(|| impersonate(&stage, name, &stop));
        let talked = (0..20).try_for_each(|_| {
            thread::sleep(Duration::from_millis(100));
            talk(&mut victim)
        });
        stop.store(true, Relaxed);
        let sent = spoofing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        talked?;
        Ok(sent)
    })?;
    println!("{sent} segments in the name of {name}, {:?} of its own", victim.sent());
    ensure!(sent > 2_000, "only {sent} segments in the victim's name");
    exact(&stage, &victim)?;
    ensure!(state(&stage)? == [1, 1, 0, 0], "{:?}", state(&stage)?);
    let pings = victim.sent().pings;
    drop(victim);
    let totals = stage.stop_server()?;
    ensure!((totals.connections, totals.pings, totals.pongs) == (1, pings, 0), "{totals:?}");
    stage.finish()
}
