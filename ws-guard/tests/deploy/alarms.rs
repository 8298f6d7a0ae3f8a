//! Expressions of panels and alerts, against real guards and a server.
//! One guard and server have the demonstration's traffic; another guard has each of the troubles
//! with an alert.
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use ws_guard_testkit::{
    flood::{self, Bounds},
    frame::{Frame, encode},
    honest,
    netns::Family,
};

use crate::{
    dashboard::{annotation, expressions},
    pictures,
    prometheus::Prometheus,
    rules::{self, Alert, alerts},
    stage::{PORT, Stage, eventually},
};

/// A flood that outlasts a test, and still ends.
const FLOOD: Bounds =
    Bounds { pings: 2_000_000, time: Duration::from_secs(90), pause: Duration::from_millis(20) };

/// Alerts that no test here triggers; only promtool's tests show them fire.
///
/// They need an hour, a driver without native XDP, a full table of 32,768, a second node, a server
/// that is late with everything or silent on purpose, three restarts, or ten clients that fall
/// silent.
const NOT_MADE: [&str; 9] = [
    "WsGuardAbsent",
    "WsGuardGenericAttach",
    "WsGuardSourcesCoarse",
    "WsGuardPoliciesDiffer",
    "WsGuardServerStalled",
    "WsGuardServerTimeouts",
    "WsGuardRestarting",
    "WsGuardHeartbeatsUnanswered",
    "WsGuardServerPongSlow",
];

/// The alert on the server's process, the daemon's own only with `--listen`.
const RESTARTED: &str = "WsGuardServerRestarted";

/// The alerts on topics and their bus, which only a server that has them can raise.
pub const TOPICS: [&str; 9] = [
    "WsGuardBusDown",
    "WsGuardBusLag",
    "WsGuardBusMissed",
    "WsGuardNotRecovered",
    "WsGuardHistoryFull",
    "WsGuardQueueRedelivered",
    "WsGuardQueueClaimed",
    "WsGuardDeadLetters",
    "WsGuardQueueLost",
];

/// Panels with data only if the guard has the server, topics, a bus and export.
const TOGETHER: [(&str, &str); 12] = [
    ("ws-guard-server", "Restarts"),
    ("ws-guard-server", "Pings inside TLS"),
    ("ws-guard-server", "Topics"),
    ("ws-guard-server", "Deliveries"),
    ("ws-guard-server", "Recoveries"),
    ("ws-guard-server", "History"),
    ("ws-guard-server", "Bus"),
    ("ws-guard-server", "Bus lag"),
    ("ws-guard-server", "Reading again"),
    ("ws-guard-server", "Queues"),
    ("ws-guard-server", "Entries given up"),
    ("ws-guard-server", "OTLP requests"),
];

/// Return the alerts that the tests trigger, with guard and server apart.
fn made() -> Result<Vec<Alert>> {
    let elsewhere = |name: &str| name == RESTARTED || TOPICS.contains(&name);
    let made = |alert: &Alert| !elsewhere(&alert.alert) && !NOT_MADE.contains(&&*alert.alert);
    Ok(alerts()?.into_iter().filter(made).collect())
}

/// Return the quantities that an alert compares, without the comparisons.
///
/// Terms without a series on a healthy node are left out: an absence, generic mode.
fn compared(alert: &Alert) -> Vec<&str> {
    if alert.alert == "WsGuardGenericAttach" {
        return Vec::new();
    }
    let bound = |part: &str| {
        [" == ", " > ", " unless "].iter().find_map(|end| part.find(end)).unwrap_or(part.len())
    };
    let parts = alert.expr.split(" or ").filter(|part| !part.starts_with("absent("));
    parts.map(|part| &part[..bound(part)]).collect()
}

/// Return all expressions of panels, alerts and recording rules;
/// with the server in the guard, or apart.
fn asked(together: bool) -> Result<BTreeSet<String>> {
    let mut asked: BTreeSet<String> = expressions()?
        .into_iter()
        .filter(|((uid, title), _)| TOGETHER.contains(&(uid, title)) == together)
        .map(|(_, expr)| expr)
        .collect();
    let is_of_both = |alert: &str| alert == RESTARTED || TOPICS.contains(&alert);
    for alert in alerts()?.iter().filter(|alert| is_of_both(&alert.alert) == together) {
        asked.extend(compared(alert).into_iter().map(str::to_owned));
    }
    if !together {
        asked.extend(rules::recorded()?);
    }
    Ok(asked)
}

