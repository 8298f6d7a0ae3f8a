//! The README's steps: run, look, throttle, stop, unload.
use anyhow::{Result, ensure};
use ws_guard_testkit::frame::{Frame, encode};

use crate::stage::{Stage, eventually, number};

#[test]
fn run_look_and_unload_leave_nothing() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(2, &["--max-ping-rate", "3", "--connection-share", "0"])?;
    let mut loud = stage.connect(0)?;
    let quiet = stage.connect(1)?;
    let status = stage.ask("status")?;
    ensure!((number(&status["flows"])?, number(&status["throttled"])?) == (2, 0), "{status}");
    loud.write_segment(&encode(&vec![Frame::ping(""); 5]))?;
    eventually("the source is throttled", || Ok(stage.ask("status")?["throttled"] == 1))?;
    let throttled = stage.ask("throttled")?;
    ensure!(throttled[0]["source"] == loud.local().ip().to_string(), "{throttled}");
    ensure!(throttled[1].is_null(), "{throttled}");
    let table = stage.cli(&["throttled"])?;
    ensure!(table.contains(&loud.local().ip().to_string()), "{table}");

    stage.terminate()?;
    let status = stage.ask("status")?;
    ensure!(status["pid"].is_null() && status["throttled"] == 1, "{status}");
    ensure!(status["interfaces"][0]["ingress"].is_string(), "{status}");
    loud.write_segment(&encode(&vec![Frame::ping(""); 5]))?;
    eventually("pings are counted with the daemon gone", || {
        Ok(number(&stage.source(loud.local().ip())?["pings_total"])? == 10)
    })?;
    drop((loud, quiet));
    let totals = stage.stop_server()?;
    ensure!((totals.pings, totals.pongs) == (3, 7), "{totals:?}");
    stage.finish()
}
