//! A held window and a TCP other than Linux's:
//! smoltcp, which probes a closed window with its next byte.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_common::seq::{after, later};
use ws_guard_testkit::{
    capture::{Capture, Captured},
    flood::PAYLOAD,
    foreign_tcp::ForeignTcp,
    frame::{Frame, encode},
    netns::{Family, INTERFACE, Pair, PairOptions},
    packets::flag,
    raw_tcp::address,
    servers::Library,
};

use crate::{
    held_window::shift,
    served::{HEALTH, get},
    stage::{Flow, PORT, Stage, WAIT},
    talk::text,
};

/// Port of the client.
const FROM: u16 = 40_000;
/// Time without acknowledgements of a closed window; smoltcp probes after a second.
const CLOSED: Duration = Duration::from_millis(300);
/// Bytes that pass at the pace in about half a second, where a ping costs 256.
const STEP: u64 = 4 << 10;
const STEPS: u64 = 3;
/// Length of the message after the flood: many segments.
const LARGE: usize = 40_000;

/// The flood: consecutive pings, cut anywhere.
struct Pings {
    ping: Vec<u8>,
    /// Number of bytes of the current one already written.
    cut: usize,
}

impl Pings {
    fn new() -> Pings {
        Pings { ping: encode(&[Frame::ping(vec![0x55; PAYLOAD])]), cut: 0 }
    }

    /// Write until smoltcp's buffer is full.
    fn fill(&mut self, tcp: &mut ForeignTcp) -> Result<()> {
        loop {
            let written = tcp.write_some(&self.ping[self.cut..])?;
            self.cut = (self.cut + written) % self.ping.len();
            if written == 0 {
                return Ok(());
            }
        }
    }

    /// Flood until the server has acknowledged `acked`, or nothing for `patience`.
    fn flood(&mut self, tcp: &mut ForeignTcp, acked: u64, patience: Duration) -> Result<bool> {
        while tcp.acked() < acked {
            self.fill(tcp)?;
            let before = tcp.acked();
            if !tcp.wait(patience, |tcp| !tcp.is_open() || tcp.acked() > before)? {
                return Ok(false);
            }
            ensure!(tcp.is_open(), "the connection has ended");
        }
        Ok(true)
    }

    /// Send the rest of a cut ping, and then a message.
    fn end(self, tcp: &mut ForeignTcp, message: &str) -> Result<()> {
        let rest = if self.cut > 0 { &self.ping[self.cut..] } else { &[] };
        let bytes = [rest, &encode(&[Frame::text(message)])].concat();
        let mut sent = 0;
        while sent < bytes.len() {
            sent += tcp.write_some(&bytes[sent..])?;
            let before = tcp.acked();
            let room = |tcp: &ForeignTcp| sent == bytes.len() || tcp.acked() > before;
            ensure!(tcp.wait(WAIT, room)?, "nothing passes after the release");
        }
        Ok(())
    }
}

/// The client's behaviour at the edge that it was told.
#[derive(Debug, Default)]
struct AtEdge {
    /// Probes: one byte at a closed window, past whatever is in flight.
    probes: u64,
    /// Segments that used up a window smaller than a full one.
    small: u64,
    /// Others that ended beyond the edge: excess in bytes, length, and last window.
    beyond: Vec<(u32, u32, u32)>,
}

impl AtEdge {
    fn of(segments: &[Captured], client: SocketAddr) -> Result<AtEdge> {
        let is_syn = |s: &&Captured| s.flags & flag::SYN != 0;
        let syn_ack = segments.iter().filter(is_syn).find(|s| s.destination == client);
        let shift = shift(&syn_ack.context("no SYN-ACK")?.options).unwrap_or(0);
        let mut seen = AtEdge::default();
        // A scaled edge may move left by less than a unit (RFC 7323, 2.4): the farthest one counts.
        let (mut acked, mut window, mut farthest) = (0, 0, None);
        for segment in segments.iter().filter(|s| !is_syn(s)) {
            let length = segment.payload.len() as u32;
            if segment.destination == client {
                (acked, window) = (segment.ack, u32::from(segment.window) << shift);
                let edge = acked.wrapping_add(window);
                farthest = Some(farthest.map_or(edge, |old| later(old, edge)));
            } else if let (true, Some(farthest), 1..) = (segment.source == client, farthest, length)
            {
                let probes = window == 0 && length == 1;
                seen.probes += u64::from(probes);
                seen.small += u64::from(segment.seq == acked && window == length);
                let end = segment.seq.wrapping_add(length);
                if !probes && after(end, farthest) {
                    seen.beyond.push((end.wrapping_sub(farthest), length, window));
                }
            }
        }
        Ok(seen)
    }
}