#[test]
fn a_comparison_is_cut_off() -> Result<()> {
    let all = alerts()?;
    let down = all.iter().find(|alert| alert.alert == "WsGuardDown").context("no such alert")?;
    assert_eq!(compared(down), ["up{job=\"ws-guard\"}", "wsguard_up"]);
    Ok(())
}

#[test]
fn every_expression_gives_data_under_the_demonstrations_traffic() -> Result<()> {
    needs_root!();
    let stage = Stage::apart(&["--ping-interval=1s"])?;
    let prometheus = Prometheus::start(&stage.pair.server, &stage.pods())?;
    let (mut flooder, mut user) = (stage.client(0, false)?, stage.client(1, true)?);
    let mut quiet = stage.client(3, true)?;
    let brief = stage.client(2, true)?;
    brief.close()?;
    let go_on = AtomicBool::new(true);
    let empty = thread::scope(|scope| {
        let flooding = scope.spawn(|| flood::flood(&mut flooder, FLOOD, || go_on.load(Relaxed)));
        let served = scope.spawn(|| honest::run(&mut user, FLOOD.time, || go_on.load(Relaxed)));
        let answering = scope.spawn(|| honest::answer(&mut quiet, || go_on.load(Relaxed)));
        let empty = without_data(&prometheus, asked(false)?);
        let drawn = pictures::write_if_wanted(&prometheus);
        go_on.store(false, Relaxed);
        let joined = (flooding.join(), served.join(), answering.join());
        let (Ok(flooded), Ok(served), Ok(answered)) = joined else {
            return Err(anyhow!("a client panicked"));
        };
        ensure!(flooded?.pings > 1000 && served?.messages > 10, "there was no traffic");
        ensure!(answered? > 1, "the server did not ping");
        drawn?;
        empty
    })?;
    ensure!(empty.is_empty(), "no data for\n{}", empty.join("\n"));
    instances_are_named_for_what_they_are(&prometheus)
}

/// Return the expressions that stay without data.
fn without_data(prometheus: &Prometheus<'_>, mut open: BTreeSet<String>) -> Result<Vec<String>> {
    // Expressions that need two scrapes of something that has only just begun come a little later.
    for _ in 0..8 {
        let mut still = BTreeSet::new();
        for expr in open {
            if !prometheus.gives_data(&expr)? {
                still.insert(expr);
            }
        }
        open = still;
        if open.is_empty() {
            break;
        }
        thread::sleep(Duration::from_secs(2));
    }
    Ok(open.into_iter().collect())
}

/// Check instance names:
/// a node for the guard, a pod for the server, and no target of the other's job.
fn instances_are_named_for_what_they_are(prometheus: &Prometheus<'_>) -> Result<()> {
    for (job, instance) in [("ws-guard", "node-1"), ("ws-guard-server", "server-x")] {
        let found = prometheus.ask(&format!("up{{job=\"{job}\"}}"))?;
        ensure!(found.len() == 1 && found[0]["metric"]["instance"] == instance, "{found:?}");
    }
    Ok(())
}

#[test]
fn the_rest_gives_data_where_the_guard_has_the_server() -> Result<()> {
    needs_root!();
    let stage = Stage::together()?;
    let prometheus = Prometheus::start(&stage.pair.server, &stage.pods())?;
    let empty = without_data(&prometheus, asked(true)?)?;
    ensure!(empty.is_empty(), "no data for\n{}", empty.join("\n"));
    exemplars_lead_to_connections(&stage, &prometheus)?;
    let alert = alerts()?.into_iter().find(|alert| alert.alert == RESTARTED);
    let expr = alert.context("no such alert")?.expr;
    let restarts = annotation("Restarts")?;
    for quiet in [&expr, &restarts] {
        ensure!(prometheus.ask(quiet)?.is_empty(), "{quiet} before the server died");
    }
    stage.kill_the_servers_process()?;
    for told in [&expr, &restarts] {
        eventually(told, || Ok(!prometheus.ask(told)?.is_empty()))?;
    }
    Ok(())
}

