//! Test kit itself, without the guard: clients and servers have the same counts.
use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    flood::{Bounds, flood},
    frame::{Frame, opcode},
    honest,
    netns::{Family, INTERFACE, Pair, PairOptions},
    raw::Sender,
    servers::{Library, Server},
    skip_reason, usage,
};

const PORT: u16 = 9001;
const WAIT: Duration = Duration::from_secs(10);

macro_rules! needs_root {
    () => {
        if let Some(reason) = skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

#[test]
fn every_server_counts_what_the_client_counts() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    for library in Library::ALL {
        let server = Server::start(&pair.server, library, PORT, None)?;
        let (mut messages, mut pings) = (0, 0);
        for family in Family::BOTH {
            let mut client = Client::connect(
                &pair.client,
                server.at(family.server()),
                ConnectOptions::default(),
            )?;
            ensure!(client.local().ip() == family.client(0), "{}", client.local());
            talk(&mut client).with_context(|| format!("{library:?} {family:?}"))?;
            let sent = client.close()?;
            messages += sent.messages;
            pings += sent.pings;
        }
        let totals = server.stop()?;
        ensure!(totals.connections == 2, "{library:?}: {totals:?}");
        ensure!(totals.messages == messages, "{library:?}: {totals:?}, sent {messages}");
        ensure!(totals.pings == pings, "{library:?}: {totals:?}, sent {pings}");
    }
    Ok(())
}

/// One port for all connections: the server's reports on each are distinguished.
#[test]
fn a_port_that_is_used_again_is_another_connection() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    pair.client.sysctl("net/ipv4/ip_local_port_range", "40000 40000")?;
    pair.client.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    let server = Server::start(&pair.server, Library::Python, PORT, None)?;
    let at = server.at(Family::V4.server());
    for pings in [1, 2] {
        let start = Instant::now();
        let mut client = loop {
            // The port is free a second after its use, in TIME_WAIT.
            match Client::connect(&pair.client, at, ConnectOptions::default()) {
                Err(_) if start.elapsed() < WAIT => thread::sleep(Duration::from_millis(20)),
                result => break result?,
            }
        };
        let local = client.local();
        client.send(&vec![Frame::ping("ping"); pings], &Cut::Whole)?;
        ensure!(client.wait(WAIT, |r| r.pongs == pings as u64), "{pings} pings are not answered");
        client.reset()?;
        let closed = server.closed(local, 1, WAIT)?;
        ensure!(closed.len() == 1 && closed[0].pings == pings as u64, "{pings}: {closed:?}");
    }
    server.stop().map(drop)
}

/// Send some frames of each kind, and check each answer.
fn talk(client: &mut Client) -> Result<()> {
    client.send(&[Frame::text("one byte a segment")], &Cut::Every(1))?;
    client.send(&Frame::fragments(opcode::BINARY, &[1; 1000], 300), &Cut::Whole)?;
    let big: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    client.send(&[Frame::new(opcode::BINARY, &*big)], &Cut::Every(64 * 1024))?;
    ensure!(client.wait(WAIT, |r| r.messages == 3), "{:?}", client.received().messages);
    let pings: Vec<Frame> = (0..40u8).map(|n| Frame::ping([n])).collect();
    client.send(&pings, &Cut::Whole)?;
    // Not each ping has its own pong: answering only the latest is allowed (RFC 6455, 5.5.3).
    ensure!(client.wait(WAIT, |r| r.pong_payloads.back() == Some(&vec![39])), "the last pong");
    let received = client.received();
    let payloads: Vec<&[u8]> = received.kept.iter().map(|(_, payload)| &**payload).collect();
    ensure!(payloads == [b"one byte a segment", &[1; 1000][..], &big], "echoes differ");
    Ok(())
}

