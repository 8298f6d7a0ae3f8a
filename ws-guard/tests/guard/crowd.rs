//! Many simultaneous connections, each counted separately.
use std::{collections::HashMap, thread};

use anyhow::{Context, Result, anyhow, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::Frame,
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::{
    stage::{Flow, Source, Stage},
    talk::{pings, round_trip, text},
};

const CONNECTIONS: usize = 200;
/// Number of addresses of each IP version that share the connections.
const CLIENTS: u8 = 10;
/// Number of connections that one thread writes to in turn.
const PER_THREAD: usize = 25;
const ROUNDS: u64 = 4;

/// Send different messages on each connection, cut in different ways.
fn talk(number: usize, client: &mut Client) -> Result<()> {
    let n = number as u64;
    for round in 0..ROUNDS {
        let mut frames = pings(round * 10, (n + round) % 7);
        frames.push(Frame::text(&text(number * 11, n)));
        frames.extend(pings(round * 10 + 7, n % 3));
        client.send(&frames, &Cut::Every(50 + number))?;
    }
    round_trip(client, "the end")?;
    Ok(())
}

fn talk_all(clients: &mut [Client]) -> Result<()> {
    thread::scope(|scope| {
        let talks: Vec<_> = clients
            .chunks_mut(PER_THREAD)
            .enumerate()
            .map(|(chunk, clients)| {
                scope.spawn(move || {
                    let mut numbered = clients.iter_mut().enumerate();
                    numbered.try_for_each(|(n, client)| talk(chunk * PER_THREAD + n, client))
                })
            })
            .collect();
        talks.into_iter().try_for_each(|talk| talk.join().map_err(|_| anyhow!("panicked"))?)
    })
}

#[test]
fn two_hundred_connections_are_counted_each_for_itself() -> Result<()> {
    needs_root!();
    let options = PairOptions { clients: CLIENTS, ..PairOptions::default() };
    let libraries = [Library::TokioTungstenite, Library::Python];
    let stage = Stage::with(&libraries, options, "--max-ping-rate 100000")?;
    let mut clients = Vec::new();
    for n in 0..CONNECTIONS {
        let (family, address) = (Family::BOTH[n / 2 % 2], (n / 4) as u8 % CLIENTS);
        clients.push(stage.client_of(n % 2, family, address)?);
    }
    talk_all(&mut clients)?;

    let flows: Vec<Flow> = stage.guard.ask("flows")?;
    ensure!(flows.len() == CONNECTIONS, "{} flows", flows.len());
    let flows: HashMap<&str, &Flow> = flows.iter().map(|f| (f.client.as_str(), f)).collect();
    let mut pings = 0;
    for client in &clients {
        let name = client.local().to_string();
        let flow = flows.get(name.as_str()).with_context(|| format!("no flow of {name}"))?;
        let sent = client.sent();
        ensure!((flow.frames_in, flow.pings_in) == (sent.frames, sent.pings), "{sent:?} {flow:?}");
        let received = client.received();
        let answered = (received.frames, received.pongs);
        ensure!((flow.frames_out, flow.pongs_out) == answered, "{answered:?} {flow:?}");
        ensure!(flow.state == "open" && flow.gaps == 0 && flow.violations == 0, "{flow:?}");
        pings += sent.pings;
    }
    let sources: Vec<Source> = stage.guard.ask("sources")?;
    ensure!(sources.len() == usize::from(CLIENTS) * 2, "{} sources", sources.len());
    for family in Family::BOTH {
        for address in 0..CLIENTS {
            let ours = clients.iter().filter(|c| c.local().ip() == family.client(address));
            let sent: u64 = ours.map(|client| client.sent().pings).sum();
            let source = stage.source(family, address)?;
            ensure!(sent > 0 && source.pings_total == sent, "{sent} pings of {source:?}");
        }
    }
    clients.into_iter().try_for_each(|client| client.close().map(drop))?;
    let totals = stage.finish()?;
    let counted: u64 = totals.iter().map(|total| total.pings).sum();
    ensure!(counted == pings, "the servers counted {counted} of {pings} pings");
    Ok(())
}