/// Follow an exemplar from a series in Prometheus to its connection.
fn exemplars_lead_to_connections(stage: &Stage, prometheus: &Prometheus<'_>) -> Result<()> {
    stage.client(0, true)?.close()?;
    stage.client(1, true)?.close()?;
    for series in [
        "wsguard_server_closed_total{cause=\"peer_closed\"}",
        "wsguard_server_handshake_seconds_bucket",
        "wsguard_server_tcp_rtt_seconds_bucket",
    ] {
        eventually(series, || Ok(!prometheus.exemplars(series)?.is_empty()))?;
        let listed = stage.connections()?;
        let ids: Vec<String> =
            listed.as_array().into_iter().flatten().map(|view| view["id"].to_string()).collect();
        for labels in prometheus.exemplars(series)? {
            let id = labels["connection_id"].as_str().context("no connection")?;
            ensure!(ids.iter().any(|listed| listed == id), "{series}: {labels}, and {ids:?}");
        }
    }
    Ok(())
}

/// Alerts, each of which a test triggers.
pub struct Watch<'a> {
    prometheus: &'a Prometheus<'a>,
    alerts: Vec<Alert>,
    /// Alerts that have not fired yet.
    silent: BTreeSet<String>,
}

impl<'a> Watch<'a> {
    /// Begin before any trouble, with all alerts silent.
    pub fn begin(prometheus: &'a Prometheus<'a>, alerts: Vec<Alert>) -> Result<Watch<'a>> {
        let silent = alerts.iter().map(|alert| alert.alert.clone()).collect();
        let watch = Watch { prometheus, alerts, silent };
        let firing = watch.firing()?;
        ensure!(firing.is_empty(), "while all is well: {firing:?}");
        Ok(watch)
    }

    /// Return the alerts that would fire if the present state lasted.
    fn firing(&self) -> Result<BTreeSet<String>> {
        let mut firing = BTreeSet::new();
        for alert in &self.alerts {
            if !self.prometheus.ask(&alert.expr)?.is_empty() {
                firing.insert(alert.alert.clone());
            }
        }
        Ok(firing)
    }

    pub fn is_firing(&self, name: &str) -> Result<bool> {
        Ok(self.firing()?.contains(name))
    }

    /// Wait for the alerts of one trouble.
    /// Check that no other fires for the first time with them.
    pub fn fires(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            ensure!(self.silent.contains(*name), "{name} came before its trouble");
            eventually(name, || self.is_firing(name))?;
            self.silent.remove(*name);
        }
        let early: Vec<String> = self.firing()?.intersection(&self.silent).cloned().collect();
        ensure!(early.is_empty(), "with {names:?} came {early:?}");
        Ok(())
    }

    /// Check that all have fired.
    pub fn end(self) -> Result<()> {
        ensure!(self.silent.is_empty(), "no trouble was made for {:?}", self.silent);
        Ok(())
    }
}

/// Send a request forwarded for client number `n`.
fn forward(stage: &Stage, n: u8) -> Result<()> {
    let server = (Family::V4.server(), PORT);
    let mut stream = stage.pair.client.run(|| TcpStream::connect(server))??;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         X-Forwarded-For: 192.0.2.{n}\r\n\r\n"
    )?;
    stream.read_exact(&mut [0; 12]).context("the answer")
}

