//! An interface that goes away and comes back while the daemon runs.
use std::time::Duration;

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    frame::Frame,
    netns::{Family, INTERFACE, PairOptions},
};

use crate::stage::{Stage, eventually, number};

/// Send pings on a new connection; once all are counted, return the answers.
fn pongs(stage: &Stage, pings: u64, counted: u64) -> Result<u64> {
    let mut client = stage.connect(0)?;
    for _ in 0..pings {
        client.send_one(Frame::ping(""))?;
    }
    let source = client.local().ip();
    eventually("every ping is counted", || {
        Ok(number(&stage.source(source)?["pings_total"])? == counted)
    })?;
    ensure!(client.drain(Duration::from_secs(5)), "the server took not all");
    // The server answers a message after the pings before it.
    client.send_one(Frame::text("done"))?;
    eventually("the echo", || Ok(client.received().messages == 1))?;
    let pongs = client.received().pongs;
    Ok(pongs)
}

#[test]
fn a_new_interface_of_the_same_name_is_guarded_too() -> Result<()> {
    needs_root!();
    // A window that outlasts the test: the limit is used up before the interface goes.
    let options = ["--max-ping-rate", "5", "--window-seconds", "600", "--connection-share", "0"];
    let mut stage = Stage::new(1, &options)?;
    ensure!(pongs(&stage, 8, 8)? == 5, "not 5 of 8 pings were answered");
    stage.pair.server.ip(&format!("link del {INTERFACE}"))?;
    eventually("the daemon notices", || {
        Ok(stage.ask("status")?["interfaces"][0]["ingress"].is_null())
    })?;
    stage.pair.connect(PairOptions { clients: 1, ..PairOptions::default() })?;
    stage.wait_attached()?;
    let seen = number(&stage.ask("status")?["packets"]["seen"])?;
    ensure!(pongs(&stage, 8, 16)? == 0, "a throttled source was answered");
    let status = stage.ask("status")?;
    ensure!(number(&status["packets"]["seen"])? > seen, "{status}");
    ensure!(number(&status["packets"]["defused"])? == 11, "{status}");
    let source = stage.source(Family::V4.client(0))?;
    ensure!(source["state"] == "throttled", "{source}");
    let totals = stage.stop_server()?;
    ensure!((totals.pings, totals.pongs) == (5, 11), "{totals:?}");
    stage.finish()
}
