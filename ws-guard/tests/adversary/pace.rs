//! Excess over the pace: windows larger than the guard assumes, or unseen ones.
use std::{
    collections::VecDeque,
    net::SocketAddr,
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_common::pace::{AT_FIRST, FIRSTS, FRAME};
use ws_guard_testkit::{
    capture::{Capture, Captured},
    client::{Client, ConnectOptions, Cut},
    flood::{Bounds, PAYLOAD, flood},
    flooders::{Flooded, Flooders, Kind},
    frame::{Frame, encode, opcode},
    netns::{Family, Pair, PairOptions},
    packets::Packet,
    path::{Impairment, Path},
    probing::deliver,
    raw_tcp::{self, Opening, RawTcp, SEGMENT},
    servers::{Library, Server},
};

use crate::{
    attacker::{persist_all, pings, try_all},
    process::Guard,
    row::PORT,
    stage::{Flow, LIMIT, Open, PORT as FIRST, Stage},
};

/// Default pace, in bytes a second.
const PACE: u64 = 16 << 10;
const WAIT: Duration = Duration::from_secs(20);
/// Silence of the server after which it has handled everything.
const QUIET: Duration = Duration::from_millis(120);

fn open() -> Result<Open> {
    Open::new(PairOptions { clients: 8, offloads: false, ..PairOptions::default() })
}

/// Return the bytes that pass in this time, whatever a client tries:
/// some of them before the server says something.
fn most(time: Duration) -> u64 {
    let due = SEGMENT as u64 * 2;
    u64::from(AT_FIRST) * 3 / 2 + (time.as_secs() + 2) * (PACE + due)
}

/// Connect a client to which the server offers a large window, after a large echo.
fn with_large_window(pair: &Pair, at: SocketAddr) -> Result<Client> {
    let options = ConnectOptions { source: Some(Family::V4.client(1)), ..Default::default() };
    let mut client = Client::connect(&pair.client, at, options)?;
    for _ in 0..16 {
        client.send(&[Frame::text(&"x".repeat(1 << 19))], &Cut::Whole)?;
    }
    ensure!(client.wait(WAIT, |received| received.messages == 16), "no echo");
    Ok(client)
}

/// A flood that fills a window opened before it.
///
/// Large messages make the server offer a window of megabytes, which a flood then fills at once; it
/// could do so again after each window of the limit.
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

/// A client over its limit with much in flight: it retransmits, and goes on.
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

/// Send for this time as fast as the window permits; return the bytes taken.
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

/// A SYN cookie, which keeps the scale in the timestamp of the SYN-ACK:
/// without an echo of it there is none, and the guard takes the server's window for a hundred times
/// as large.
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

/// Connections older than the guard, whose window has an unknown scale.
/// Together they get no more than one source may have.
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

/// Connections in sequence, each of which fills its first window.
#[test]
fn one_connection_after_the_other() -> Result<()> {
    needs_root!();
    const CONNECTIONS: u64 = 150;
    /// Initial window of these servers, in bytes.
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
        // Bytes that the server takes at once are taken.
        client.drain(Duration::from_millis(30));
        client.reset()?;
    }
    let sources: serde_json::Value = stage.guard.ask("sources")?;
    let all = sources.as_array().context("no list")?;
    let row = all.iter().find(|row| row["source"] == source.to_string()).context("no source")?;
    let taken = row["pings_total"].as_u64().context("no count")? * (PAYLOAD as u64 + 6);
    let seconds = start.elapsed().as_secs() + 2;
    // Together they have the pace, and as much again to begin with; each has the bytes that took it
    // over the limit.
    let most = u64::from(FIRSTS) + seconds * 2 * PACE + CONNECTIONS * 2 * SEGMENT as u64;
    println!("{taken} bytes in {:?}, {most} may", start.elapsed());
    ensure!(CONNECTIONS * WINDOW > most, "a busy machine: {CONNECTIONS} windows are no more");
    ensure!(taken < most, "{taken} bytes, {most} may in {:?}", start.elapsed());
    stage.finish()
}

