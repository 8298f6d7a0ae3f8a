//! More than the pace: windows that are larger than the guard takes them for, or that it does not see.
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_common::pace::{AT_FIRST, FIRSTS};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    flood::{Bounds, PAYLOAD, flood},
    frame::{Frame, encode},
    netns::{Family, Pair, PairOptions},
    path::{Impairment, Path},
    raw_tcp::{self, Opening, RawTcp, SEGMENT},
    servers::{Library, Server},
};

use crate::{
    attacker::{pings, try_all},
    process::Guard,
    row::PORT,
    stage::{Flow, LIMIT, Open, PORT as FIRST},
};

/// Bytes a second, by default.
const PACE: u64 = 16 << 10;
const WAIT: Duration = Duration::from_secs(20);

fn open() -> Result<Open> {
    Open::new(PairOptions { clients: 8, offloads: false, ..PairOptions::default() })
}

/// Bytes that pass in so long, whatever a client tries: some of them before the server says something.
fn most(time: Duration) -> u64 {
    let due = SEGMENT as u64 * 2;
    u64::from(AT_FIRST) * 3 / 2 + (time.as_secs() + 2) * (PACE + due)
}

/// A client to which the server offers a large window: so much was echoed to it.
fn with_large_window(pair: &Pair, at: SocketAddr) -> Result<Client> {
    let options = ConnectOptions { source: Some(Family::V4.client(1)), ..Default::default() };
    let mut client = Client::connect(&pair.client, at, options)?;
    for _ in 0..16 {
        client.send(&[Frame::text(&"x".repeat(1 << 19))], &Cut::Whole)?;
    }
    ensure!(client.wait(WAIT, |received| received.messages == 16), "no echo");
    Ok(client)
}

/// Large messages make the server offer a window of megabytes, and then a flood fills it at once; which it
/// could do again after each window of the limit.
#[test]
fn window_that_opened_before_the_flood() -> Result<()> {
    needs_root!();
    let stage = open()?.guard_with("xdp-native", "--window-seconds 60")?;
    for library in [Library::TokioTungstenite, Library::Gorilla] {
        let at = stage.server(library)?.at(Family::V4.server());
        let mut client = with_large_window(&stage.pair, at)?;
        let (pings, time, pause) = (u64::MAX, Duration::from_secs(2), Duration::ZERO);
        let flooded = flood(&mut client, Bounds { pings, time, pause }, || true)?;
        let Flow { pings_in, .. } = stage.flow(client.local())?.context("no flow")?;
        let (took, most) = (pings_in * (PAYLOAD as u64 + 6), most(flooded.time));
        println!("{library:?}: {took} bytes of {most} in {:?}", flooded.time);
        ensure!(took < most, "{library:?} took {took} bytes, {most} may in {:?}", flooded.time);
        // Nothing is lost by it.
        stage.guard.run("policy set --pace off")?;
        client.send_one(Frame::text("afterwards"))?;
        ensure!(client.wait(WAIT, |received| received.messages == 17), "the connection stalls");
        stage.guard.run("policy set --pace 16KiB/s")?;
        client.reset()?;
        stage.guard.run(&format!("release {}", Family::V4.client(1)))?;
    }
    stage.finish()
}

/// A client over its limit that has more under way than may pass sends it again, and goes on.
#[test]
fn what_is_under_way_when_a_window_is_cut_comes_again() -> Result<()> {
    needs_root!();
    const LARGE: usize = 3 << 20;
    let path = Path::new(2)?;
    let server = Server::start(&path.pair.server, Library::TokioTungstenite, FIRST, None)?;
    let words = format!("--port {FIRST} --window-seconds 6 --pace 64KiB/s");
    let guard = Guard::start(&path.pair.server, &words)?;
    path.set(Impairment { delay: Duration::from_millis(30), ..Impairment::default() });
    let mut client = with_large_window(&path.pair, server.at(Family::V4.server()))?;
    let start = Instant::now();
    let large = Frame::text(&"y".repeat(LARGE));
    let ping = Frame::ping("?");
    client.send(&[vec![ping; 40], vec![large]].concat(), &Cut::Whole)?;
    thread::sleep(Duration::from_secs(2));
    let drops: serde_json::Value = guard.ask("status")?;
    println!("{}", drops["drops"]);
    ensure!(drops["drops"]["beyond_edge"].as_u64() > Some(0), "no window was cut: {drops}");
    ensure!(client.wait(Duration::from_secs(60), |r| r.messages == 17), "the connection stalls");
    println!("{LARGE} bytes echoed {:?} after they were sent", start.elapsed());
    client.close()?;
    server.stop()?;
    guard.finish()?;
    drop(path);
    Ok(())
}

/// Send for so long as fast as the server's window permits; how many bytes it took.
fn pushed(tcp: &mut RawTcp, time: Duration) -> Result<u64> {
    let (start, before) = (Instant::now(), tcp.acked());
    while start.elapsed() < time {
        tcp.push(&pings(SEGMENT / 6 * 4))?;
        if !tcp.wait(Duration::from_millis(100), |tcp| tcp.unacknowledged() <= 0)? {
            tcp.next = tcp.acked();
        }
    }
    Ok(tcp.acked().wrapping_sub(before).into())
}

