//! Paced connections while daemons die and are replaced: the window stays held.
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    client::{Client, Cut},
    flood::{Bounds, PAYLOAD, flood},
    frame::Frame,
    statistics::lost,
};

use crate::{
    killed::{die_and_rise, exact, talk, upgrade},
    stage::{Stage, eventually, number},
};

/// Pace so low that the server's own window would show during a takeover.
/// Were it ever let through, it would exceed the pace of all that time.
const RATE: u64 = 2 << 10;
/// Length of a masked ping.
const PING: u64 = PAYLOAD as u64 + 6;
/// Throttle duration that outlasts every test here.
const FOR_LONG: Duration = Duration::from_secs(3600);
/// Length of a message that would take minutes at the pace.
const LARGE: usize = 1 << 20;

/// Return the bytes of the flood that the server has got.
fn arrived(stage: &Stage, flooder: SocketAddr) -> Result<u64> {
    Ok(number(&stage.flow(flooder)?["pings_in"])? * PING)
}

/// Do `change` during the flood; check that no more bytes pass than otherwise.
/// The comparison is with any other such time.
fn held_meanwhile(
    stage: &mut Stage,
    flooder: SocketAddr,
    round: u64,
    change: fn(&mut Stage, u64) -> Result<()>,
) -> Result<()> {
    let (start, before) = (Instant::now(), arrived(stage, flooder)?);
    let held = stage.metrics()?["wsguard_windows_held_total"];
    change(stage, round)?;
    let flow = stage.flow(flooder)?;
    ensure!(flow["paced"] == true && flow["over_limit"] == true, "no longer paced: {flow}");
    let passed = arrived(stage, flooder)? - before;
    let most = RATE * (start.elapsed().as_secs() + 2) + PING;
    println!("round {round}: {passed} bytes of {most} in {:?}", start.elapsed());
    ensure!(passed <= most, "{passed} bytes got through, {most} may: {flow}");
    // In bursts, between which it pays for their frames.
    eventually("the flood moves", || Ok(arrived(stage, flooder)? > before))?;
    let figures = stage.metrics()?;
    ensure!(figures["wsguard_windows_held_total"] > held, "no window was held meanwhile");
    let paced = ["wsguard_paced_total", "wsguard_paced_released_total"].map(|name| figures[name]);
    ensure!(paced == [1, 0], "paced anew, or released: {paced:?}");
    Ok(())
}

/// Return the events of a kind about the flooder's connection.
fn events(stage: &Stage, kind: &str, client: SocketAddr) -> Result<Vec<Value>> {
    let client = client.to_string();
    let events = stage.events()?;
    let about = |event: &Value| event["kind"] == kind && event["client"] == client.as_str();
    Ok(events.into_iter().filter(about).collect())
}

/// Release the flooder, whatever it sends.
fn release(stage: &Stage, flooder: SocketAddr) -> Result<()> {
    stage.cli(&["policy", "set", "--max-ping-rate", "1000000"])?;
    stage.cli(&["release", &flooder.ip().to_string()])?;
    Ok(())
}

/// Check that the flooder, once it behaves, has the server's own window again.
fn is_free(stage: &Stage, flooder: &mut Client) -> Result<()> {
    let local = flooder.local();
    let received = flooder.received().messages;
    flooder.send(&[Frame::text(&"x".repeat(LARGE))], &Cut::Whole)?;
    eventually("the echo", || Ok(flooder.received().messages > received))?;
    let row = stage.flow(local)?;
    ensure!(row["paced"] == false && row["paced_bytes_per_second"].is_null(), "{row}");
    eventually("the event", || Ok(!events(stage, "unpaced", local)?.is_empty()))?;
    let unpaced = events(stage, "unpaced", local)?;
    ensure!(unpaced.len() == 1 && number(&unpaced[0]["count"])? > 0, "{unpaced:?}");
    let figures = stage.metrics()?;
    let paced = ["wsguard_paced_total", "wsguard_paced_released_total"].map(|name| figures[name]);
    ensure!(paced == [1, 1], "{paced:?}");
    ensure!(stage.ask("status")?["flow_states"]["paced"] == 0, "{}", stage.ask("status")?);
    Ok(())
}

/// Do `change` `rounds` times with one paced connection and an honest client.
fn paced_through(rounds: u64, change: fn(&mut Stage, u64) -> Result<()>) -> Result<()> {
    let (window, pace) = (FOR_LONG.as_secs().to_string(), format!("{RATE}B/s"));
    let mut stage = Stage::new(2, &["--window-seconds", &window, "--pace", &pace])?;
    let (mut flooder, mut honest) = (stage.connect(0)?, stage.connect(1)?);
    let (local, stop) = (flooder.local(), AtomicBool::new(false));
    let before = lost(&stage.pair.client)?;
    let bounds = Bounds { pings: u64::MAX, time: FOR_LONG, pause: Duration::ZERO };
    thread::scope(|scope| -> Result<()> {
        let flooding = scope.spawn(|| flood(&mut flooder, bounds, || !stop.load(Relaxed)));
        let done = eventually("it is paced, and the first window used up", || {
            let first = arrived(&stage, local)?;
            thread::sleep(Duration::from_millis(500));
            let more = arrived(&stage, local)? - first;
            Ok(stage.flow(local)?["paced"] == true && more <= RATE)
        });
        let done = done.and_then(|()| {
            ensure!(events(&stage, "paced", local)?.len() == 1, "{:?}", stage.events()?);
            ensure!(number(&stage.source(local.ip())?["paced"])? == 1, "{local}");
            (0..rounds).try_for_each(|round| {
                talk(&mut honest)?;
                held_meanwhile(&mut stage, local, round, change)
            })
        });
        stop.store(true, Relaxed);
        // Its last ping may have to wait for room in a full socket: at the pace, longer than the
        // flood does.
        let done = done.and_then(|()| release(&stage, local));
        let flooded = flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done?;
        ensure!(flooded.broken.is_none(), "{flooded:?}");
        Ok(())
    })?;
    let again = lost(&stage.pair.client)? - before;
    ensure!(stage.ask("status")?["drops"]["beyond_edge"] == 0, "an honest TCP was beyond the edge");
    println!("{again} segments lost");
    exact(&stage, &honest).context("the honest client")?;
    ensure!(events(&stage, "paced", honest.local())?.is_empty(), "the honest client was paced");
    is_free(&stage, &mut flooder)?;
    drop((flooder, honest));
    stage.stop_server()?;
    stage.finish()
}

fn restart(stage: &mut Stage, _round: u64) -> Result<()> {
    stage.terminate()?;
    stage.start()
}

#[test]
fn a_held_window_outlives_a_daemon_that_is_killed() -> Result<()> {
    needs_root!();
    paced_through(2, die_and_rise)
}

#[test]
fn a_held_window_outlives_a_restart_and_an_upgrade() -> Result<()> {
    needs_root!();
    paced_through(3, |stage, round| match round {
        0 => restart(stage, round),
        _ => upgrade(stage, round),
    })
}
