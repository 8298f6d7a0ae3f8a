//! The daemon dies in the middle of a flood.
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::flood::{Bounds, flood};

use crate::stage::{Asker, Figures, Stage, eventually, number};

const LIMIT: u64 = 30;

/// The numbers of a JSON document that count things that happened.
fn collect(figures: &mut Figures, name: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                collect(figures, &format!("{name}.{field}"), value);
            }
        }
        Value::Number(value) => {
            figures.insert(name.to_owned(), value.as_u64().unwrap_or(0));
        }
        _ => {}
    }
}

/// What the guard has counted, from the daemon or from the pins.
fn counted(asker: &Asker) -> Result<Figures> {
    let mut figures = Figures::new();
    let status = asker.ask("status")?;
    for part in ["packets", "drops", "events"] {
        collect(&mut figures, part, &status[part]);
    }
    for (list, name, fields) in [
        ("sources", "source", &["pings_total", "defused_total", "dropped_total"][..]),
        ("flows", "client", &["frames_in", "pings_in", "frames_out", "pongs_out", "defused"]),
    ] {
        for row in asker.ask(list)?.as_array().into_iter().flatten() {
            for field in fields {
                let name = format!("{list}.{}.{field}", row[name]);
                figures.insert(name, number(&row[field])?);
            }
        }
    }
    Ok(figures)
}

/// No figure of `before` is missing in `after`, or smaller there.
fn never_back(before: &Figures, after: &Figures) -> Result<()> {
    for (name, old) in before {
        let new = after.get(name).with_context(|| format!("{name} is gone: it was {old}"))?;
        ensure!(new >= old, "{name} went back from {old} to {new}");
    }
    Ok(())
}

/// Kill and start the daemon; counters are compared before, while it is down, and after.
fn die_and_rise(stage: &mut Stage, round: u64) -> Result<()> {
    let asker = stage.asker();
    let (before, shown) = (counted(&asker)?, stage.metrics()?);
    stage.kill()?;
    let down = counted(&asker)?;
    ensure!(asker.ask("status")?["pid"].is_null(), "a daemon answers, although it was killed");
    never_back(&before, &down).context("while it is down")?;
    thread::sleep(Duration::from_millis(100 * round));
    never_back(&down, &counted(&asker)?).context("while it is down")?;
    stage.start()?;
    never_back(&down, &counted(&asker)?).context("after its start")?;
    never_back(&shown, &stage.metrics()?).context("in the metrics")
}

#[test]
fn a_daemon_killed_in_a_flood_lets_no_ping_more_through() -> Result<()> {
    needs_root!();
    // A window that outlasts the test: what passes, passes once.
    let mut stage = Stage::new(1, &["--max-ping-rate", "30", "--window-seconds", "600"])?;
    let mut client = stage.connect(0)?;
    let source = client.local().ip();
    let stop = AtomicBool::new(false);
    let bounds = Bounds {
        pings: 5_000_000,
        time: Duration::from_secs(100),
        pause: Duration::from_millis(2),
    };
    let flooded = thread::scope(|scope| -> Result<_> {
        let flooding = scope.spawn(|| flood(&mut client, bounds, || !stop.load(Relaxed)));
        thread::sleep(Duration::from_millis(300));
        let rounds = (0..3).try_for_each(|round| die_and_rise(&mut stage, round));
        stop.store(true, Relaxed);
        let flooded = flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        rounds?;
        Ok(flooded)
    })?;
    eventually("every ping is counted", || {
        Ok(number(&stage.source(source)?["pings_total"])? >= flooded.pings)
    })?;
    ensure!(client.drain(Duration::from_secs(10)), "the server does not take the flood");
    let row = stage.source(source)?;
    println!("{flooded:?}: {row}");
    ensure!(number(&row["pings_total"])? == flooded.pings, "{} were sent: {row}", flooded.pings);
    ensure!(number(&row["defused_total"])? == flooded.pings - LIMIT, "{row}");
    ensure!(flooded.pings > 1000, "that was no flood");
    eventually("pongs arrive", || Ok(client.received().pongs >= LIMIT))?;
    ensure!(client.received().pongs == LIMIT, "{} pongs", client.received().pongs);
    drop(client);
    let totals = stage.stop_server()?;
    ensure!((totals.pings, totals.pongs) == (LIMIT, flooded.pings - LIMIT), "{totals:?}");
    stage.finish()
}
