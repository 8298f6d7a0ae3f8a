//! Floods and honest traffic through a node.
//! It is guarded at its pods, at its uplink, or at both: every frame is counted once, and the
//! servers see what they may.
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    flood::{Bounds, flood},
    frame::{Frame, encode},
    netns::{Family, Namespace, PairOptions},
    node::Node,
    pool::{self, Flood, Plan},
    servers::{Library, Server, Totals},
};

use crate::guard::{Guard, PORT, eventually};

/// Number of pings of the flood: enough for thousands of segments.
const PINGS: u64 = 20_000;
/// Default of `--max-ping-rate`.
const LIMIT: u64 = 30;
const PATIENCE: Duration = Duration::from_secs(20);
/// Number of uploads: more bytes than a source's that pass unread.
const UPLOADS: usize = 3;

/// Address that the first pod sees for clients whose addresses the node translates.
const NODE: &str = "10.78.0.1";

/// A node with a server in each of its two pods.
struct Stage {
    guard: Guard,
    servers: Vec<Server>,
    node: Node,
}

impl Stage {
    fn new(words: &str, options: PairOptions) -> Result<Stage> {
        Stage::with(Library::TokioTungstenite, words, options)
    }

    fn with(library: Library, words: &str, options: PairOptions) -> Result<Stage> {
        let node = Node::new(2, options)?;
        let servers =
            node.pods.iter().map(|pod| Server::start(&pod.namespace, library, PORT, None));
        let servers = servers.collect::<Result<Vec<Server>>>()?;
        // Floods must pass entirely.
        let guard = Guard::start(node.namespace(), &format!("{words} --pace off"))?;
        Ok(Stage { guard, servers, node })
    }

    fn connect(
        &self,
        from: &Namespace,
        pod: usize,
        family: Family,
        source: Option<u8>,
    ) -> Result<Client> {
        let at = SocketAddr::new(self.node.pods[pod].address(family), PORT);
        let source = source.map(|n| family.client(n));
        Client::connect(from, at, ConnectOptions { source, ..ConnectOptions::default() })
    }

    fn flow(&self, client: &Client) -> Result<Value> {
        let flows = self.guard.ask("flows")?;
        let name = client.local().to_string();
        let found = flows.as_array().and_then(|rows| rows.iter().find(|row| row["client"] == name));
        found.cloned().with_context(|| format!("no flow of {name} among {flows}"))
    }

    /// Stop servers and guard; return the servers' counts.
    fn finish(self) -> Result<Vec<Totals>> {
        let Stage { guard, servers, node } = self;
        let totals = servers.into_iter().map(Server::stop).collect::<Result<Vec<Totals>>>()?;
        guard.finish()?;
        drop(node);
        Ok(totals)
    }
}

/// Send pings at full speed, and wait until the server has taken them all.
/// However long that takes, some of them have to leave in each round.
fn flooded(stage: &Stage, client: &mut Client) -> Result<()> {
    let story =
        |client: &Client| format!("{:?}, {:?}", stage.flow(client), stage.guard.ask("status"));
    let mut left = PINGS;
    while left > 0 {
        let bounds = Bounds { pings: left, time: PATIENCE, pause: Duration::ZERO };
        let done = flood(client, bounds, || true)?;
        ensure!(
            done.pings > 0,
            "{left} pings do not leave within {PATIENCE:?}: {done:?}, {}",
            story(client)
        );
        left -= done.pings;
    }
    ensure!(client.drain(PATIENCE), "the server has not taken all: {}", story(client));
    Ok(())
}

/// Send text and a few pings, and wait for each answer.
fn talk(client: &mut Client) -> Result<()> {
    for n in 0..100 {
        let frame = if n % 20 == 0 { Frame::ping("ping") } else { Frame::text("some text") };
        client.send_one(frame)?;
    }
    ensure!(client.wait(PATIENCE, |got| got.messages == 95 && got.pongs == 5), "not all answered");
    Ok(())
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or(u64::MAX)
}

