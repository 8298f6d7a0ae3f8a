//! Honest clients on bad paths: everything arrives in the end, and is counted once.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    flood::{Bounds, flood},
    frame::Frame,
    netns::{Family, Namespace},
    path::{Impairment, Path},
    servers::{Library, Server},
};

use crate::{process::Guard, stage::Flow};

const PORT: u16 = 9001;
/// Length of small messages:
/// a header in each segment, and more segments in flight than a flow has traces itself.
const MESSAGE: usize = 500;
/// Number of messages in one write, which TCP cuts anywhere.
const TOGETHER: usize = 40;
const PINGS: u64 = 20;
const WAIT: Duration = Duration::from_secs(30);
const DELAY: Duration = Duration::from_millis(5);

/// A client's upload: writes of several messages of one length.
#[derive(Clone, Copy)]
struct Upload {
    writes: u64,
    messages: usize,
    length: usize,
}

const UPLOAD: Upload = Upload { writes: 20, messages: TOGETHER, length: MESSAGE };

/// Position of the guard.
type Place = fn(&Path) -> &Namespace;

/// A path with a server at its end and a guard, and a connected client.
/// It connected before the path became bad.
struct Stage {
    guard: Guard,
    server: Server,
    client: Client,
    path: Path,
}

impl Stage {
    fn new(path: Path, guarded: Place, family: Family, words: &str) -> Result<Stage> {
        let server = Server::start(&path.pair.server, Library::TokioTungstenite, PORT, None)?;
        let guard = Guard::start(guarded(&path), &format!("--port {PORT} {words}"))?;
        let at = server.at(family.server());
        let client = Client::connect(&path.pair.client, at, ConnectOptions::default())?;
        Ok(Stage { guard, server, client, path })
    }

    /// Set up the guard in the middle of the path: losses happen behind it.
    fn before(path: Path, family: Family, words: &str) -> Result<Stage> {
        Stage::new(path, |path| &path.middle, family, words)
    }

    /// Set up the guard at the server.
    fn behind(path: Path) -> Result<Stage> {
        Stage::new(path, |path| &path.pair.server, Family::V4, "")
    }

    /// Send the upload, a ping with each write; check that all is echoed and counted.
    fn upload(mut self, impairment: Impairment, upload: Upload) -> Result<()> {
        self.path.set(impairment);
        self.send(upload)?;
        self.end()
    }

    fn send(&mut self, upload: Upload) -> Result<()> {
        let text = "x".repeat(upload.length);
        for write in 0..upload.writes {
            let mut frames = vec![Frame::text(&text); upload.messages];
            if write < PINGS {
                frames.push(Frame::ping("still there?"));
            }
            self.client.send(&frames, &Cut::Whole)?;
        }
        let sent = self.client.sent();
        let echoed = self.client.wait(WAIT, |r| r.messages == sent.messages);
        let received = self.client.received().messages;
        ensure!(echoed, "{sent:?}: {received:?}, {}", self.drops()?);
        Ok(())
    }

    fn drops(&self) -> Result<String> {
        let status: serde_json::Value = self.guard.ask("status")?;
        Ok(status["drops"].to_string())
    }

    fn end(self) -> Result<()> {
        let Stage { guard, server, client, path: _path } = self;
        let (sent, local) = (client.sent(), client.local().to_string());
        let flows: Vec<Flow> = guard.ask("flows")?;
        let flow = flows.iter().find(|flow| flow.client == local).context("no flow")?;
        println!("{sent:?}: {flow:?}, {} pongs", client.received().pongs);
        ensure!((flow.frames_in, flow.pings_in) == (sent.frames, sent.pings), "{sent:?}: {flow:?}");
        ensure!(flow.unsynced_total == 0, "{flow:?}");
        client.close()?;
        server.stop()?;
        guard.finish()
    }
}

fn lost(per_mille: u32) -> Impairment {
    Impairment { lost: per_mille, delay: DELAY, seed: 1, ..Impairment::default() }
}

#[test]
fn packets_that_are_lost_before_the_guard() -> Result<()> {
    needs_root!();
    Stage::behind(Path::new(1)?)?.upload(lost(30), Upload { writes: 5, ..UPLOAD })
}

/// Packets lost behind the guard:
/// the server then acknowledges a byte in the middle of what the guard has let through.
#[test]
fn packets_that_are_lost_behind_the_guard() -> Result<()> {
    needs_root!();
    Stage::before(Path::new(1)?, Family::V4, "")?.upload(lost(30), UPLOAD)
}

/// Super-packets that the guard sees, of which single segments are lost behind it.
#[test]
fn super_packets_that_are_lost_in_part() -> Result<()> {
    needs_root!();
    for (family, length) in [(Family::V4, 100), (Family::V6, 400)] {
        let stage = Stage::before(Path::merged(1)?, family, "--attach xdp-generic")?;
        // Some 4,000 segments: about 8 of them are lost.
        let upload = Upload { writes: 20, messages: 300_000 / length, length };
        stage.upload(lost(2), upload)?;
    }
    Ok(())
}

/// Links behind the guard with smaller and smaller MTUs, without loss.
#[test]
fn paths_that_become_narrower_behind_the_guard() -> Result<()> {
    needs_root!();
    for (family, mtus) in [(Family::V4, [1400, 576]), (Family::V6, [1400, 1280])] {
        for length in [100, 400] {
            let mut stage = Stage::before(Path::new(1)?, family, "")?;
            for mtu in mtus {
                stage.path.set(Impairment { mtu, ..lost(0) });
                stage.send(Upload { writes: 5, messages: 400, length })?;
            }
            stage.end()?;
        }
    }
    Ok(())
}

/// Segments cut and merged behind the guard, and lost.
#[test]
fn segments_cut_and_merged_behind_the_guard() -> Result<()> {
    needs_root!();
    for (family, lost_) in [(Family::V4, 10), (Family::V6, 20)] {
        let stage = Stage::before(Path::new(1)?, family, "")?;
        let impairment = Impairment { cut: 400, merged: 500, ..lost(lost_) };
        stage.upload(impairment, Upload { length: 100, messages: 200, ..UPLOAD })?;
    }
    Ok(())
}

/// Defused pings, retransmitted as pings and defused again: the flood goes on.
#[test]
fn a_flood_on_paths_that_lose() -> Result<()> {
    needs_root!();
    let places: [Place; 2] = [|path| &path.middle, |path| &path.pair.server];
    for (place, merged) in places.into_iter().flat_map(|place| [(place, false), (place, true)]) {
        let (path, attach) = match merged {
            true => (Path::merged(1)?, "xdp-generic"),
            false => (Path::new(1)?, "auto"),
        };
        let words = format!("--attach {attach} --pace off");
        let mut stage = Stage::new(path, place, Family::V4, &words)?;
        stage.path.set(Impairment { delay: Duration::ZERO, ..lost(10) });
        let bounds = Bounds { pings: 5_000, time: WAIT, pause: Duration::ZERO };
        let done = flood(&mut stage.client, bounds, || true)?;
        let drained = done.pings == bounds.pings && stage.client.drain(WAIT);
        ensure!(drained, "{attach}: {done:?}, {}", stage.drops()?);
        stage.client.close()?;
    }
    Ok(())
}
