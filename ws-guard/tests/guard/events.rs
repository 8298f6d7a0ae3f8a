//! `ws-guard events`: the requested events, and why a source is throttled.
use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
    sync::PoisonError,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ws_guard_testkit::{
    client::Cut,
    netns::{Family, Pair, PairOptions},
    process::Process,
    servers::Library,
};

use crate::{
    collector::{Collector, text},
    served::{HEALTH, get},
    stage::{PORT, Stage, WAIT, eventually, source_name},
    talk::{pings, round_trip},
};

/// Number of pings: over the limit of 30, in segments of a few pings.
const PINGS: u64 = 100;

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["kind"].as_str()).collect()
}

#[test]
fn events_say_why_and_only_what_was_asked_for() -> Result<()> {
    needs_root!();
    let options = PairOptions { clients: 2, ..PairOptions::default() };
    let stage = Stage::new(Library::TokioTungstenite, options, "")?;
    let (family, calm_name) = (Family::V4, source_name(Family::V4.client(1)));
    let mut flooder = stage.client(family, 0)?;
    let mut other = stage.client(family, 0)?;
    let mut calm = stage.client(family, 1)?;
    round_trip(&mut other, "other")?;
    round_trip(&mut calm, "calm")?;
    flooder.send(&pings(0, PINGS), &Cut::Every(50))?;
    eventually("it is told", || Ok(!stage.guard.events("--kind throttled")?.is_empty()))?;

    let told = stage.guard.events("--kind throttled")?;
    ensure!(told.len() == 1, "{told:?}");
    let why = &told[0]["why"];
    ensure!(told[0]["client"] == flooder.local().to_string().as_str(), "{told:?}");
    ensure!(told[0]["server"] == format!("{}:{PORT}", family.server()).as_str(), "{told:?}");
    ensure!(told[0]["identity"] == "peer", "{told:?}");
    for (field, wanted) in [
        ("by", json!("pings")),
        ("limit", json!(30)),
        ("window_seconds", json!(10)),
        ("connection_share", json!(5)),
        ("connection_limit", Value::Null),
        ("action", json!("defuse")),
        ("paced", json!(true)),
        ("connections", json!(2)),
        ("over_limit", json!(1)),
    ] {
        ensure!(why[field] == wanted, "{field} is not {wanted}: {why}");
    }
    for counted in ["pings_in_window", "connection_pings_in_window", "pings_total"] {
        let counted = why[counted].as_u64().context("a count")?;
        ensure!((31..=PINGS).contains(&counted), "{why}");
    }

    // All events of a source, whatever their subject; also those of connections without a name.
    stage.guard.run(&format!("throttle {calm_name} --for 1h"))?;
    let about = format!("--since 1h --source {calm_name}");
    eventually("it is told", || Ok(kinds(&stage.guard.events(&about)?).contains(&"throttled")))?;
    let told = stage.guard.events(&about)?;
    ensure!(kinds(&told) == ["flow_opened", "throttled"], "{told:?}");
    ensure!(told.iter().all(|event| event["source"] == calm_name.as_str()), "{told:?}");
    ensure!(told[1]["why"]["by"] == "operator", "{told:?}");
    ensure!(told[1]["why"]["connections"] == 1, "{told:?}");
    let network = stage.guard.events("--kind throttled --source 10.0.0.0/8")?;
    ensure!(network.len() == 2, "{network:?}");
    ensure!(stage.guard.events("--source 192.0.2.1")?.is_empty(), "nothing is known of it");
    ensure!(stage.guard.events("--since 0s --kind throttled")?.is_empty(), "none is that young");

    // New events are filtered like old ones.
    let mut command = stage.guard.command();
    command.args(["events", "--follow", "--kind", "released", "-o", "json"]);
    let mut follower = Process::spawn("ws-guard events", command)?;
    stage.guard.run(&format!("release {calm_name}"))?;
    let line = follower.wait_for(WAIT, |line| {
        Some(line.to_owned()).filter(|line| line.contains("\"released\""))
    })?;
    let event: Value = serde_json::from_str(&line)?;
    ensure!(event["source"] == calm_name.as_str(), "{event}");
    ensure!(follower.lines().len() == 1, "{:?}", follower.lines());
    follower.terminate()?;

    let table = String::from_utf8(stage.guard.run("events --kind throttled")?)?;
    ensure!(table.contains("limit 30 in 10 s") && table.contains("defuse and pace"), "{table}");
    ensure!(table.contains("1 of 2 connections over the limit"), "{table}");
    ensure!(table.contains("by an operator"), "{table}");
    for client in [flooder, other, calm] {
        client.close()?;
    }
    stage.finish_one().map(drop)
}