#[test]
fn each_alert_fires_for_its_trouble_and_for_no_other() -> Result<()> {
    needs_root!();
    let stage = Stage::start()?;
    let prometheus = Prometheus::start(&stage.pair.server, &stage.pods())?;
    let mut watch = Watch::begin(&prometheus, made()?)?;

    let mut flooder = stage.client(0, false)?;
    let few = Bounds { pings: 500, pause: Duration::ZERO, ..FLOOD };
    flood::flood(&mut flooder, few, || true)?;
    watch.fires(&["WsGuardThrottling", "WsGuardConnectionsPaced"])?;

    let changes = annotation("Policy changes")?;
    ensure!(prometheus.ask(&changes)?.is_empty(), "the policy changed before anything was done");
    // Peers on private addresses are trusted by default.
    stage.configure("action = \"defuse\"\ntrusted-proxy = \"none\"\n")?;
    eventually("many clients of one peer", || {
        (1..=16).try_for_each(|n| forward(&stage, n))?;
        watch.is_firing("WsGuardProxySuspected")
    })?;
    watch.fires(&["WsGuardProxySuspected"])?;

    stage.configure("max-ping-rate = 31\n")?;
    eventually("the change of the policy shows", || Ok(!prometheus.ask(&changes)?.is_empty()))?;

    stage.configure("action = \"destroy\"\n")?;
    watch.fires(&["WsGuardReloadFailed"])?;
    stage.configure("action = \"defuse\"\n")?;
    let mended = || Ok(!watch.is_firing("WsGuardReloadFailed")?);
    eventually("the configuration is taken over", mended)?;

    lose_events(&stage)?;
    watch.fires(&["WsGuardEventsLost", "WsGuardViolations"])?;

    // There is room for 4,096 rules.
    let networks: Vec<String> =
        (0..3_700).map(|n| format!("\"192.{}.{}.1\"", n / 250, n % 250)).collect();
    stage.configure(&format!("allow = [{}]\n", networks.join(", ")))?;
    watch.fires(&["WsGuardTableNearlyFull"])?;

    pause_the_server(&stage)?;
    watch.fires(&["WsGuardHeartbeatSlow"])?;

    stage.detach()?;
    // It is detached for a moment, which is not the trouble under test.
    eventually("it is attached again", || {
        Ok(watch.is_firing("WsGuardNeighbour")? && !watch.is_firing("WsGuardNotAttached")?)
    })?;
    watch.fires(&["WsGuardNeighbour"])?;

    stage.pair.client.ip("link del veth0")?;
    watch.fires(&["WsGuardNotAttached"])?;

    stage.guard.signal(Signal::SIGTERM)?;
    watch.fires(&["WsGuardDown"])?;

    stage.server.as_ref().context("no server")?.signal(Signal::SIGTERM)?;
    watch.fires(&["WsGuardServerDown"])?;
    watch.end()
}

/// Stop the server while a ping waits, for as long as the alert calls slow.
fn pause_the_server(stage: &Stage) -> Result<()> {
    let server = stage.server.as_ref().context("no server")?;
    // Separate sources, so that the pings are within the limit; more than one in a hundred of the
    // pings that the flood had answered, however slowly it was let through.
    let clients = (30..40).map(|n| stage.client(n, true));
    let mut clients = clients.collect::<Result<Vec<_>>>()?;
    server.signal(Signal::SIGSTOP)?;
    let ping = encode(&[Frame::ping("?")]);
    let sent: Result<Vec<_>> =
        clients.iter_mut().map(|client| client.write_some(&ping, FLOOD.time)).collect();
    thread::sleep(Duration::from_millis(2500));
    server.signal(Signal::SIGCONT)?;
    sent?;
    // A client that is gone by then gets no pong, and no time is measured.
    ensure!(
        clients.iter().all(|client| client.wait(FLOOD.time, |got| got.pongs > 0)),
        "the server does not answer after its pause"
    );
    Ok(())
}

/// Stop the daemon until the kernel has more events than its ring buffer holds:
/// violations, and connections that come and go.
fn lose_events(stage: &Stage) -> Result<()> {
    stage.guard.signal(Signal::SIGSTOP)?;
    // Reserved opcodes (RFC 6455, 5.2), for which the server closes the connection.
    let broken = encode(&[Frame::new(3, "?")]).repeat(20);
    let overflow = || {
        for n in 0..40 {
            let mut client = stage.client(n, true)?;
            client.write_some(&broken, Duration::from_millis(100))?;
        }
        Ok(stage.status()?["events"]["lost"].as_u64().is_some_and(|lost| lost > 0))
    };
    let lost = eventually("events are lost", overflow);
    stage.guard.signal(Signal::SIGCONT)?;
    lost
}
