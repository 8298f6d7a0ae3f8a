//! Honest clients of the soak.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::Family,
    servers::{Library, Server},
};

use super::{Clock, address};
use crate::stage::{LAST_PORT, PORT, Stage, ports};

const WAIT: Duration = Duration::from_secs(10);
/// Pause between two messages of each client that stays.
const PACE: Duration = Duration::from_millis(100);
/// Messages between two pings: one ping in 10 s, at most a third of the limit.
const PING_EVERY: u64 = 100;
const VISIT_EVERY: Duration = Duration::from_millis(50);
const JOIN_EVERY: Duration = Duration::from_secs(10);
/// Number of frames within which an older connection must have been adopted.
const ADOPTION: u64 = 10;

fn connect(stage: &Stage, at: SocketAddr, family: Family, n: u8) -> Result<Client> {
    let options = ConnectOptions { source: Some(family.client(n)), ..ConnectOptions::default() };
    Client::connect(&stage.pair.client, at, options)
}

/// Run a client of each server over each IP version, for all the time:
/// each message is echoed in turn, and in the end all were counted.
pub fn talk(stage: &Stage, clock: &Clock) -> Result<u64> {
    let mut clients = Vec::new();
    for (n, library) in Library::ALL.into_iter().enumerate() {
        for (m, family) in Family::BOTH.into_iter().enumerate() {
            let at = stage.server(library)?.at(family.server());
            clients.push(connect(stage, at, family, address::TALKERS + (2 * n + m) as u8)?);
        }
    }
    let mut turn = 0;
    while clock.sleep(PACE) {
        for (n, client) in clients.iter_mut().enumerate() {
            let text = format!("message {turn}");
            let mut frames = vec![Frame::text(&text)];
            if turn % PING_EVERY == n as u64 {
                frames.push(Frame::ping("still there?"));
            }
            client.send(&frames, &Cut::Every(7 + turn as usize % 90))?;
            ensure!(client.wait(WAIT, |r| !r.kept.is_empty()), "no echo of {text}");
            let echo = client.received().kept.pop_front().map(|(_, echo)| echo);
            ensure!(echo.as_deref() == Some(text.as_bytes()), "{text} came back as {echo:?}");
        }
        turn += 1;
    }
    let mut messages = 0;
    for client in clients {
        stage.exact(&client)?;
        messages += client.sent().messages;
        client.close()?;
    }
    Ok(messages)
}

/// Open connections that exchange one message and close, to each server in turn.
pub fn visit(stage: &Stage, clock: &Clock) -> Result<u64> {
    let mut visits = 0;
    while clock.sleep(VISIT_EVERY) {
        let library = Library::ALL[visits as usize % Library::ALL.len()];
        let family = Family::BOTH[visits as usize / Library::ALL.len() % 2];
        let at = stage.server(library)?.at(family.server());
        let mut client = connect(stage, at, family, address::VISITORS + (visits % 10) as u8)?;
        client.send_one(Frame::text("hello"))?;
        ensure!(client.wait(WAIT, |r| r.messages == 1), "{}: no echo", library.name());
        if visits % 2 == 0 {
            client.close()?;
        } else {
            client.reset()?;
        }
        visits += 1;
    }
    Ok(visits)
}

/// Open connections to a port that is protected only afterwards, and later no more.
pub fn join(stage: &Stage, clock: &Clock) -> Result<u64> {
    let server = Server::start(&stage.pair.server, Library::Gorilla, LAST_PORT, None)?;
    let at = server.at(Family::V4.server());
    let protect = |last| stage.guard.run(&format!("policy set --port {}", ports(PORT..=last)));
    let mut joined = 0;
    while clock.sleep(JOIN_EVERY) {
        protect(LAST_PORT - 1)?;
        let mut client = connect(stage, at, Family::V4, address::JOINERS + (joined % 5) as u8)?;
        client.send_one(Frame::text("unseen"))?;
        ensure!(client.wait(WAIT, |r| r.messages == 1), "no echo before");
        protect(LAST_PORT)?;
        for n in 1..=ADOPTION {
            client.send_one(Frame::text(&format!("message {n}")))?;
            ensure!(client.wait(WAIT, |r| r.messages == n + 1), "no echo of message {n}");
        }
        let flow = stage.flow(client.local())?.context("it was not joined")?;
        ensure!(flow.state == "open", "{flow:?}");
        client.close()?;
        joined += 1;
    }
    server.stop()?;
    Ok(joined)
}