/// Check every figure for a flooder and an honest client, to a pod each.
fn every_frame_once(words: &str, family: Family, options: PairOptions) -> Result<()> {
    let stage = Stage::new(words, options)?;
    let outside = &stage.node.pair.client;
    let mut honest = stage.connect(outside, 1, family, Some(1))?;
    let mut flooder = stage.connect(outside, 0, family, Some(0))?;
    flooded(&stage, &mut flooder)?;
    talk(&mut honest)?;
    // The server may still be answering the last pings.
    eventually("the counts are complete", || {
        let flow = stage.flow(&flooder)?;
        Ok(number(&flow, "frames_in") >= PINGS && number(&flow, "pongs_out") >= LIMIT)
    })?;
    let (flood, talk) = (stage.flow(&flooder)?, stage.flow(&honest)?);
    let status = stage.guard.ask("status")?;
    for (row, field, wanted) in [
        (&flood, "frames_in", PINGS),
        (&flood, "pings_in", PINGS),
        (&flood, "defused", PINGS - LIMIT),
        (&flood, "pongs_out", LIMIT),
        (&flood, "violations", 0),
        (&flood, "unsynced_total", 0),
        (&talk, "frames_in", 100),
        (&talk, "pings_in", 5),
        (&talk, "pongs_out", 5),
        (&talk, "frames_out", 100),
        (&talk, "defused", 0),
        (&status["packets"], "defused", PINGS - LIMIT),
    ] {
        ensure!(number(row, field) == wanted, "{field} is not {wanted}: {row}\n{status}");
    }
    let sources = stage.guard.ask("sources")?;
    let pings: u64 =
        sources.as_array().context("sources")?.iter().map(|s| number(s, "pings_total")).sum();
    ensure!(pings == PINGS + 5, "{sources}");
    println!("{words} {family:?}: {}", status["drops"]);
    drop((honest, flooder));
    let totals = stage.finish()?;
    ensure!((totals[0].pings, totals[0].pongs) == (LIMIT, PINGS - LIMIT), "{totals:?}");
    ensure!((totals[1].pings, totals[1].messages) == (5, 95), "{totals:?}");
    Ok(())
}

const PODS: &str = "--pod-interface cali*";
const UPLINK: &str = "--interface veth0";
const BOTH: &str = "--interface veth0 --pod-interface cali*";

fn with_and_without_offloads(words: &str) -> Result<()> {
    for (family, offloads) in [(Family::V4, true), (Family::V6, true), (Family::V4, false)] {
        every_frame_once(words, family, PairOptions { offloads, ..PairOptions::default() })?;
    }
    Ok(())
}

#[test]
fn guarded_at_the_pods() -> Result<()> {
    needs_root!();
    with_and_without_offloads(PODS)
}

#[test]
fn guarded_at_the_uplink() -> Result<()> {
    needs_root!();
    with_and_without_offloads(UPLINK)
}

#[test]
fn guarded_at_both_every_frame_is_counted_once() -> Result<()> {
    needs_root!();
    with_and_without_offloads(BOTH)
}

#[test]
fn guarded_without_tcx() -> Result<()> {
    needs_root!();
    for words in [PODS, UPLINK, BOTH] {
        every_frame_once(&format!("{words} --attach clsact"), Family::V4, PairOptions::default())?;
    }
    Ok(())
}

#[test]
fn guarded_at_both_without_xdp() -> Result<()> {
    needs_root!();
    every_frame_once(&format!("{BOTH} --attach tcx"), Family::V6, PairOptions::default())
}

/// A known limit: pings charged twice, at the uplink and at the pod.
/// Where the node forwards a connection to a pod under another address, as kube-proxy does, nothing
/// identifies both as one connection.
#[test]
fn behind_nat_guarded_at_both_each_ping_is_charged_twice() -> Result<()> {
    needs_root!();
    for (words, passed) in [(UPLINK, LIMIT), (PODS, LIMIT), (BOTH, LIMIT / 2)] {
        let stage = Stage::new(words, PairOptions::default())?;
        let at = SocketAddr::new(Family::V4.server(), PORT);
        let to = SocketAddr::new(stage.node.pods[0].address(Family::V4), PORT);
        stage.node.send_on(at, to)?;
        let mut client = Client::connect(&stage.node.pair.client, at, ConnectOptions::default())?;
        // Each passes both before the next one is sent: the uplink would pass all of several that
        // it takes at once, before the pods' interface has charged them.
        for n in 1..=LIMIT {
            client.send_one(Frame::ping("ping"))?;
            client.send_one(Frame::text("behind it"))?;
            ensure!(client.wait(PATIENCE, |got| got.messages == n), "{words}: not answered");
        }
        drop(client);
        let totals = stage.finish()?;
        let seen = (totals[0].pings, totals[0].pongs);
        ensure!(seen == (passed, LIMIT - passed), "{words}: {totals:?}");
    }
    Ok(())
}