#[test]
fn events_are_written_and_the_log_level_changes() -> Result<()> {
    needs_root!();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("events.jsonl");
    let words = format!("--event-log {}", file.display());
    let stage = Stage::new(Library::TokioTungstenite, PairOptions::default(), &words)?;
    let level = |words: &str| Ok::<_, anyhow::Error>(String::from_utf8(stage.guard.run(words)?)?);
    ensure!(level("log")? == "info\n", "{}", level("log")?);
    ensure!(stage.guard.run("log no=such=level").is_err(), "it took a level that is none");
    let mut client = stage.client(Family::V4, 0)?;
    round_trip(&mut client, "quiet")?;
    let kept = || Ok(kinds(&stage.guard.events("")?).contains(&"flow_opened"));
    eventually("it is told", kept)?;
    ensure!(!stage.guard.log().contains("flow_opened"), "{}", stage.guard.log());
    ensure!(level("log debug")? == "debug\n", "{}", level("log")?);
    let mut second = stage.client(Family::V4, 0)?;
    round_trip(&mut second, "loud")?;
    eventually("it is logged", || Ok(stage.guard.log().contains("flow_opened")))?;
    let read = || -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&file)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    // Every event once, in order.
    eventually("all are written", || Ok(read()?.len() >= stage.guard.events("")?.len()))?;
    let (written, kept) = (read()?, stage.guard.events("")?);
    ensure!(written[..kept.len()] == kept, "{written:?}\n{kept:?}");
    ensure!(kinds(&written).contains(&"config"), "a change of the level is told: {written:?}");
    for client in [client, second] {
        client.close()?;
    }
    stage.finish_one().map(drop)
}

/// The same events as log records; the throttled source as an optional metric.
#[test]
fn events_go_to_a_collector_and_the_worst_sources_to_the_metrics() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let listener = pair.client.run(|| TcpListener::bind((Family::V4.client(0), 0)))??;
    let collector = Collector::on(listener, None);
    let words = format!(
        "--metrics-listen {} --top-sources 1 --event-log otlp --otlp-endpoint {}",
        SocketAddr::new(Family::V4.server(), HEALTH),
        collector.endpoint()
    );
    let stage = Stage::on(pair, &[Library::TokioTungstenite], &words)?;
    let mut flooder = stage.client(Family::V4, 0)?;
    flooder.send(&pings(0, PINGS), &Cut::Every(50))?;
    let of_kind = |kind: &str| {
        let received = collector.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.logs.iter().find(|record| record.event_name == kind).cloned()
    };
    eventually("it is sent", || Ok(of_kind("throttled").is_some()))?;
    let told = stage.guard.events("--kind throttled")?;
    let record = of_kind("throttled").context("no record")?;
    let attribute = |name: &str| text(&record.attributes, name).context(name.to_owned());
    ensure!(attribute("source")? == told[0]["source"], "{record:?}");
    let seq = told[0]["seq"].to_string();
    ensure!(attribute("seq")? == seq, "{record:?}");
    ensure!(record.severity_text == "WARN" && record.body.is_some(), "{record:?}");
    ensure!(record.attributes.iter().any(|attribute| attribute.key == "why"), "{record:?}");
    ensure!(of_kind("flow_opened").is_some_and(|record| record.severity_text == "DEBUG"));

    let named = || -> Result<Option<f64>> {
        let (_, metrics) = get(&stage.pair, "/metrics")?;
        let sample = format!("wsguard_top_source_pings{{source=\"{}\"}} ", attribute("source")?);
        let value = metrics.lines().find_map(|line| line.strip_prefix(&sample));
        Ok(value.map(str::parse).transpose()?)
    };
    eventually("it is named", || Ok(named()?.is_some_and(|pings| pings > 30.0)))?;
    flooder.close()?;
    stage.finish_one().map(drop)
}

#[test]
fn events_for_a_collector_need_one() -> Result<()> {
    needs_root!();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
    command.args(["--control-socket", "/tmp/wsg-none.sock", "--pin-dir", "/sys/fs/bpf/wsg-none"]);
    command.args(["run", "--interface", "lo", "--port", "9", "--event-log", "otlp"]);
    let output = command.output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && error.contains("give --otlp-endpoint"), "{output:?}");
    Ok(())
}
