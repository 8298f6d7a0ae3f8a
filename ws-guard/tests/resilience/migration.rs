//! Upgrades across a change of layouts, in the middle of a flood.
use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ws_guard::domain::origin::ALLOWED_BY_OPERATOR;
use ws_guard_common::{
    maps::{Address, Policy, Rule, action},
    window::Rate,
};
use ws_guard_testkit::{
    flood::{Bounds, flood},
    netns::INTERFACE,
    older::{self, Older},
};

use crate::{
    killed::{exact, talk},
    stage::{PORT, Stage, eventually, number},
};

const LIMIT: u32 = 30;
/// Window that outlasts the test.
const WINDOW: Duration = Duration::from_secs(3600);
/// Silent source that an operator exempted under the earlier version.
const ALLOWED: &str = "10.99.0.1";

/// Return the policy of [`Stage`]'s daemon, as an earlier daemon wrote it.
fn policy() -> Result<Policy> {
    let all = Address([u32::MAX; 4]);
    let rate = Rate::new(LIMIT, WINDOW.as_millis() as u32, 4).ok().context("a rate")?;
    let (generation, rules) = (1, 1);
    Ok(Policy {
        rate,
        // No limit, only the window of the share.
        connection_rate: Rate { limit: 0, ..rate },
        generation,
        rules,
        share: 5,
        action: action::DEFUSE,
        mask_v4: all,
        mask_v6: all,
        ..Policy::default()
    })
}

/// Set up a stage whose guard is of an earlier schema.
fn older_stage(schema: u32) -> Result<Stage> {
    let window = WINDOW.as_secs().to_string();
    let words = ["--max-ping-rate", "30", "--window-seconds", &window, "--pace", "off"];
    let stage = Stage::unguarded(2, &words)?;
    let mut older = Older::load(schema, stage.pin_dir())?;
    older.programs.set_policy(policy()?)?;
    older.programs.set_ports(&[PORT])?;
    let rule = Rule { flags: Rule::ALLOW | ALLOWED_BY_OPERATOR, ..Rule::default() };
    older.programs.set_rule(ALLOWED.parse::<IpAddr>()?, rule)?;
    stage.pair.server.run(|| older.attach(INTERFACE))??;
    Ok(stage)
}

/// Upgrade from `schema` in a flood:
/// a throttled source remains throttled, known connections are followed, the allowlist is kept, and
/// every ping is counted, except for those of a stated gap where the counters' layout changed.
fn in_a_flood(schema: u32) -> Result<()> {
    let mut stage = older_stage(schema)?;
    let (mut client, mut honest) = (stage.connect(0)?, stage.connect(1)?);
    let source = client.local().ip();
    talk(&mut honest)?;
    let stop = AtomicBool::new(false);
    let bounds = Bounds { pings: u64::MAX, time: WINDOW, pause: Duration::from_millis(20) };
    let flooded = thread::scope(|scope| -> Result<_> {
        let flooding = scope.spawn(|| flood(&mut client, bounds, || !stop.load(Relaxed)));
        thread::sleep(Duration::from_millis(300));
        let started = stage.start().and_then(|()| talk(&mut honest));
        let left = stage.pin_dir().join("STRANGERS");
        ensure!(!left.exists(), "{} has no successor, and is still pinned", left.display());
        thread::sleep(Duration::from_millis(200));
        stop.store(true, Relaxed);
        let flooded = flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        started?;
        Ok(flooded)
    })?;
    eventually("every ping is counted", || {
        Ok(number(&stage.source(source)?["pings_total"])? >= flooded.pings)
    })?;
    ensure!(client.drain(Duration::from_secs(10)), "the server does not take the flood");
    let row = stage.source(source)?;
    ensure!(number(&row["pings_total"])? == flooded.pings, "{} were sent: {row}", flooded.pings);
    let over = flooded.pings - u64::from(LIMIT);
    ensure!(number(&row["defused_total"])? == over, "{row}");
    ensure!(row["state"] == "throttled", "{row}");
    ensure!(flooded.pings > 1000, "that was no flood");
    exact(&stage, &honest).context("the honest client")?;
    let allowed = stage.cli(&["allow", "-o", "json"])?;
    ensure!(allowed.contains(ALLOWED), "the allowlist is {allowed}");
    let counted = *stage.metrics()?.get("wsguard_pings_total").context("no count of pings")?;
    let sent = flooded.pings + honest.sent().pings;
    println!("schema {schema}: {sent} pings, {counted} counted");
    ensure!(counted <= sent && counted > sent - sent / 10, "{counted} of {sent} are counted");
    let answered = u64::from(LIMIT) + honest.sent().pings;
    drop((client, honest));
    let totals = stage.stop_server()?;
    ensure!((totals.pings, totals.pongs) == (answered, over), "{totals:?}");
    stage.finish()
}

#[test]
fn an_earlier_schema_is_taken_over_in_a_flood() -> Result<()> {
    needs_root!();
    needs_tcx!();
    older::schemas()?.into_iter().try_for_each(in_a_flood)
}