/// `externalTrafficPolicy: Cluster`:
/// behind the node's translation all clients are one source, and each keeps its heartbeats,
/// whatever one of them does.
#[test]
fn behind_a_node_port_of_the_cluster_no_honest_ping_is_lost() -> Result<()> {
    needs_root!();
    const CLIENTS: u8 = 20;
    for words in [PODS, BOTH] {
        let options = PairOptions { clients: CLIENTS + 1, ..PairOptions::default() };
        let stage = Stage::new(words, options)?;
        // The default; other tests count without a share.
        stage.guard.ask("policy set --connection-share 5")?;
        let at = SocketAddr::new(Family::V4.server(), PORT);
        stage.node.send_on(at, SocketAddr::new(stage.node.pods[0].address(Family::V4), PORT))?;
        stage.node.masquerade(0)?;
        let plan = Plan {
            server: at,
            honest: (0..CLIENTS).map(|n| Family::V4.client(n)).collect(),
            every: Duration::from_millis(500),
            pings: 4,
            flooders: vec![(Family::V4.client(CLIENTS), Flood::Steady(Duration::from_millis(5)))],
        };
        let (outcome, sources) =
            pool::run(&stage.node.pair.client, &plan, |_| stage.guard.ask("sources"))?;
        let (pings, unanswered) = (outcome.honest_pings(), outcome.unanswered());
        println!("{words}: {unanswered} of {pings} honest pings unanswered");
        ensure!(pings == u64::from(CLIENTS) * 4 && unanswered == 0, "{unanswered} of {pings}");
        ensure!(outcome.lost().is_empty(), "lost: {:?}", outcome.lost());
        let flooder = &outcome.flooders[0];
        let answered = flooder.answered.len() as u64;
        ensure!(flooder.pings > LIMIT && answered <= LIMIT, "{answered} of {}", flooder.pings);
        let node = sources.as_array().and_then(|all| all.iter().find(|row| row["source"] == NODE));
        let throttled = node.is_some_and(|row| row["state"] == "throttled");
        ensure!(throttled, "the node's own address: {sources}");
        stage.finish()?;
    }
    Ok(())
}

/// A flood from the node itself, or from another pod, never passes the uplink.
/// The node's own segments are clones of those that TCP keeps for retransmission.
#[test]
fn a_flood_from_the_node_or_from_a_pod() -> Result<()> {
    needs_root!();
    for attach in ["auto", "clsact"] {
        let stage = Stage::new(&format!("{BOTH} --attach {attach}"), PairOptions::default())?;
        for (from, to) in [(stage.node.namespace(), 1), (&stage.node.pods[0].namespace, 1)] {
            let mut flooder = stage.connect(from, to, Family::V4, None)?;
            flooded(&stage, &mut flooder)?;
            let counted = || Ok(number(&stage.flow(&flooder)?, "frames_in") >= PINGS);
            eventually("the counts are complete", counted)?;
            let flow = stage.flow(&flooder)?;
            let figures = ["frames_in", "pings_in", "defused"].map(|field| number(&flow, field));
            ensure!(figures == [PINGS, PINGS, PINGS - LIMIT], "{flow}");
        }
        let totals = stage.finish()?;
        ensure!(totals[1].pings == 2 * LIMIT, "{totals:?}");
    }
    Ok(())
}

