//! `drop`: nothing of a connection over the limit reaches the server.
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    capture::Capture,
    client::Cut,
    frame::Frame,
    netns::{Family, PairOptions},
    raw::{Flags, Segment, Sender},
    servers::Library,
};

use crate::{
    stage::{PORT, Stage, WAIT, eventually},
    talk::{answered, pings, round_trip},
};

const LIMIT: u64 = 30;
const WINDOW: Duration = Duration::from_secs(3);

fn drops(stage: &Stage, family: Family) -> Result<()> {
    let mut client = stage.client(family, 0)?;
    let mut other = stage.client(family, 1)?;
    client.send(&pings(0, LIMIT), &Cut::Whole)?;
    round_trip(&mut client, "within the limit")?;
    ensure!(client.drain(WAIT), "the server does not acknowledge");

    let mut capture = Capture::new(&stage.pair.server)?;
    let throttled = Instant::now();
    client.send(&pings(LIMIT, 1), &Cut::Whole)?;
    ensure!(stage.is_throttled(family, 0)?, "over the limit");
    client.send(&[Frame::text("held back")], &Cut::Whole)?;
    // A new connection of the source is let in.
    Sender::new(&stage.pair)?.send(&Segment {
        source: SocketAddr::new(family.client(0), 4711),
        destination: SocketAddr::new(family.server(), PORT),
        seq: 1,
        ack: 0,
        flags: Flags::Syn,
        payload: &[],
    })?;
    round_trip(&mut other, "another address is served")?;
    let captured = capture.take();
    ensure!(throttled.elapsed() < WINDOW, "too slow a machine: {:?}", throttled.elapsed());
    let from = |source: SocketAddr| captured.iter().filter(move |s| s.source == source).count();
    let through = from(client.local());
    ensure!(through == 0, "{through} segments of a connection over the limit came through");
    ensure!(from(other.local()) > 0, "the capture saw nothing at all");
    ensure!(from(SocketAddr::new(family.client(0), 4711)) > 0, "no new connection is let in");
    ensure!(client.received().messages == 1, "{:?}", client.received().messages);

    // TCP retransmits dropped segments until the source is free; even then the ping over the limit
    // is not answered.
    eventually("the source is released", || Ok(!stage.is_throttled(family, 0)?))?;
    ensure!(client.wait(2 * WAIT, |r| r.ended || r.messages == 2), "nothing came afterwards");
    thread::sleep(Duration::from_millis(50));
    ensure!(answered(&client).into_iter().eq(0..LIMIT), "{:?}", answered(&client));
    let (flow, source) = (stage.flow(&client)?, stage.source(family, 0)?);
    ensure!((flow.pings_in, flow.frames_in) == (LIMIT + 1, LIMIT + 3), "{flow:?}");
    ensure!(source.dropped_total > 0, "{source:?}");
    ensure!(stage.source(family, 1)?.dropped_total == 0);
    client.close()?;
    other.close().map(drop)
}

#[test]
fn nothing_of_a_connection_over_the_limit_reaches_the_server() -> Result<()> {
    needs_root!();
    let words = format!("--action drop --attach xdp-native --window-seconds {}", WINDOW.as_secs());
    let stage = Stage::new(Library::TokioTungstenite, PairOptions::default(), &words)?;
    for family in Family::BOTH {
        drops(&stage, family)?;
    }
    let totals = stage.finish_one()?;
    ensure!((totals.pings, totals.pongs) == (2 * LIMIT, 2), "{totals:?}");
    Ok(())
}