/// Flood over fifty connections of one address at once; return the result, and how many segments
/// the pace dropped.
fn fifty(kind: Kind, offloads: bool, words: &str, time: Duration) -> Result<(Flooded, u64)> {
    let options = PairOptions { clients: 8, offloads, ..PairOptions::default() };
    let stage = Open::new(options)?.guard_with("xdp-native", words)?;
    let at = stage.server(Library::TokioTungstenite)?.at(Family::V4.server());
    let source = Some(Family::V4.client(1));
    let options = ConnectOptions { source, reads: false, ..Default::default() };
    let clients = (0..50).map(|_| Client::connect(&stage.pair.client, at, options));
    let mut flooders = Flooders::new(kind, clients.collect::<Result<_>>()?)?;
    let flooded = flooders.run(time, || true)?;
    let status: serde_json::Value = stage.guard.ask("status")?;
    let dropped = ["beyond_edge", "policed"].map(|reason| status["drops"][reason].as_u64());
    stage.finish()?;
    Ok((flooded, dropped.into_iter().flatten().sum()))
}

/// Initial windows of fifty connections that all go over their limit at once.
///
/// Those of full-size pings pass whole, so that none is retransmitted. Those of tiny messages have
/// room for 103,400 frames, and one segment of each connection for 10,300.
#[test]
fn first_windows_of_fifty_connections() -> Result<()> {
    needs_root!();
    const TIME: Duration = Duration::from_secs(4);
    for offloads in [true, false] {
        let (pings, dropped) = fifty(Kind::Pings, offloads, "", TIME)?;
        println!("offloads {offloads}: {} pings, {dropped} segments dropped", pings.frames);
        ensure!(pings.frames > 3000, "no flood: {pings:?}");
        ensure!(dropped == 0, "{dropped} segments dropped, offloads: {offloads}");
        let words = "--max-tiny-frame-rate 30";
        let (tiny, dropped) = fifty(Kind::Messages, offloads, words, TIME)?;
        let most = u64::from(FIRSTS / FRAME) * 3 / 2
            + (TIME.as_secs() + 2) * (PACE / u64::from(FRAME)) * 2;
        println!("offloads {offloads}: {} messages of {most}, {dropped} dropped", tiny.frames);
        ensure!(tiny.frames < most, "{tiny:?}, {most} messages may, offloads: {offloads}");
        ensure!(pings.broken + tiny.broken == 0, "a connection was ended");
    }
    Ok(())
}

/// A connection over its limit, its held window full, inside a long message.
struct AtEdge {
    tcp: RawTcp,
    /// Segments that reach the server, behind the guard.
    to_server: Capture,
    /// Segments that reach the client.
    to_client: Capture,
    /// Messages that the server has to echo, and their frames.
    said: Vec<Vec<u8>>,
    stream: Vec<u8>,
    /// Sequence number of the first of them.
    base: u32,
}

/// Payload of the long message: more than a window without a scale and the pace.
const LONG: usize = 160_000;

impl AtEdge {
    fn new(stage: &Stage, n: u8) -> Result<AtEdge> {
        let client = SocketAddr::new(raw_tcp::address(Family::V4, n), PORT);
        let server = stage.server(Library::Gorilla)?.at(Family::V4.server());
        let opening = Opening { sack: true, ..Opening::default() };
        let mut tcp = RawTcp::connect(&stage.pair, client, server, &opening)?;
        tcp.upgrade()?;
        tcp.kept = Some(VecDeque::new());
        persist_all(&mut tcp, &pings(LIMIT as usize + 10))?;
        tcp.settle(QUIET)?;
        let long: Vec<u8> = (0..LONG).map(|n| (n * 31 / 7) as u8).collect();
        let said = vec![long, b"afterwards".to_vec()];
        let frames: Vec<Frame> = said.iter().map(|m| Frame::new(opcode::BINARY, &m[..])).collect();
        let (stream, base) = (encode(&frames), tcp.next);
        let to_server = Capture::incoming(&stage.pair.server)?;
        let to_client = Capture::incoming(&stage.pair.client)?;
        let mut at = AtEdge { tcp, to_server, to_client, said, stream, base };
        at.fill()?;
        Ok(at)
    }

