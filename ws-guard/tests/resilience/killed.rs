//! Daemons that die, and such that give way to others with other programs, in the middle of a flood.
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    client::{Client, Cut},
    flood::{Bounds, flood},
    frame::Frame,
    leftovers::Holdings,
    programs,
    variant::variant,
};

use crate::stage::{Asker, Figures, Stage, eventually, number};

const LIMIT: u64 = 30;
/// Outlasts the test: what passes, passes once.
const WINDOW: Duration = Duration::from_secs(3600);
/// Pings of the honest client: fewer than the limit.
const HONEST_PINGS: u64 = 20;
/// Loading takes about so long: a daemon that is killed before is killed in the middle of it.
const LOADING_MS: u64 = 1_500;

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

/// Kill and start the daemon; counters are compared before, while it is down, and after. One that is
/// killed while it starts comes between.
pub fn die_and_rise(stage: &mut Stage, round: u64) -> Result<()> {
    let asker = stage.asker();
    let (before, shown) = (counted(&asker)?, stage.metrics()?);
    stage.kill()?;
    let down = counted(&asker)?;
    ensure!(asker.ask("status")?["pid"].is_null(), "a daemon answers, although it was killed");
    never_back(&before, &down).context("while it is down")?;
    stage.spawn()?;
    thread::sleep(Duration::from_millis(371 * round % LOADING_MS));
    stage.kill()?;
    never_back(&down, &counted(&asker)?).context("while it is down")?;
    stage.start()?;
    never_back(&down, &counted(&asker)?).context("after its start")?;
    never_back(&shown, &stage.metrics()?).context("in the metrics")
}

/// The next daemon has other programs than all before it.
pub fn upgrade(stage: &mut Stage, round: u64) -> Result<()> {
    let (asker, object) = (stage.asker(), stage.socket().with_extension("bpf.o"));
    let changed = variant(&std::fs::read(programs::object())?, round as usize)?;
    std::fs::write(&object, changed)?;
    stage.object = Some(object.clone());
    let (before, shown) = (counted(&asker)?, stage.metrics()?);
    let old = Holdings::of(stage.pin_dir())?;
    stage.terminate()?;
    stage.start()?;
    std::fs::remove_file(object)?;
    never_back(&before, &counted(&asker)?).context("after an upgrade")?;
    never_back(&shown, &stage.metrics()?).context("in the metrics")?;
    let new = Holdings::of(stage.pin_dir())?;
    let known: Vec<u64> = old.programs.into_values().collect();
    let same = new.programs.iter().filter(|(_, tag)| known.contains(tag)).count();
    let changed = new.programs.len() - same;
    ensure!(changed == new.programs.len(), "{same} are the same: {:?}, {known:?}", new.programs);
    Ok(())
}

/// As much as after the first start: the same pins, maps and links, and as many programs.
fn nothing_leaked(stage: &Stage, first: &Holdings) -> Result<()> {
    let mut now = Holdings::default();
    let like_first = |now: &Holdings| {
        (now.programs.len(), now.maps.len()) == (first.programs.len(), first.maps.len())
            && (&now.links, &now.pins) == (&first.links, &first.pins)
    };
    let waited = eventually("the old programs and maps go", || {
        now = Holdings::of(stage.pin_dir())?;
        Ok(like_first(&now))
    });
    waited.with_context(|| format!("{first:?} at first, now {now:?}"))
}

/// A message, and a ping as long as there are some left.
pub fn talk(honest: &mut Client) -> Result<()> {
    honest.send(&[Frame::text("still here")], &Cut::Whole)?;
    if honest.sent().pings < HONEST_PINGS {
        honest.send(&[Frame::ping("?")], &Cut::Whole)?;
    }
    Ok(())
}

/// All that the honest client sent was counted and answered.
pub fn exact(stage: &Stage, honest: &Client) -> Result<()> {
    let sent = honest.sent();
    eventually("answers", || {
        let received = honest.received();
        Ok(received.messages == sent.messages && received.pongs == sent.pings)
    })?;
    let flow = stage.flow(honest.local())?;
    let counts = (number(&flow["frames_in"])?, number(&flow["pings_in"])?);
    ensure!(counts == (sent.frames, sent.pings), "{sent:?} was sent: {flow}");
    Ok(())
}

/// `change` so often under a ping flood, beside an honest client.
fn in_a_flood(rounds: u64, change: fn(&mut Stage, u64) -> Result<()>) -> Result<()> {
    let window = WINDOW.as_secs().to_string();
    // The flood is to go on through every change: that a hold survives one is in `paced.rs`.
    let words = ["--max-ping-rate", "30", "--window-seconds", &window, "--pace", "off"];
    let mut stage = Stage::new(2, &words)?;
    let first = Holdings::of(stage.pin_dir())?;
    let (mut client, mut honest) = (stage.connect(0)?, stage.connect(1)?);
    let source = client.local().ip();
    let stop = AtomicBool::new(false);
    let bounds = Bounds { pings: u64::MAX, time: WINDOW, pause: Duration::from_millis(20) };
    let start = Instant::now();
    let flooded = thread::scope(|scope| -> Result<_> {
        let flooding = scope.spawn(|| flood(&mut client, bounds, || !stop.load(Relaxed)));
        thread::sleep(Duration::from_millis(300));
        let done = (0..rounds).try_for_each(|round| {
            talk(&mut honest)?;
            change(&mut stage, round)?;
            nothing_leaked(&stage, &first).with_context(|| format!("round {round}"))
        });
        stop.store(true, Relaxed);
        let flooded = flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done?;
        Ok(flooded)
    })?;
    ensure!(start.elapsed() < WINDOW, "the window was over");
    eventually("every ping is counted", || {
        Ok(number(&stage.source(source)?["pings_total"])? >= flooded.pings)
    })?;
    ensure!(client.drain(Duration::from_secs(10)), "the server does not take the flood");
    let row = stage.source(source)?;
    println!("{rounds} rounds in {:?}, {flooded:?}: {row}", start.elapsed());
    ensure!(number(&row["pings_total"])? == flooded.pings, "{} were sent: {row}", flooded.pings);
    ensure!(number(&row["defused_total"])? == flooded.pings - LIMIT, "{row}");
    ensure!(flooded.pings > 1000, "that was no flood");
    eventually("pongs arrive", || Ok(client.received().pongs >= LIMIT))?;
    ensure!(client.received().pongs == LIMIT, "{} pongs", client.received().pongs);
    exact(&stage, &honest).context("the honest client")?;
    let answered = LIMIT + honest.sent().pings;
    drop((client, honest));
    let totals = stage.stop_server()?;
    ensure!((totals.pings, totals.pongs) == (answered, flooded.pings - LIMIT), "{totals:?}");
    stage.finish()
}

#[test]
fn a_daemon_killed_in_a_flood_lets_no_ping_more_through() -> Result<()> {
    needs_root!();
    in_a_flood(3, die_and_rise)
}

#[test]
#[ignore = "takes minutes: cargo xtask test --nightly"]
fn a_daemon_killed_a_hundred_times_lets_no_ping_more_through() -> Result<()> {
    needs_root!();
    in_a_flood(100, die_and_rise)
}

#[test]
fn an_upgrade_in_a_flood_lets_no_ping_more_through() -> Result<()> {
    needs_root!();
    in_a_flood(2, upgrade)
}

#[test]
#[ignore = "takes minutes: cargo xtask test --nightly"]
fn twenty_upgrades_let_no_ping_more_through() -> Result<()> {
    needs_root!();
    in_a_flood(20, upgrade)
}
