//! Alerts on topics and their bus: two servers on a real Redis, and each trouble.
use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    frame::Frame,
    netns::Namespace,
    process::Process,
    redis::Redis,
    wait::wait_for,
};

use crate::{
    alarms::{TOPICS, Watch},
    files, http,
    prometheus::{Pod, Prometheus},
    rules::alerts,
    stage::eventually,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ws-guard");
const PATIENCE: Duration = Duration::from_secs(60);

/// `short*` loses the messages that an absent server does not read;
/// the histories of `long*` can be too large.
const RULES: &str = r#"
[[server.topic]]
match = "short*"
history = 5

[[server.topic]]
match = "long*"
history = 100000

[[server.topic]]
match = "jobs*"
kind = "queue"
prefetch = 64
ack-timeout = "1s"
max-deliveries = 2
"#;

/// A server of the bus.
struct Server {
    name: &'static str,
    port: u16,
    metrics: u16,
}

const READER: Server = Server { name: "reader", port: 8080, metrics: 9465 };
const WRITER: Server = Server { name: "writer", port: 8081, metrics: 9466 };

impl Server {
    fn start(&self, namespace: &Namespace, folder: &Path, redis: u16) -> Result<Process> {
        let mut serve = namespace.command(PROGRAM);
        serve.args(["serve", "--handler=topic", "--access-log=/dev/null"]);
        serve.args(["--stall-refuse=20s", "--stall-shed=30s", "--history-bytes=200000"]);
        serve.arg(format!("--listen=127.0.0.1:{}", self.port));
        serve.arg(format!("--metrics-listen=127.0.0.1:{}", self.metrics));
        serve.arg(format!("--bus=redis://127.0.0.1:{redis}"));
        serve.arg(format!("--bus-server={}", self.name));
        serve.arg("--config").arg(folder.join("topics.toml"));
        let process = Process::spawn(self.name, serve)?;
        let address = ([127, 0, 0, 1], self.metrics).into();
        let connected = || {
            let (_, text) = http::get(namespace, address, "/metrics").unwrap_or_default();
            Ok(text.contains("\nwsguard_server_bus_connected 1\n"))
        };
        eventually("it is connected to Redis", connected)?;
        Ok(process)
    }

    fn pod(&self) -> Pod {
        let address = format!("127.0.0.1:{}", self.metrics);
        Pod { component: "server", name: self.name, node: "node", address }
    }

    fn client(&self, namespace: &Namespace) -> Result<Talk> {
        let address = ([127, 0, 0, 1], self.port).into();
        Ok(Talk(Client::connect(namespace, address, ConnectOptions::default())?))
    }
}

/// A client of topics.
struct Talk(Client);

impl Talk {
    /// Ask, and wait for the answer; skip messages before it.
    fn ask(&mut self, mut request: Value) -> Result<Value> {
        request["id"] = 1.into();
        self.0.send_one(Frame::text(&request.to_string()))?;
        let answer = || {
            let (_, text) = self.0.received().kept.pop_front()?;
            let said: Value = serde_json::from_slice(&text).ok()?;
            (said["id"] == 1).then_some(said)
        };
        let answer = wait_for(PATIENCE, answer).with_context(|| format!("{request}: no answer"))?;
        ensure!(answer["type"] != "error", "{request}: {answer}");
        Ok(answer)
    }

    fn subscribe(&mut self, topic: &str) -> Result<Value> {
        self.ask(json!({"type": "subscribe", "topic": topic}))
    }

    fn publish(&mut self, topic: &str, count: usize, data: &str) -> Result<()> {
        for _ in 0..count {
            self.ask(json!({"type": "publish", "topic": topic, "data": data}))?;
        }
        Ok(())
    }
}

#[test]
fn each_alert_on_topics_fires_for_its_trouble_and_for_no_other() -> Result<()> {
    needs_root!();
    let namespace = Namespace::new("bus")?;
    let folder = TempDir::with_prefix("wsg-bus-")?;
    fs::write(folder.path().join("topics.toml"), RULES)?;
    let mut redis = namespace.run(|| Redis::start(&[]))?;
    let start = |server: &Server| server.start(&namespace, folder.path(), redis.port);
    let mut reading = start(&READER)?;
    let _writing = start(&WRITER)?;
    let prometheus = Prometheus::start(&namespace, &[READER.pod(), WRITER.pod()])?;
    let of_topics = alerts()?.into_iter().filter(|alert| TOPICS.contains(&&*alert.alert));
    let mut watch = Watch::begin(&prometheus, of_topics.collect())?;
    let mut reader = READER.client(&namespace)?;
    let mut writer = WRITER.client(&namespace)?;

    // A late server.
    reader.subscribe("long")?;
    reading.signal(Signal::SIGSTOP)?;
    let published = writer.publish("long", 20, "late");
    thread::sleep(Duration::from_millis(1500));
    reading.signal(Signal::SIGCONT)?;
    published?;
    watch.fires(&["WsGuardBusLag"])?;

    // Positions that never existed.
    for _ in 0..12 {
        let since = json!({"epoch": "1", "offset": 7});
        let asked = json!({"type": "subscribe", "topic": "long", "since": since});
        let answer = reader.ask(asked)?;
        ensure!(answer["recovered"] == false, "{answer}");
    }
    watch.fires(&["WsGuardNotRecovered"])?;

    writer.publish("long", 300, &"x".repeat(1000))?;
    watch.fires(&["WsGuardHistoryFull"])?;

    // A worker that acknowledges nothing.
    reader.subscribe("jobs")?;
    writer.publish("jobs", 20, "work")?;
    watch.fires(&["WsGuardQueueRedelivered", "WsGuardQueueClaimed", "WsGuardDeadLetters"])?;

    writer.publish("jobs", 3, "work")?;
    let mut trim = namespace.command("redis-cli");
    trim.args(["-p", &redis.port.to_string(), "xtrim"]);
    trim.args(["cluster:default:ws:topic:{jobs}", "maxlen", "0"]);
    ensure!(files::run(trim)?.trim() == "3", "not all of them were there");
    watch.fires(&["WsGuardQueueLost"])?;

    // Messages that an absent server does not read, and cannot read afterwards.
    reader.subscribe("short")?;
    writer.publish("short", 3, "read")?;
    let key = "cluster:default:ws:delivered:{short}";
    eventually("how far the server has read is saved", || {
        let mut saved = namespace.command("redis-cli");
        saved.args(["-p", &redis.port.to_string(), "hget", key, READER.name]);
        Ok(files::run(saved)?.trim().ends_with("-3"))
    })?;
    reading.signal(Signal::SIGKILL)?;
    eventually("it has ended", || Ok(reading.ended()?.is_some()))?;
    writer.publish("short", 30, "unread")?;
    let _reading = start(&READER)?;
    let missed = "wsguard_server_bus_missed_total{instance=\"reader\"} == 0";
    eventually("a scrape before", || Ok(!prometheus.ask(missed)?.is_empty()))?;
    READER.client(&namespace)?.subscribe("short")?;
    watch.fires(&["WsGuardBusMissed"])?;

    redis.kill();
    watch.fires(&["WsGuardBusDown"])?;
    watch.end()
}
