//! Counts of `flows` and `sources`: exactly what clients sent and servers answered.
use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::{Frame, opcode},
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::{
    stage::{Flow, Stage, WAIT},
    talk::{pattern, pings, round_trip, text},
};

/// A limit that no client comes near.
const UNLIMITED: &str = "--max-ping-rate 100000";
/// Interface MTU: 240 pings fit one segment, and native XDP still takes it.
const MTU: u32 = 2000;
/// Length of one write, in bytes.
const WRITE: usize = 64 * 1024;
/// Number of pings in one segment.
const BURST: u64 = 240;
const BURST_NAME: &str = "240 pings in one segment";

/// Return the number of a burst's pings that the guard defuses.
/// Only for npm ws: it ends a connection that made it queue more than 60 pongs.
fn burst_defused(library: Library) -> u64 {
    if library == Library::Ws { BURST } else { 0 }
}

/// A way to cut frames into segments;
/// returns the increase of (coalesced segments, split headers), where that does not depend on
/// timing.
type Pattern = fn(&mut Client) -> Result<Option<(u64, u64)>>;

const PATTERNS: [(&str, Pattern); 5] = [
    ("one-byte segments", one_byte_segments),
    ("64 KiB writes", large_writes),
    ("a message of 1 MiB", large_message),
    ("a fragmented message", fragmented_message),
    (BURST_NAME, pings_in_one_segment),
];

fn one_byte_segments(client: &mut Client) -> Result<Option<(u64, u64)>> {
    let mut frames = vec![Frame::text(&text(130, 1))];
    frames.extend(pings(0, 3));
    frames.push(Frame::new(opcode::PONG, "unasked"));
    frames.push(Frame::text(""));
    let headers = frames.len() as u64;
    client.send(&frames, &Cut::Every(1))?;
    Ok(Some((0, headers)))
}

fn large_writes(client: &mut Client) -> Result<Option<(u64, u64)>> {
    let mut frames = Vec::new();
    for n in 0..60u64 {
        frames.push(Frame::new(opcode::BINARY, pattern(n as usize * 90, n)));
        frames.extend(pings(n, n % 3));
    }
    client.send(&frames, &Cut::Every(WRITE))?;
    Ok(None)
}

fn large_message(client: &mut Client) -> Result<Option<(u64, u64)>> {
    client.send(&[Frame::new(opcode::BINARY, pattern(1 << 20, 2))], &Cut::Whole)?;
    Ok(None)
}

fn fragmented_message(client: &mut Client) -> Result<Option<(u64, u64)>> {
    let mut frames = Vec::new();
    for fragment in Frame::fragments(opcode::BINARY, &pattern(10_000, 3), 700) {
        // Control frames may occur inside a message (RFC 6455, 5.4).
        let last = fragment.fin;
        frames.push(fragment);
        if !last {
            frames.push(Frame::ping("between"));
        }
    }
    client.send(&frames, &Cut::Every(1000))?;
    Ok(None)
}

fn pings_in_one_segment(client: &mut Client) -> Result<Option<(u64, u64)>> {
    client.send(&vec![Frame::ping(""); BURST as usize], &Cut::Whole)?;
    Ok(Some((1, 0)))
}

/// Send one byte of payload in a separate segment: no split, no coalescing.
fn settle(client: &mut Client) -> Result<()> {
    let sent = client.sent().messages;
    ensure!(client.wait(WAIT, |r| r.messages == sent), "{} echoes", client.received().messages);
    ensure!(client.drain(WAIT), "the server does not acknowledge");
    round_trip(client, ".")
}

/// Check that the flow's counts equal the client's own.
fn ensure_exact(flow: &Flow, client: &Client) -> Result<()> {
    let (sent, received) = (client.sent(), client.received());
    ensure!(flow.state == "open" && flow.unsynced_total == 0, "{flow:?}");
    ensure!(flow.violations == 0 && flow.gaps == 0, "{flow:?}");
    ensure!(flow.frames_in == sent.frames, "{} frames sent: {flow:?}", sent.frames);
    ensure!(flow.pings_in == sent.pings, "{} pings sent: {flow:?}", sent.pings);
    ensure!(flow.pongs_in == sent.pongs, "{} pongs sent: {flow:?}", sent.pongs);
    ensure!(flow.frames_out == received.frames, "{} received: {flow:?}", received.frames);
    ensure!(flow.pongs_out == received.pongs, "{} pongs received: {flow:?}", received.pongs);
    Ok(())
}

/// Play every pattern over one connection.
fn talk(stage: &Stage, library: Library, client: &mut Client) -> Result<()> {
    settle(client)?;
    for (what, pattern) in PATTERNS {
        let before = stage.flow(client)?;
        let defused = if what == BURST_NAME { burst_defused(library) } else { 0 };
        if defused > 0 {
            // The earlier pings, more than 30, count: not one more passes.
            stage.guard.run("policy set --max-ping-rate 30 --window-seconds 600")?;
        }
        let added = pattern(client)
            .with_context(|| format!("{what}: {:?}, {}", stage.flow(client), stage.drops()))?;
        settle(client).context(what)?;
        let flow = stage.flow(client)?;
        ensure_exact(&flow, client).context(what)?;
        ensure!(flow.defused == defused, "{what}: {flow:?}");
        let grown = (
            flow.coalesced_segments - before.coalesced_segments,
            flow.split_headers - before.split_headers,
        );
        ensure!(added.is_none_or(|added| added == grown), "{what}: {added:?}, counted {grown:?}");
    }
    stage.guard.run(&format!("policy set {UNLIMITED} --window-seconds 10"))?;
    ensure!(client.received().pongs > 0, "no pong at all");
    Ok(())
}

/// Compare flows, sources and servers' counts, for all servers and IP versions.
fn every_server(options: PairOptions, words: &str) -> Result<()> {
    let stage = Stage::with(&Library::ALL, options, &format!("{UNLIMITED} {words}"))?;
    let mut sent = Vec::new();
    for (server, library) in Library::ALL.into_iter().enumerate() {
        let (mut messages, mut pings, mut pongs) = (0, 0, 0);
        let defused = burst_defused(library);
        for family in Family::BOTH {
            let mut client = stage.client_of(server, family, server as u8)?;
            talk(&stage, library, &mut client)
                .with_context(|| format!("{} {family:?}", library.name()))?;
            let source = stage.source(family, server as u8)?;
            ensure!(source.state == if defused > 0 { "throttled" } else { "ok" }, "{source:?}");
            ensure!(source.defused_total == defused, "{source:?}");
            ensure!(source.pings_total == client.sent().pings, "{source:?}: {:?}", client.sent());
            let sent = client.close()?;
            messages += sent.messages;
            pings += sent.pings - defused;
            pongs += sent.pongs + defused;
        }
        sent.push((messages, pings, pongs));
    }
    let counted = stage.finish()?;
    let counted: Vec<_> = counted.iter().map(|t| (t.messages, t.pings, t.pongs)).collect();
    ensure!(counted == sent, "the servers counted {counted:?} of {sent:?}");
    Ok(())
}

#[test]
fn counts_are_exact_segment_by_segment() -> Result<()> {
    needs_root!();
    let options = PairOptions { clients: 4, mtu: MTU, offloads: false };
    every_server(options, "--attach xdp-native")
}

/// With offloads the guard sees packets of up to 64 KiB in place of many segments.
#[test]
fn counts_are_exact_with_offloads() -> Result<()> {
    needs_root!();
    every_server(PairOptions { clients: 4, mtu: MTU, offloads: true }, "--attach tcx")
}
