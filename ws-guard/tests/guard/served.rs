//! `run --listen`: reports and commands of a guard's companion server.
//! Behind its own guard: connections, topics, health and telemetry.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    frame::{Frame, opcode},
    netns::{Family, Pair, PairOptions},
};

use crate::{
    collector::{Collector, text},
    process::Guard,
    stage::{Flow, PORT, WAIT, eventually},
};

pub const HEALTH: u16 = 9464;

fn start(pair: &Pair, more: &str) -> Result<Guard> {
    let words = format!(
        "--port {PORT} --listen [::]:{PORT} --metrics-listen [::]:{HEALTH} --access-log /dev/null \
         --shards 1 --stall-refuse 1h --stall-shed 1h --state-file none {more}"
    );
    Guard::start(&pair.server, &words)
}

fn connect(pair: &Pair, family: Family) -> Result<Client> {
    Client::connect(&pair.client, (family.server(), PORT).into(), ConnectOptions::default())
}

/// Send a request and read the whole answer; return its status and its body.
fn exchange(mut stream: impl Read + Write, request: &str) -> Result<(u16, String)> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Query the port for health checks, from the client's side of the network.
pub fn get(pair: &Pair, path: &str) -> Result<(u16, String)> {
    let at = SocketAddr::new(Family::V4.server(), HEALTH);
    let stream = pair.client.run(|| TcpStream::connect_timeout(&at, WAIT))??;
    stream.set_read_timeout(Some(WAIT))?;
    exchange(stream, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
}

/// Publish as the service behind the server does.
fn publish(guard: &Guard, body: &Value) -> Result<(u16, String)> {
    let body = body.to_string();
    let fields = "host: x\r\nconnection: close\r\ncontent-type: application/json";
    let length = body.len();
    exchange(
        UnixStream::connect(guard.socket())?,
        &format!("POST /v1/publish HTTP/1.1\r\n{fields}\r\ncontent-length: {length}\r\n\r\n{body}"),
    )
}

/// Return the next message.
fn message(client: &Client) -> Result<String> {
    ensure!(client.wait(WAIT, |r| !r.kept.is_empty()), "{}: no message", client.local());
    let (_, bytes) = client.received().kept.pop_front().context("a message")?;
    Ok(String::from_utf8(bytes)?)
}

/// Return the connection of `client`, as `connections` lists it.
fn listed(guard: &Guard, client: &Client) -> Result<Value> {
    let all: Vec<Value> = guard.ask("connections")?;
    let peer = client.local().to_string();
    let found = all.iter().find(|view| view["peer"] == *peer).cloned();
    found.with_context(|| format!("no {peer} in {all:?}"))
}

#[test]
fn its_connections_and_topics_behind_the_guard() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let guard = start(&pair, "--handler topic")?;
    for family in Family::BOTH {
        let mut client = connect(&pair, family)?;
        client.send_one(Frame::text(r#"{"type":"subscribe","topic":"news"}"#))?;
        ensure!(message(&client)? == r#"{"type":"subscribed","topic":"news"}"#);
        let (status, answer) = publish(&guard, &json!({"topic": "news", "data": [1, "two"]}))?;
        let answer: Value = serde_json::from_str(&answer)?;
        ensure!((status, &answer["subscribers"]) == (200, &json!(1)), "{status} {answer}");
        ensure!(message(&client)? == r#"{"type":"message","topic":"news","data":[1,"two"]}"#);
        client.send_one(Frame::ping("p"))?;
        ensure!(client.wait(WAIT, |r| r.pongs == 1), "no pong");

        // The server's view of the connection, and the kernel's.
        let view = listed(&guard, &client)?;
        let said = [&view["state"], &view["messages_in"], &view["pings_in"], &view["topics"]];
        ensure!(said == [&json!("idle"), &json!(1), &json!(1), &json!(["news"])], "{view}");
        let flows: Vec<Flow> = guard.ask("flows")?;
        let flow = flows.iter().find(|flow| flow.client == client.local().to_string());
        ensure!(flow.is_some_and(|flow| (flow.pings_in, flow.frames_in) == (1, 2)), "{flows:?}");

        let id = view["id"].as_u64().context("a number")?;
        client.close()?;
        eventually("the end is in its story", || {
            let story: Value = guard.ask(&format!("connection {id}"))?;
            let events = story["story"].as_array().context("a story")?;
            let names: Vec<&str> = events.iter().filter_map(|e| e["event"].as_str()).collect();
            let ended = story["connection"]["cause"] == "peer_closed";
            Ok(ended && names.first() == Some(&"opened") && names.last() == Some(&"closed"))
        })?;
    }
    let none = publish(&guard, &json!({"topic": "news", "data": 1}))?;
    ensure!(none.0 == 200 && none.1.contains("\"subscribers\":0"), "{none:?}");
    ensure!(guard.run("connection 4711").is_err(), "there is no connection with this number");
    guard.finish()
}

/// One port reports the health of both, and one collector gets the numbers of both.
#[test]
fn health_and_telemetry_of_guard_and_server() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let listener = pair.client.run(|| TcpListener::bind((Family::V4.client(0), 0)))??;
    let collector = Collector::on(listener, None);
    let endpoint = collector.endpoint();
    let guard = start(&pair, &format!("--max-connections 1 --otlp-endpoint {endpoint}"))?;
    for (path, body) in [("/healthz", "ok\n"), ("/health", "ok\n"), ("/readyz", "ready\n")] {
        let answer = get(&pair, path)?;
        ensure!(answer == (200, body.into()), "{path}: {answer:?}");
    }
    let mut client = connect(&pair, Family::V4)?;
    client.send_one(Frame::text("hello"))?;
    ensure!(message(&client)? == "hello");
    // The guard is well; the server refuses further connections.
    let answer = get(&pair, "/readyz")?;
    ensure!(answer.0 == 503 && answer.1.contains("connection limit reached (1)"), "{answer:?}");
    let (_, metrics) = get(&pair, "/metrics")?;
    for sample in ["wsguard_ready 1", "wsguard_server_opened_total 1"] {
        ensure!(metrics.lines().any(|line| line == sample), "{sample} is not in {metrics}");
    }
    client.close()?;
    eventually("it lets others in", || Ok(get(&pair, "/readyz")?.0 == 200))?;

    // Clients connected at the end are told, and requests as well.
    let mut last = connect(&pair, Family::V4)?;
    guard.signal_end()?;
    ensure!(last.wait(WAIT, |r| r.close.is_some()), "no close frame");
    ensure!(last.received().close == Some(1012), "{:?}", last.received().close);
    let answer = get(&pair, "/readyz")?;
    ensure!(answer.0 == 503 && answer.1.contains("is ending"), "{answer:?}");
    last.send_one(Frame::new(opcode::CLOSE, 1012u16.to_be_bytes()))?;
    drop(last);
    guard.finish()?;
    let causes: Vec<_> = collector.spans("connection").iter().map(cause).collect();
    ensure!(causes == ["peer_closed", "shutdown"].map(|c| Some(c.to_owned())), "{causes:?}");
    for (name, expected) in [("wsguard_server_opened_total", 2.0), ("wsguard_up", 1.0)] {
        let value = collector.metric(name, &[]);
        ensure!(value == expected, "{name}: {value}");
    }
    Ok(())
}

fn cause(span: &opentelemetry_proto::tonic::trace::v1::Span) -> Option<String> {
    text(&span.attributes, "cause")
}
