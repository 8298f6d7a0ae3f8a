//! Heartbeats of one connection on two CPUs simultaneously: no pong closes another's ping.
//!
//! Pings come in on one CPU while the pongs to earlier ones leave on the other, so that both change
//! what waits. Their payloads are equal: a change that gets lost leaves a ping behind, or a pong too
//! many, and shows in the time of the next ping.
use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_common::maps::{FlowKey, Policy, program};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    packets::{Connection, SWITCHING},
    programs::{Programs, object},
};

use crate::cpus::on_cpu;

/// Pings of a round.
const PINGS: u32 = 20_000;
/// Maximum of pings that wait: more than 255 equal ones are not told apart.
const WAITING: u32 = 100;
const ROUNDS: u16 = 5;
/// Bytes of a masked and of an unmasked control frame without payload.
const MASKED: u32 = 6;
const UNMASKED: u32 = 2;

fn connection(round: u16) -> Result<Connection> {
    Ok(Connection {
        client: ([10, 1, 0, 1], 21_000 + round).into(),
        server: "10.1.255.1:9001".parse()?,
        client_seq: 1000,
        server_seq: 77,
    })
}

/// Send ping number `n`.
fn ping(programs: &Programs, connection: &Connection, n: u32) -> Result<()> {
    let packet = connection.from_client(n * MASKED, encode(&[Frame::ping("")])).build()?;
    let verdict = programs.run(program::XDP_INGRESS, &packet)?.verdict;
    ensure!(verdict == 2, "ping {n}: XDP action {verdict}");
    Ok(())
}

/// Send the pong to it, which acknowledges it.
fn pong(programs: &Programs, connection: &Connection, n: u32) -> Result<()> {
    let pong = encode(&[Frame { mask: None, ..Frame::new(opcode::PONG, "") }]);
    let packet = connection.from_server(n * UNMASKED, (n + 1) * MASKED, pong).build()?;
    programs.run(program::TC_EGRESS, &packet).map(drop)
}

/// Call `step` for each ping, as soon as `may` holds, and count it in `done`.
fn each(
    cpu: usize,
    done: &AtomicU32,
    may: impl Fn(u32) -> bool,
    step: impl Fn(u32) -> Result<()>,
) -> Result<()> {
    on_cpu(cpu)?;
    for n in 0..PINGS {
        while !may(n) {
            thread::yield_now();
        }
        step(n)?;
        done.store(n + 1, SeqCst);
    }
    Ok(())
}

/// Ping and answer on two CPUs, and then once more with known times.
fn round(programs: &mut Programs, connection: &Connection) -> Result<()> {
    programs.run(program::XDP_INGRESS, &connection.request().build()?)?;
    programs.run(program::TC_EGRESS, &connection.answer(SWITCHING).build()?)?;
    let (asked, answered) = (AtomicU32::new(0), AtomicU32::new(0));
    let (asked, answered) = (&asked, &answered);
    thread::scope(|scope| {
        let programs = &*programs;
        // Where one side fails, the other must not wait for ever.
        let fails = |result: Result<()>| {
            if result.is_err() {
                asked.store(PINGS, SeqCst);
                answered.store(PINGS, SeqCst);
            }
            result
        };
        let pings = scope.spawn(move || {
            let may = |n: u32| n.saturating_sub(answered.load(SeqCst)) < WAITING;
            fails(each(0, asked, may, |n| ping(programs, connection, n)))
        });
        let pongs = scope.spawn(move || {
            let may = |n| n < asked.load(SeqCst);
            fails(each(1, answered, may, |n| pong(programs, connection, n)))
        });
        for side in [pings, pongs] {
            side.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    // What was left behind is older than this by far.
    thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    ping(programs, connection, PINGS)?;
    let asked = Instant::now();
    thread::sleep(Duration::from_millis(20));
    let least = asked.elapsed();
    pong(programs, connection, PINGS)?;
    let most = began.elapsed();
    let flow = programs.flow(key(connection))?.context("the flow is gone")?;
    let measured = Duration::from_micros(flow.heartbeat_rtt_us.into());
    // A tick of the clock is a microsecond long.
    let tick = Duration::from_micros(2);
    ensure!(measured + tick >= least && measured <= most + tick, "{measured:?} of {least:?}");
    ensure!(flow.pongs_out == u64::from(PINGS) + 1, "{} pongs", flow.pongs_out);
    Ok(())
}

fn key(connection: &Connection) -> FlowKey {
    FlowKey {
        client: connection.client.ip().into(),
        server: connection.server.ip().into(),
        client_port: connection.client.port().to_be(),
        server_port: connection.server.port().to_be(),
    }
}

#[test]
fn heartbeats_on_two_cpus_keep_their_times() -> Result<()> {
    needs_root!();
    ensure!(thread::available_parallelism()?.get() > 1, "one CPU proves nothing");
    let loaded = [program::XDP_INGRESS, program::TC_EGRESS];
    let mut programs = Programs::load(&object(), &loaded, &[])?;
    programs.set_ports(&[9001])?;
    programs.set_policy(Policy { generation: 1, ..Policy::default() })?;
    for number in 0..ROUNDS {
        round(&mut programs, &connection(number)?).with_context(|| format!("round {number}"))?;
    }
    Ok(())
}
