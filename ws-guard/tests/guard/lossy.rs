//! Honest clients on paths that lose packets: everything arrives in the end, and is counted once.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, Namespace},
    path::{Impairment, Path},
    servers::{Library, Server},
};

use crate::{process::Guard, stage::Flow};

const PORT: u16 = 9001;
/// Small ones: a header in each segment, and more segments under way than the guard has checkpoints.
const MESSAGE: usize = 500;
/// Messages in one write, which TCP cuts where it likes.
const TOGETHER: usize = 40;
const PINGS: u64 = 20;
const WAIT: Duration = Duration::from_secs(30);

/// Send `writes` times so many messages, a ping with each, over a path that loses 3 % of them.
fn upload(guarded: fn(&Path) -> &Namespace, writes: u64) -> Result<()> {
    let path = Path::new(1)?;
    let server = Server::start(&path.pair.server, Library::TokioTungstenite, PORT, None)?;
    let guard = Guard::start(guarded(&path), &format!("--port {PORT}"))?;
    let at = server.at(Family::V4.server());
    let mut client = Client::connect(&path.pair.client, at, ConnectOptions::default())?;
    let delay = Duration::from_millis(5);
    path.set(Impairment { lost: 30, delay, seed: 1, ..Impairment::default() });
    let text = "x".repeat(MESSAGE);
    for write in 0..writes {
        let mut frames = vec![Frame::text(&text); TOGETHER];
        if write < PINGS {
            frames.push(Frame::ping("still there?"));
        }
        client.send(&frames, &Cut::Whole)?;
    }
    let sent = client.sent();
    ensure!(
        client.wait(WAIT, |r| r.messages == sent.messages),
        "{sent:?}: {:?}",
        client.received().messages
    );
    let flows: Vec<Flow> = guard.ask("flows")?;
    let flow =
        flows.iter().find(|flow| flow.client == client.local().to_string()).context("no flow")?;
    println!("{sent:?}: {flow:?}, {} pongs", client.received().pongs);
    ensure!((flow.frames_in, flow.pings_in) == (sent.frames, sent.pings), "{sent:?}: {flow:?}");
    client.close()?;
    server.stop()?;
    guard.finish()
}

#[test]
fn packets_that_are_lost_before_the_guard() -> Result<()> {
    needs_root!();
    upload(|path| &path.pair.server, 5)
}

/// The server then acknowledges a byte in the middle of what the guard has let through.
#[test]
fn packets_that_are_lost_behind_the_guard() -> Result<()> {
    needs_root!();
    upload(|path| &path.middle, 20)
}
