//! That the second line is exact: a flood of pings through real servers, over a path that loses and
//! reorders segments, with no policy for gaps.
use std::{path::Path as File, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::{Frame, encode},
    netns::Family,
    path::{Impairment, Path},
    servers::{Library, Server},
};

use super::{
    PORT,
    line::{Line, Verdict},
};

const PINGS: u64 = 100;
const LIMIT: u32 = 30;
/// A message comes behind each second ping.
const MESSAGES: u64 = PINGS / 2;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long no more pongs may come.
const QUIET: Duration = Duration::from_millis(500);

/// What becomes of the client's segments: one in ten is lost, one in ten is overtaken.
const IMPAIRED: Impairment = Impairment {
    lost: 100,
    late: 100,
    lateness: Duration::from_millis(5),
    delay: Duration::from_millis(1),
    seed: 0,
    cut: 0,
    merged: 0,
    mtu: 0,
};

/// Prove it for a server, on a clean path and on one that is not, so many times.
pub fn prove(object: &File, library: Library, parser: bool, times: u64) -> Result<()> {
    let mut line = Line::new(object, Verdict::Follow { limit: LIMIT }, parser)?;
    let path = Path::new(1)?;
    let server = line.inside(|| Server::start(&path.pair.server, library, PORT, None))?;
    for seed in 0..times {
        let impairment = if seed == 0 { Impairment::default() } else { IMPAIRED };
        let how = || format!("{}, parser: {parser}, run {seed}", library.name());
        let client = once(&path, &server, Impairment { seed, ..impairment }).with_context(how)?;
        let totals = line.totals()?;
        ensure!(
            (totals.connections, totals.pings) == (1, PINGS),
            "{}: {totals:?} were followed, not {PINGS} pings of 1 connection",
            how()
        );
        let local = client.local();
        client.close().with_context(how)?;
        let [closed] = &server.closed(local, 1, PATIENCE)?[..] else { continue };
        let (pings, pongs) = (u64::from(LIMIT), PINGS - u64::from(LIMIT));
        ensure!(
            (closed.messages, closed.pings, closed.pongs) == (MESSAGES, pings, pongs),
            "{}: the server says {closed:?}",
            how()
        );
    }
    server.stop()?;
    Ok(())
}

/// One client's pings and messages, and what came back.
fn once(path: &Path, server: &Server, impairment: Impairment) -> Result<Client> {
    path.set(Impairment { lost: 0, late: 0, ..impairment });
    let at = server.at(Family::V4.server());
    let mut client = Client::connect(&path.pair.client, at, ConnectOptions::default())?;
    path.set(impairment);
    let mut frames = Vec::new();
    for n in 0..PINGS {
        frames.push(Frame::ping(format!("ping {n}")));
        if n % 2 == 1 {
            frames.push(Frame::text(&text(n)));
        }
    }
    client.send(&frames, &cut(encode(&frames).len(), impairment.seed))?;
    let limit = u64::from(LIMIT);
    client.wait(PATIENCE, |r| r.ended || r.pongs >= limit && r.messages >= MESSAGES);
    client.wait(QUIET, |r| r.ended || r.pongs > limit);
    let received = client.received();
    let pongs: Vec<_> = received.pong_payloads.iter().cloned().collect();
    let wanted: Vec<_> = (0..limit).map(|n| format!("ping {n}").into_bytes()).collect();
    ensure!(pongs == wanted, "{} pongs came, not the first {limit}", pongs.len());
    let texts: Vec<_> = received.kept.iter().map(|(_, payload)| payload.clone()).collect();
    let wanted: Vec<_> = (0..PINGS).filter(|n| n % 2 == 1).map(|n| text(n).into_bytes()).collect();
    ensure!(texts == wanted, "{} echoes came, or others than were sent", texts.len());
    drop(received);
    Ok(client)
}

fn text(number: u64) -> String {
    format!("message {number}, {}", "x".repeat(number as usize * 3))
}

/// Segment borders anywhere, about one in 60 bytes.
fn cut(bytes: usize, seed: u64) -> Cut {
    let mut random = fastrand::Rng::with_seed(seed);
    Cut::At((1..bytes).filter(|_| random.u32(..60) == 0).collect())
}