/// Upload requests' bodies to the listener's connections, one after the other.
fn upload(outside: &Namespace, server: SocketAddr, listener: TcpListener) -> Result<()> {
    const BODY: usize = 1_000_000;
    let head = format!("POST / HTTP/1.1\r\nHost: server\r\nContent-Length: {BODY}\r\n\r\n");
    let wanted = head.len() + BODY;
    let serving = thread::spawn(move || -> Result<()> {
        for _ in 0..UPLOADS {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            io::copy(&mut Read::by_ref(&mut stream).take(wanted as u64), &mut io::sink())?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
        Ok(())
    });
    for _ in 0..UPLOADS {
        let mut stream = outside.run(|| TcpStream::connect(server))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(head.as_bytes())?;
        stream.write_all(&vec![b'x'; BODY])?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).context("no answer to an upload")?;
        ensure!(&answer == b"HTTP/1.1 200", "{answer:?}");
    }
    serving.join().map_err(|_| anyhow!("the server panicked"))?
}

/// Requests read at the uplink are not read again at the pod, where nothing would be known of them.
#[test]
fn guarded_at_both_uploads_are_not_slowed() -> Result<()> {
    needs_root!();
    let node = Node::new(1, PairOptions::default())?;
    let pod = &node.pods[0];
    let listener = pod.namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
    let guard = Guard::start(node.namespace(), BOTH)?;
    upload(&node.pair.client, SocketAddr::new(pod.address(Family::V4), PORT), listener)?;
    let status = guard.ask("status")?;
    ensure!(number(&status["drops"], "unsynced") == 0, "{status}");
    guard.finish()
}

/// Segments dropped on egress, which never reach the pod.
/// Those dropped at the uplink do not even reach its interface.
#[test]
fn the_source_may_be_dropped_too() -> Result<()> {
    needs_root!();
    for words in [PODS, BOTH] {
        let stage = Stage::new(&format!("{words} --action drop"), PairOptions::default())?;
        let mut honest = stage.connect(&stage.node.pair.client, 1, Family::V4, Some(1))?;
        let mut flooder = stage.connect(&stage.node.pair.client, 0, Family::V4, Some(0))?;
        for _ in 0..LIMIT + 5 {
            flooder.write_segment(&encode(&[Frame::ping("")]))?;
        }
        ensure!(!flooder.drain(Duration::from_millis(500)), "{words}: nothing was dropped");
        talk(&mut honest)?;
        let status = stage.guard.ask("status")?;
        ensure!(number(&status["drops"], "throttled") > 0, "{words}: {status}");
        flooder.reset()?;
        drop(honest);
        let totals = stage.finish()?;
        ensure!((totals[0].pings, totals[1].pings) == (LIMIT, 5), "{words}: {totals:?}");
    }
    Ok(())
}

/// A daemon restarted for one role alone.
/// Connections from outside are followed at the uplink and go on there; without it they are not
/// followed, and forgotten.
#[test]
fn one_role_is_given_up() -> Result<()> {
    needs_root!();
    for (words, kept) in [(UPLINK, 1), (PODS, 0)] {
        let mut stage = Stage::new(BOTH, PairOptions::default())?;
        let mut before = stage.connect(&stage.node.pair.client, 1, Family::V4, Some(1))?;
        talk(&mut before)?;
        stage.guard.stop()?;
        stage.guard.set_words(words);
        stage.guard.restart()?;
        ensure!(stage.guard.attached()? == if kept == 1 { 1 } else { 2 }, "{words}");
        let flows = stage.guard.ask("flows")?;
        ensure!(flows.as_array().is_some_and(|flows| flows.len() == kept), "{words}: {flows}");
        if kept == 1 {
            before.send_one(Frame::text("it goes on"))?;
            ensure!(before.wait(PATIENCE, |got| got.messages == 96), "not echoed");
            ensure!(number(&stage.flow(&before)?, "frames_in") == 101);
        }
        let mut after = stage.connect(&stage.node.pair.client, 0, Family::V4, Some(0))?;
        talk(&mut after)?;
        ensure!(number(&stage.flow(&after)?, "frames_in") == 100, "{words}");
        drop((before, after));
        stage.finish()?;
    }
    Ok(())
}