    /// Fill the window; little of the room that this opens stays open.
    fn fill(&mut self) -> Result<()> {
        for _ in 0..10 {
            let room = usize::try_from(self.tcp.room()).unwrap_or(0);
            let sent = self.tcp.next.wrapping_sub(self.base) as usize;
            let part = self.stream.get(sent..sent + room).context("the edge is not held")?;
            let part = part.to_vec();
            self.tcp.push(&part)?;
            if !self.tcp.drain()? {
                self.tcp.next = self.tcp.next.wrapping_sub(part.len() as u32);
                ensure!(try_all(&mut self.tcp, &part)?, "what is before the edge does not pass");
            }
            if room < SEGMENT / 4 {
                break;
            }
        }
        self.tcp.settle(QUIET)
    }

    /// Return how many bytes of `attempt` reach the server:
    /// none beyond the last edge that it told, which may not move left meanwhile.
    fn arrives(&mut self, attempt: Attempt) -> Result<usize> {
        let _ = (self.to_server.take(), self.to_client.take());
        attempt(self)?;
        self.tcp.settle(QUIET)?;
        let ours = |s: &Captured, from, to| s.source == from && s.destination == to;
        let (client, server, edge) = (self.tcp.client, self.tcp.server, self.edge());
        let (mut farthest, mut arrived, mut told) = (i32::MIN, 0, None);
        for segment in self.to_server.take().iter().filter(|s| ours(s, client, server)) {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            arrived += segment.payload.len();
            farthest = farthest.max(end.wrapping_sub(edge) as i32);
        }
        for segment in self.to_client.take().iter().filter(|s| ours(s, server, client)) {
            let edge = segment.ack.wrapping_add(segment.window.into());
            let back = told.map_or(0, |told: u32| told.wrapping_sub(edge) as i32);
            ensure!(back <= 0, "the edge moved left by {back} bytes");
            told = Some(edge);
        }
        self.tcp.next = self.tcp.acked();
        ensure!(farthest <= 0, "{farthest} bytes beyond the edge reached the server");
        Ok(arrived)
    }

    /// Return the end of the held window.
    fn edge(&self) -> u32 {
        self.tcp.next.wrapping_add(self.tcp.room() as u32)
    }

    /// Build a segment at this distance from the next byte, with its proper bytes.
    fn past_next(&self, offset: i64, len: usize) -> Packet {
        let at = i64::from(self.tcp.next.wrapping_sub(self.base)) + offset;
        let said = (at..at + len as i64)
            .map(|at| usize::try_from(at).ok().and_then(|at| self.stream.get(at)))
            .map(|byte| byte.copied().unwrap_or(0xEE));
        self.tcp.segment(offset, said.collect::<Vec<u8>>())
    }

    /// Build such a segment at this distance from the edge.
    fn past_edge(&self, offset: i64, len: usize) -> Packet {
        self.past_next(i64::from(self.tcp.room()) + offset, len)
    }

    /// Send the rest at the pace, and check that everything was echoed unchanged.
    fn finish(mut self) -> Result<()> {
        let acked = self.tcp.next.wrapping_sub(self.base) as usize;
        deliver(&mut self.tcp, &self.stream[acked..], WAIT)?;
        let all = self.said.len() as u64;
        self.tcp.wait(WAIT, |tcp| tcp.ended || tcp.messages == all)?;
        let kept = self.tcp.kept.take().unwrap_or_default();
        ensure!(kept == self.said, "what was echoed is not what was said: {} messages", kept.len());
        self.tcp.finish()
    }
}

/// A sender's attempt at a held edge.
type Attempt = fn(&mut AtEdge) -> Result<()>;

/// Sizes of segments beyond the edge.
const BEYOND: [usize; 6] = [2, 3, 9, 128, 1000, SEGMENT];

/// Segments of many sizes, beyond the edge and partly beyond it.
fn segments_beyond(at: &mut AtEdge) -> Result<()> {
    for len in BEYOND {
        for past_edge in [0, 1, -1, 1 - len as i64, 20_000] {
            at.tcp.send(&at.past_edge(past_edge, len))?;
        }
    }
    Ok(())
}

