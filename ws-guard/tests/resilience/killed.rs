//! Daemons that die, and upgrades to other programs, in the middle of a flood.
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use serde_json::Value;
use ws_guard::guard::Maps;
use ws_guard_common::maps::{Counter, Counters, EventKind, name};
use ws_guard_testkit::{
    client::{Client, Cut},
    flood::{Bounds, flood},
    frame::Frame,
    leftovers::Holdings,
    programs::{self, Raw},
    variant::{Added, variant, with_added},
};

use crate::stage::{Asker, Figures, Stage, eventually, number};

const LIMIT: u64 = 30;
/// Window that outlasts the test: the limit's pings pass only once.
const WINDOW: Duration = Duration::from_secs(3600);
/// Pings of the honest client: fewer than the limit.
const HONEST_PINGS: u64 = 20;
/// Approximate duration of loading: a daemon killed earlier dies in the middle.
const LOADING_MS: u64 = 1_500;

/// Collect the numbers of a JSON document that count events.
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

/// Return the guard's counts, from the daemon or from the pins.
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

/// Check that no figure of `before` is missing in `after`, or smaller there.
fn never_back(before: &Figures, after: &Figures) -> Result<()> {
    for (name, old) in before {
        let new = after.get(name).with_context(|| format!("{name} is gone: it was {old}"))?;
        ensure!(new >= old, "{name} went back from {old} to {new}");
    }
    Ok(())
}

/// Kill and start the daemon; compare counters before, while it is down, and after.
/// Another one is killed in between while it starts.
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

/// Start a daemon with programs that differ from all before it.
pub fn upgrade(stage: &mut Stage, round: u64) -> Result<()> {
    upgrade_to(stage, &variant(&std::fs::read(programs::object())?, round as usize)?)
}

fn upgrade_to(stage: &mut Stage, changed: &[u8]) -> Result<()> {
    let (asker, object) = (stage.asker(), stage.socket().with_extension("bpf.o"));
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

/// A version with one more counter and one more kind of event than this one.
const ADDED: Added = Added {
    old_counter: Counter::Coalesced,
    counter: Counter::COUNT,
    old_kind: EventKind::FlowOpened,
    kind: EventKind::COUNT as u8,
};

/// Return the coalesced segments that this version counted, and the other.
fn coalesced(stage: &Stage) -> Result<[u64; 2]> {
    let counters = Maps::from_pins(stage.pin_dir())?.counters()?;
    Ok([Counter::Coalesced as usize, ADDED.counter].map(|number| counters.events[number]))
}

/// Count the events of opened connections.
fn opened(stage: &Stage) -> Result<usize> {
    let kind = EventKind::FlowOpened.name();
    Ok(stage.events()?.iter().filter(|event| event["kind"] == kind).count())
}

/// Count the events of the added kind in the last second that had any, of all CPUs.
fn added_events(stage: &Stage) -> Result<u64> {
    let map = MapData::from_pin(stage.pin_dir().join(name::COUNTERS))?;
    let counters = PerCpuArray::<_, Raw<Counters>>::try_from(Map::PerCpuArray(map))?;
    let counters = counters.get(&0, 0)?;
    Ok(counters.iter().map(|Raw(one)| one.event_budget[usize::from(ADDED.kind)]).sum())
}

/// Upgrade to that version, and back.
fn add_and_take_away(stage: &mut Stage, round: u64) -> Result<()> {
    let object = std::fs::read(programs::object())?;
    let newer = round.is_multiple_of(2);
    upgrade_to(stage, &if newer { with_added(&object, &ADDED)? } else { object })?;
    let before = coalesced(stage)?;
    eventually("coalesced segments are counted", || {
        let [old, new] = coalesced(stage)?;
        Ok(if newer { new } else { old } > before[usize::from(newer)])
    })?;
    let now = coalesced(stage)?;
    let other = usize::from(!newer);
    ensure!(now[other] == before[other], "{before:?} became {now:?}: version {newer}");
    let events = opened(stage)?;
    let third = stage.connect(2)?;
    stage.flow(third.local())?;
    if newer {
        // A daemon of this version knows the counter and the kind as little as it will after a
        // downgrade, and goes on.
        eventually("the kind's events are sent", || Ok(added_events(stage)? > 0))?;
        ensure!(opened(stage)? == events, "the new kind is taken for an old one");
    } else {
        eventually("the event is there", || Ok(opened(stage)? == events + 1))?;
    }
    Ok(())
}

/// Check that nothing leaked since the first start: pins, maps, links and programs.
/// The programs are as many, the others the same.
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

/// Send a message, and a ping as long as there are some left.
pub fn talk(honest: &mut Client) -> Result<()> {
    honest.send(&[Frame::text("still here")], &Cut::Whole)?;
    if honest.sent().pings < HONEST_PINGS {
        honest.send(&[Frame::ping("?")], &Cut::Whole)?;
    }
    Ok(())
}

/// Check that everything the honest client sent was counted and answered.
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

/// Do `change` `rounds` times under a ping flood, next to an honest client.
fn in_a_flood(rounds: u64, change: fn(&mut Stage, u64) -> Result<()>) -> Result<()> {
    let window = WINDOW.as_secs().to_string();
    // The flood must go on through every change: `paced.rs` tests that a hold survives one.
    let words = ["--max-ping-rate", "30", "--window-seconds", &window, "--pace", "off"];
    let mut stage = Stage::new(3, &words)?;
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
    let flows = Maps::from_pins(stage.pin_dir())?.flows()?;
    let segments: u64 = flows.iter().map(|(_, flow)| flow.coalesced_segments).sum();
    let counted = coalesced(&stage)?;
    ensure!(counted.iter().sum::<u64>() == segments, "{counted:?} of {segments} segments");
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
fn an_added_counter_and_kind_of_event_cost_an_upgrade_nothing() -> Result<()> {
    needs_root!();
    in_a_flood(2, add_and_take_away)
}

#[test]
#[ignore = "takes minutes: cargo xtask test --nightly"]
fn twenty_upgrades_let_no_ping_more_through() -> Result<()> {
    needs_root!();
    in_a_flood(20, upgrade)
}