/// Return a counter of the guard.
fn counter(stage: &Stage, name: &str) -> Result<u64> {
    let (_, metrics) = get(&stage.pair, "/metrics")?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in {metrics}"))
}

/// Return the only connection;
/// check its pacing, and that the guard has dropped none of its packets.
fn undisturbed(stage: &Stage, paced: bool) -> Result<Flow> {
    let rows: serde_json::Value = stage.guard.ask("flows")?;
    ensure!(rows[0]["paced"] == paced, "not what was expected: paced {paced}: {rows}");
    let mut flows: Vec<Flow> = serde_json::from_value(rows)?;
    let flow = flows.pop().context("no flow")?;
    ensure!(flow.state == "open" && flow.gaps + flow.unsynced_total == 0, "{flow:?}");
    let status: serde_json::Value = stage.guard.ask("status")?;
    ensure!(status["packets"]["dropped"] == 0, "{}", stage.drops());
    Ok(flow)
}

/// Check that a flooding smoltcp goes on at the pace, and is free after release.
/// Return its behaviour meanwhile.
fn goes_on(stage: &Stage, family: Family) -> Result<AtEdge> {
    let client = SocketAddr::new(address(family, 1), FROM);
    let mut capture = Capture::new(&stage.pair.client)?;
    let mut tcp = ForeignTcp::connect(&stage.pair, client, (family.server(), PORT).into())?;
    let mut pings = Pings::new();
    ensure!(!pings.flood(&mut tcp, u64::MAX, CLOSED)?, "the window is not held");
    let (start, first) = (Instant::now(), tcp.acked());
    for step in 1..=STEPS {
        let passes = pings.flood(&mut tcp, first + step * STEP, WAIT)?;
        let passed = tcp.acked() - first;
        ensure!(passes, "stalled after {passed} bytes, step {step}: {}", stage.drops());
        println!("{passed} bytes at the pace after {:?}", start.elapsed());
    }
    let seen = AtEdge::of(&capture.take(), client)?;
    let held = counter(stage, "wsguard_windows_held_total")?;
    println!("{seen:?}, {held} windows held");
    ensure!(
        held > 0 && seen.probes > 0 && seen.small > 0 && seen.beyond.is_empty(),
        "{seen:?}, {held}"
    );
    undisturbed(stage, true)?;

    stage.guard.run("policy set --pace off")?;
    let large = text(LARGE, 1);
    pings.end(&mut tcp, &large)?;
    let echoed = |tcp: &ForeignTcp| !tcp.is_open() || !tcp.messages.is_empty();
    ensure!(tcp.wait(WAIT, echoed)?, "no echo: {}", stage.drops());
    ensure!(tcp.messages == [large.into_bytes()], "the echo differs");
    let flow = undisturbed(stage, false)?;
    ensure!(tcp.pongs == flow.pongs_out, "{} pongs came: {flow:?}", tcp.pongs);
    tcp.reset()?;
    Ok(seen)
}

fn stage(scaling: &str) -> Result<Stage> {
    let pair = Pair::new(PairOptions { offloads: false, ..PairOptions::default() })?;
    pair.server.one_cpu(INTERFACE)?;
    pair.client.one_cpu(INTERFACE)?;
    pair.server.sysctl("net/ipv4/tcp_window_scaling", scaling)?;
    let words = format!("--window-seconds 60 --metrics-listen [::]:{HEALTH}");
    Stage::on(pair, &[Library::TokioTungstenite], &words)
}

/// Without a scale, the client is told the held edge: its probes are beyond it.
#[test]
fn smoltcp_goes_on_without_a_scale() -> Result<()> {
    needs_root!();
    let stage = stage("0")?;
    let seen = goes_on(&stage, Family::V4)?;
    let counted = counter(&stage, "wsguard_window_probes_total")?;
    ensure!(counted > 0, "{seen:?}, but no probes were counted");
    stage.finish().map(drop)
}

/// With a scale, the edge that the client is told is rounded down:
/// a probe hardly ever passes the held one.
#[test]
fn smoltcp_goes_on_with_a_scale() -> Result<()> {
    needs_root!();
    let stage = stage("1")?;
    goes_on(&stage, Family::V6)?;
    stage.finish().map(drop)
}