/// A SYN cookie keeps the scale in the timestamp of the SYN-ACK: without an echo of it there is none, and
/// the guard takes the server's window for a hundred times as large.
#[test]
fn scale_of_a_syn_cookie() -> Result<()> {
    needs_root!();
    const TIME: Duration = Duration::from_secs(4);
    let open = open()?;
    open.pair.server.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let stage = open.guard("xdp-native")?;
    for cookie in [false, true] {
        let client = SocketAddr::new(raw_tcp::address(Family::V4, 1 + u8::from(cookie)), PORT);
        let server = stage.server(Library::Gorilla)?.at(Family::V4.server());
        let mut tcp = RawTcp::new(&stage.pair, client, server)?;
        tcp.open(&Opening { scale: true, ..Opening::default() }, &[])?;
        if cookie {
            tcp.without_timestamps();
        }
        tcp.acknowledge()?;
        tcp.upgrade()?;
        let taken = pushed(&mut tcp, TIME)?;
        let most = most(TIME);
        println!("cookie: {cookie}, {taken} bytes of pings, {most} may");
        ensure!(taken < most, "cookie: {cookie}, {taken} bytes of pings, {most} may");
        tcp.finish()?;
    }
    stage.finish()
}

/// Connections that are older than the guard have a window of unknown scale. Together they get no more
/// than a source may have.
#[test]
fn connections_from_before_share_a_pace() -> Result<()> {
    needs_root!();
    const CONNECTIONS: u16 = 12;
    const TIME: Duration = Duration::from_secs(5);
    let open = open()?;
    let address = raw_tcp::address(Family::V4, 1);
    let server = open.at(Library::Gorilla, Family::V4)?;
    let mut all = Vec::new();
    for n in 0..CONNECTIONS {
        let mut tcp = RawTcp::connect(
            &open.pair,
            SocketAddr::new(address, PORT + n),
            server,
            &Opening::default(),
        )?;
        tcp.upgrade()?;
        all.push(tcp);
    }
    let stage = open.guard("xdp-native")?;
    for tcp in &mut all {
        tcp.push(&pings(LIMIT as usize))?;
        tcp.settle(Duration::from_millis(100))?;
        tcp.next = tcp.acked();
        try_all(tcp, &pings(40))?;
    }
    let start = Instant::now();
    let before: Vec<u32> = all.iter().map(RawTcp::acked).collect();
    while start.elapsed() < TIME {
        for tcp in &mut all {
            if tcp.unacknowledged() > 0 {
                tcp.settle(Duration::from_millis(1))?;
            }
            tcp.next = tcp.acked();
            tcp.push(&pings(SEGMENT / 6))?;
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut taken = 0;
    for (tcp, before) in all.iter_mut().zip(before) {
        tcp.settle(Duration::from_millis(20))?;
        taken += u64::from(tcp.acked().wrapping_sub(before));
    }
    let seconds = start.elapsed().as_secs() + 2;
    let most = seconds * (PACE + u64::from(CONNECTIONS) * SEGMENT as u64);
    println!("{taken} bytes in {:?}, {most} may", start.elapsed());
    ensure!(taken < most, "{taken} bytes in {:?}, {most} may", start.elapsed());
    for tcp in &mut all {
        tcp.finish()?;
    }
    stage.finish()
}

/// Each connection begins with the window that the server offers it; so one follows the other, and each
/// fills its first window.
#[test]
fn one_connection_after_the_other() -> Result<()> {
    needs_root!();
    const CONNECTIONS: u64 = 150;
    /// What a server of these offers at first.
    const WINDOW: u64 = 64 << 10;
    let stage = open()?.guard_with("xdp-native", "--window-seconds 60")?;
    let at = stage.server(Library::TokioTungstenite)?.at(Family::V4.server());
    let source = Family::V4.client(1);
    let options = ConnectOptions { source: Some(source), ..Default::default() };
    let pings = encode(&vec![Frame::ping(vec![0; PAYLOAD]); 2 * WINDOW as usize / PAYLOAD]);
    let start = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect(&stage.pair.client, at, options)?;
        client.write_some(&pings, Duration::from_millis(10))?;
        // What the server takes at once, it has taken.
        client.drain(Duration::from_millis(30));
        client.reset()?;
    }
    let sources: serde_json::Value = stage.guard.ask("sources")?;
    let all = sources.as_array().context("no list")?;
    let row = all.iter().find(|row| row["source"] == source.to_string()).context("no source")?;
    let taken = row["pings_total"].as_u64().context("no count")? * (PAYLOAD as u64 + 6);
    let seconds = start.elapsed().as_secs() + 2;
    // Together they have the pace, and as much again to begin with; each has what took it over the limit.
    let most = u64::from(FIRSTS) + seconds * 2 * PACE + CONNECTIONS * 2 * SEGMENT as u64;
    println!("{taken} bytes in {:?}, {most} may", start.elapsed());
    ensure!(CONNECTIONS * WINDOW > most, "a busy machine: {CONNECTIONS} windows are no more");
    ensure!(taken < most, "{taken} bytes, {most} may in {:?}", start.elapsed());
    stage.finish()
}