#[test]
fn one_byte_writes_are_one_byte_segments() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions { offloads: false, ..PairOptions::default() })?;
    let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, None)?;
    let mut client =
        Client::connect(&pair.client, server.at(Family::V4.server()), ConnectOptions::default())?;
    let before = packets(&pair)?;
    client.send(&[Frame::text(&"x".repeat(194))], &Cut::Every(1))?;
    ensure!(client.wait(WAIT, |r| r.messages == 1), "no echo");
    let segments = packets(&pair)? - before;
    // 194 bytes of payload, 8 of header; the acknowledgement of the echo may be added.
    ensure!((202..=204).contains(&segments), "{segments} segments");
    Ok(())
}

/// Return the number of packets that have left the client namespace.
fn packets(pair: &Pair) -> Result<u64> {
    let path = PathBuf::from("/proc/thread-self/net/dev");
    let devices = pair.client.run(|| std::fs::read_to_string(path))??;
    let line = devices.lines().find_map(|line| line.trim().strip_prefix(&format!("{INTERFACE}:")));
    let column = line.and_then(|line| line.split_whitespace().nth(9));
    Ok(column.context("no such interface")?.parse()?)
}

#[test]
fn a_flooder_grows_a_server_and_an_honest_client_is_measured() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, Some(2 << 30))?;
    let at = server.at(Family::V4.server());
    let before = usage::Usage::of(server.pid())?;
    let mut flooder =
        Client::connect(&pair.client, at, ConnectOptions { reads: false, ..Default::default() })?;
    let mut honest = Client::connect(
        &pair.client,
        at,
        ConnectOptions { source: Some(Family::V4.client(1)), ..Default::default() },
    )?;
    let bounds = Bounds { pings: 200_000, time: Duration::from_secs(3), pause: Duration::ZERO };
    let flooding = thread::spawn(move || {
        let flooded = flood(&mut flooder, bounds, || true);
        // The connection stays open until the server's memory is read.
        (flooder, flooded)
    });
    let served = honest::run(&mut honest, Duration::from_secs(1), || true)?;
    let (_flooder, flooded) =
        flooding.join().map_err(|_| anyhow::anyhow!("the flooder panicked"))?;
    let flooded = flooded?;
    let after = usage::Usage::of(server.pid())?;
    println!("{served:?} {flooded:?} {before:?} {after:?}");
    ensure!(served.messages >= 15 && served.lost == 0 && served.pongs == 1, "{served:?}");
    ensure!(served.p50 > Duration::ZERO && served.p99 >= served.p50, "{served:?}");
    ensure!(flooded.pings > 10_000 && flooded.pings <= bounds.pings, "{flooded:?}");
    ensure!(after.anonymous > before.anonymous + (1 << 20), "{before:?} {after:?}");
    ensure!(after.cpu > before.cpu, "{before:?} {after:?}");
    ensure!(server.stop()?.pings <= flooded.pings + 1);
    Ok(())
}

#[test]
fn spoofed_segments_reach_the_server_and_namespaces_go_away() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let names = [pair.client.path(), pair.server.path()];
    let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, None)?;
    for family in Family::BOTH {
        let before = packets(&pair)?;
        Sender::new(&pair)?.spoofed_flood(
            server.at(family.server()),
            5000,
            &[b"\x89\x80\0\0\0\0".to_vec()],
        )?;
        ensure!(packets(&pair)? - before >= 5000, "{family:?}");
        // The server is still there for others.
        let mut client =
            Client::connect(&pair.client, server.at(family.server()), ConnectOptions::default())?;
        client.send_one(Frame::text("hello"))?;
        ensure!(client.wait(WAIT, |r| r.messages == 1), "no echo over {family:?}");
    }
    ensure!(names.iter().all(|path| path.exists()), "{names:?}");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _owned = (pair, server);
        panic!("on purpose: the clean-up must run all the same");
    }));
    ensure!(panicked.is_err() && names.iter().all(|path| !path.exists()), "{names:?}");
    Ok(())
}
