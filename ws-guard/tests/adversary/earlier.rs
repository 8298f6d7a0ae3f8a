//! Connections older than the guard, and of other protocols at protected ports.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, PairOptions},
    others::{Protocol, Talk},
    process::Process,
    raw_tcp::{self, Opening, RawTcp},
    servers::Library,
};

use crate::{
    attacker::{pings, try_all},
    stage::{LIMIT, Open, PORT, Stage},
};

/// Number of frames within which a connection must have been adopted.
const ADOPTION: u64 = 10;
const WAIT: Duration = Duration::from_secs(10);
/// The first port without a WebSocket server.
const FREE: u16 = PORT + 7;
const IDLE: u8 = 20;
const FLOOD: u32 = 200;
/// Bodies that each of the other protocols sends and gets back.
const BODIES: usize = 60;

/// Floods, idle connections and other protocols, older than the guard.
struct Earlier {
    floods: Vec<(Family, RawTcp)>,
    idle: Vec<Client>,
    others: Vec<(Protocol, Process, Talk)>,
}

impl Earlier {
    fn new(open: &Open) -> Result<Earlier> {
        let mut floods = Vec::new();
        for family in Family::BOTH {
            let client = SocketAddr::new(raw_tcp::address(family, 0), 40_000);
            let server = open.at(Library::Python, family)?;
            let mut tcp = RawTcp::connect(&open.pair, client, server, &Opening::default())?;
            tcp.upgrade()?;
            tcp.push(&pings(20))?;
            ensure!(tcp.drain()?, "the server takes no pings");
            floods.push((family, tcp));
        }
        let mut idle = Vec::new();
        for n in 0..IDLE {
            let family = Family::BOTH[usize::from(n) % 2];
            let options = ConnectOptions { source: Some(family.client(n)), ..Default::default() };
            let at = open.at(Library::Python, family)?;
            idle.push(Client::connect(&open.pair.client, at, options)?);
        }
        let mut others = Vec::new();
        for (protocol, port) in Protocol::ALL.into_iter().zip(FREE..) {
            let server = protocol.serve(&open.pair.server, port)?;
            let at = SocketAddr::new(Family::V4.server(), port);
            let talk = protocol.talk(&open.pair.client, at)?;
            talk.goes_on(10)?;
            others.push((protocol, server, talk));
        }
        Ok(Earlier { floods, idle, others })
    }
}

/// Return the number of answered pings of a flood since the guard, and a time:
/// how long it took to throttle the source.
fn flood(stage: &Stage, tcp: &mut RawTcp) -> Result<(u64, Option<Duration>)> {
    tcp.settle(Duration::from_millis(50))?;
    let before = tcp.pongs;
    let address = tcp.client.ip().to_string();
    let start = Instant::now();
    let mut throttled = None;
    for n in 0..FLOOD {
        try_all(tcp, &pings(1))?;
        if throttled.is_none() && n % 10 == 0 && throttled_sources(stage)?.contains(&address) {
            throttled = Some(start.elapsed());
        }
    }
    tcp.settle(Duration::from_millis(150))?;
    let answered = tcp.pongs - before;
    tcp.finish()?;
    Ok((answered, throttled))
}

/// Return the throttled sources' addresses, with the attacker's end for IPv6.
fn throttled_sources(stage: &Stage) -> Result<Vec<String>> {
    let sources: Vec<serde_json::Value> = stage.guard.ask("throttled")?;
    let names = sources.iter().filter_map(|source| source["source"].as_str());
    Ok(names.map(|name| name.replace("::/64", "::1")).collect())
}

/// Return how many idle clients are followed after [`ADOPTION`] frames each.
fn adopted(stage: &Stage, idle: &mut [Client]) -> Result<usize> {
    for client in &mut *idle {
        for n in 1..=ADOPTION {
            client.send(&[Frame::text(&format!("message {n}"))], &Cut::Whole)?;
            ensure!(client.wait(WAIT, |r| r.messages == n), "no echo of message {n}");
        }
    }
    let mut adopted = 0;
    for client in idle {
        let flow = stage.flow(client.local())?;
        adopted += usize::from(flow.is_some_and(|flow| flow.state == "open"));
    }
    Ok(adopted)
}

/// Check that the other protocols' connections are left alone:
/// none is followed as WebSocket, and not one byte is changed, before and after the guard comes,
/// though their bodies look like pings.
fn left_alone(stage: &Stage, others: &[(Protocol, Process, Talk)]) -> Result<()> {
    for ((protocol, _, before), port) in others.iter().zip(FREE..) {
        let at = SocketAddr::new(Family::V4.server(), port);
        let after = protocol.talk(&stage.pair.client, at)?;
        before.goes_on(BODIES).with_context(|| format!("{protocol:?} from before"))?;
        after.goes_on(BODIES).with_context(|| format!("{protocol:?}"))?;
        let flows: Vec<serde_json::Value> = stage.guard.ask("flows")?;
        let end = format!(":{port}");
        let mine = |flow: &&serde_json::Value| {
            flow["server"].as_str().is_some_and(|server| server.ends_with(&end))
        };
        let open: Vec<_> = flows.iter().filter(mine).filter(|f| f["state"] == "open").collect();
        println!("  {protocol:?}: {} flows are open", open.len());
        ensure!(open.is_empty(), "{protocol:?} is followed: {open:?}");
        let pings: u64 = flows.iter().filter(mine).filter_map(|f| f["pings_in"].as_u64()).sum();
        ensure!(pings == 0, "{pings} pings in {protocol:?}: {flows:?}");
    }
    Ok(())
}

#[test]
fn connections_that_were_there_before() -> Result<()> {
    needs_root!();
    let options = PairOptions { clients: IDLE, offloads: false, ..PairOptions::default() };
    let open = Open::new(options)?;
    let Earlier { mut floods, mut idle, others } = Earlier::new(&open)?;
    let stage = open.guard("xdp-native")?;
    left_alone(&stage, &others)?;
    let adopted = adopted(&stage, &mut idle)?;
    println!("  {adopted} of {IDLE} idle connections adopted within {ADOPTION} frames");
    let mut answered = Vec::new();
    for (family, tcp) in &mut floods {
        let (pongs, throttled) = flood(&stage, tcp)?;
        println!("  {family:?}: {pongs} of {FLOOD} pings answered, throttled {throttled:?}");
        answered.push(pongs);
    }
    idle.into_iter().try_for_each(|client| client.close().map(drop))?;
    for (_, mut server, talk) in others {
        drop(talk);
        server.terminate()?;
    }
    stage.finish()?;
    let passes =
        adopted == usize::from(IDLE) && answered.iter().all(|pongs| *pongs <= LIMIT + ADOPTION);
    ensure!(passes, "{adopted} connections adopted; pings answered: {answered:?}");
    Ok(())
}