/// Forge a window update of the server; then use the room it would permit.
fn forged_update(at: &mut AtEdge) -> Result<()> {
    for acked in [0, 20_000] {
        let (tcp, next) = (&at.tcp, at.tcp.next.wrapping_add(acked));
        let update = Packet::new(tcp.server, tcp.client, tcp.expected(), next, Vec::new());
        tcp.send(&Packet { window: 0xFFFF, ..update })?;
        segments_beyond(at)?;
    }
    Ok(())
}

/// Numbers of bytes to repeat.
const AGAIN: [usize; 3] = [1, 500, SEGMENT];

/// Repeat bytes that the server has, unchanged and changed.
/// Also in one segment with bytes beyond the edge.
fn again(at: &mut AtEdge) -> Result<()> {
    for len in AGAIN {
        let room = usize::try_from(at.tcp.room()).unwrap_or(0);
        let across = at.past_next(-(len as i64), len + room + 1);
        let before = at.past_next(-(len as i64), len);
        for mut packet in [across, before].into_iter().filter(|p| p.payload.len() <= SEGMENT) {
            at.tcp.send(&packet)?;
            packet.payload[..len].fill(0x89);
            at.tcp.send(&packet)?;
        }
        // The server's answers open the window a little.
        at.tcp.settle(QUIET)?;
        segments_beyond(at)?;
    }
    Ok(())
}

/// Maximum number of old bytes sent until the window has opened.
const PROBES: usize = 100;

/// Send a gap before the edge, bytes behind the gap, and bytes beyond the edge.
fn gap(at: &mut AtEdge) -> Result<()> {
    // An old byte, as sent by a persist timer: the answer tells the window.
    let room = |tcp: &RawTcp| tcp.room() >= 600;
    for _ in 0..PROBES {
        at.tcp.send(&at.past_next(-1, 1))?;
        if at.tcp.wait(Duration::from_millis(200), room)? {
            break;
        }
    }
    ensure!(room(&at.tcp), "the edge does not move");
    at.tcp.send(&at.past_edge(-300, 300))?;
    at.tcp.send(&at.past_edge(-300, 301))?;
    segments_beyond(at)
}

/// A sender that ignores the window:
/// whatever it tries, nothing beyond the edge reaches the server, and its bytes in order arrive
/// unchanged, as its neighbours' streams do.
#[test]
fn nothing_passes_a_held_edge() -> Result<()> {
    needs_root!();
    let again_twice = 2 * AGAIN.iter().sum::<usize>();
    // How much of each reaches the server. Bytes behind a gap in a long frame's payload pass. Where
    // something passes the server answers, and opens the window a little: on a busy machine before
    // the bytes beyond it are there.
    let late: usize = BEYOND.iter().map(|len| 5 * len).sum();
    let attempts: [(&str, Attempt, RangeInclusive<usize>); 4] = [
        ("segments beyond the edge", segments_beyond, 0..=0),
        ("an update of the window in the server's name", forged_update, 0..=0),
        ("what was sent comes again", again, again_twice..=again_twice + 3 * late),
        ("a gap before the edge", gap, 301..=300 + PROBES + late),
    ];
    let stage = open()?.guard("xdp-native")?;
    for (n, (name, attempt, wanted)) in (1..).zip(attempts) {
        let play = || {
            let mut at = AtEdge::new(&stage, n)?;
            for _ in 0..3 {
                let arrived = at.arrives(attempt)?;
                ensure!(wanted.contains(&arrived), "{arrived} bytes arrive, not {wanted:?}");
                at.fill()?;
            }
            ensure!(at.tcp.taken_beyond() == 0, "the server took what was beyond the edge");
            at.finish()
        };
        stage.with_honest_clients(Library::Gorilla, Family::V4, n, || play().context(name))?;
    }
    let status: serde_json::Value = stage.guard.ask("status")?;
    println!("{}", status["drops"]);
    ensure!(status["drops"]["beyond_edge"].as_u64() > Some(0), "nothing was dropped: {status}");
    stage.finish()
}
