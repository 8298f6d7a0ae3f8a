//! One source on all CPUs simultaneously: the limit is exact.
//!
//! The programs are run on built packets, a thread pinned to each CPU, so that they truly meet in
//! the same source. Each thread has separate connections, as with a network card's queues.
use std::{sync::Barrier, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use ws_guard_common::{
    maps::{Address, Counter, Policy, action, program},
    window::Rate,
};
use ws_guard_testkit::{
    frame::Frame,
    packets::{Connection, SWITCHING},
    programs::{Programs, object},
};

const LIMIT: u32 = 30;
const SHARE: u32 = 2;
/// Number of threads; the kernel lets several share a CPU where there are fewer.
const THREADS: u16 = 4;
/// Connections of each thread.
const CONNECTIONS: u16 = 20;
/// Pings of each connection, in separate segments.
const PINGS: u32 = 50;

/// Maximum number of tries of a round.
const TRIES: u32 = 10;

const SERVER: &str = "10.1.255.1:9001";
const CLIENT: [u8; 4] = [10, 1, 0, 1];

/// Return connection number `n` of a round, its flow not opened yet.
fn connection(n: u16) -> Result<Connection> {
    Ok(Connection {
        client: (CLIENT, 20_000 + n).into(),
        server: SERVER.parse()?,
        client_seq: u32::from(n).wrapping_sub(1000),
        server_seq: 77,
    })
}

fn policy(share: u32) -> Result<Policy> {
    let rate = Rate::new(LIMIT, 3_600_000, 10).ok().context("the limit is out of range")?;
    Ok(Policy {
        rate,
        connection_rate: Rate { limit: 0, shift: 0, ..rate },
        share,
        generation: 1,
        action: action::DEFUSE,
        mask_v4: Address::mask(128),
        mask_v6: Address::mask(64),
        ..Policy::default()
    })
}

/// Run the pings of each connection of `mine` in turns; return how many stay pings.
fn ping(programs: &Programs, mine: &[Connection], packets: &[Vec<Vec<u8>>]) -> Result<u32> {
    let mut passed = 0;
    for turn in 0..PINGS as usize {
        for (connection, packets) in mine.iter().zip(packets) {
            let run = programs.run(program::XDP_INGRESS, &packets[turn])?;
            ensure!(run.verdict == 2, "{connection:?}: XDP action {}", run.verdict);
            // The frame is the last thing in the packet: two bytes of header, four of mask.
            let opcode = run.packet[run.packet.len() - 6] & 15;
            ensure!(opcode == 9 || opcode == 10, "opcode {opcode}");
            passed += u32::from(opcode == 9);
        }
    }
    Ok(passed)
}

fn on_cpu(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to CPU {cpu}"))
}

/// Build pings of one connection, each in a packet.
fn packets(connection: &Connection) -> Result<Vec<Vec<u8>>> {
    let mut ping = Vec::new();
    Frame::ping("").encode(&mut ping);
    (0..PINGS).map(|n| connection.from_client(n * 6, ping.clone()).build()).collect()
}

/// Run all threads simultaneously; return the number of pings that passed.
fn flood(programs: &Programs, from: u16) -> Result<u32> {
    let cpus = thread::available_parallelism()?.get();
    ensure!(cpus > 1, "one CPU proves nothing");
    let barrier = Barrier::new(THREADS.into());
    let run = |thread: u16| -> Result<u32> {
        on_cpu(usize::from(thread) % cpus)?;
        let numbers = (0..CONNECTIONS).map(|n| from + thread * CONNECTIONS + n);
        let mine = numbers.map(connection).collect::<Result<Vec<_>>>()?;
        for connection in &mine {
            programs.run(program::XDP_INGRESS, &connection.request().build()?)?;
            programs.run(program::TC_EGRESS, &connection.answer(SWITCHING).build()?)?;
        }
        let packets = mine.iter().map(packets).collect::<Result<Vec<_>>>()?;
        barrier.wait();
        ping(programs, &mine, &packets)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || run(n))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<u32>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).sum()
    })
}

/// Flood in a fresh state, and compare every count.
/// `passes` is the permitted number.
///
/// The tables grow with use, and the kernel may have no memory for an entry just then: such a round
/// is repeated, because its flow or its source is counted elsewhere or not at all.
fn round(programs: &mut Programs, share: u32, passes: u32) -> Result<()> {
    for _ in 0..TRIES {
        let before = programs.counters()?;
        let result = try_round(programs, share, passes);
        let counted = programs.counters()?.since(&before);
        let refused =
            [Counter::FlowsRefused, Counter::SourcesRefused].map(|kind| counted.get(kind));
        if refused == [0, 0] {
            return result;
        }
        println!("no memory for {refused:?} flows and sources: {result:?}");
    }
    bail!("the kernel has no memory for entries of the tables")
}

/// Do [`round`] once.
fn try_round(programs: &mut Programs, share: u32, passes: u32) -> Result<()> {
    programs.forget()?;
    programs.set_policy(policy(share)?)?;
    let before = programs.counters()?;
    let passed = flood(programs, share as u16 * 1000)?;
    let sent = u64::from(THREADS) * u64::from(CONNECTIONS) * u64::from(PINGS);
    let source = programs.source(CLIENT.into())?.context("the source has no entry")?;
    let counted = programs.counters()?.since(&before);
    println!("share {share}: {passed} of {sent} pings passed");
    ensure!(passed == passes, "{passed} pings passed, not {passes}");
    ensure!(source.pings_total == sent, "{} counted of {sent}", source.pings_total);
    ensure!(source.defused_total == sent - u64::from(passed), "{}", source.defused_total);
    ensure!(counted.get(Counter::Pings) == sent, "{counted:?}");
    ensure!(counted.get(Counter::Defused) == sent - u64::from(passed), "{counted:?}");
    ensure!(counted.get(Counter::Throttled) == 1, "{counted:?}");
    ensure!(programs.occupancy()?.0 == usize::from(THREADS * CONNECTIONS), "flows are missing");
    Ok(())
}

#[test]
fn one_source_on_all_cpus_keeps_to_its_limit() -> Result<()> {
    needs_root!();
    let loaded = [program::XDP_INGRESS, program::TC_EGRESS];
    let mut programs = Programs::load(&object(), &loaded, &[])?;
    programs.set_ports(&[9001])?;
    for _ in 0..5 {
        round(&mut programs, 0, LIMIT)?;
        // Each connection has its share, whatever the source has used: the limit is included in it.
        round(&mut programs, SHARE, u32::from(THREADS * CONNECTIONS) * SHARE)?;
    }
    Ok(())
}
