//! WebSockets inside TLS:
//! real servers and clients of OpenSSL, records followed and counted. Expected values come from a
//! client that parses its own records.
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use ws_guard_common::record::{Cipher, LONGEST_PING, SHORTEST_PING};
use ws_guard_testkit::{
    certificate,
    netns::{Family, Pair, PairOptions},
    process::Process,
    tools,
};

use crate::{process::Guard, stage::Source};

/// TLS version and ciphers of each server, in the order of their ports.
const SERVERS: [(&str, &str, Cipher); 4] = [
    ("1.3", "-", Cipher::Tls13),
    ("1.2", "ECDHE-RSA-AES128-GCM-SHA256", Cipher::Gcm12),
    ("1.2", "ECDHE-RSA-CHACHA20-POLY1305", Cipher::ChaCha12),
    ("1.2", "ECDHE-RSA-AES256-SHA", Cipher::CbcShaEtm12),
];
const PORT: u16 = 9443;

/// The client's report about itself.
#[derive(Clone, Debug, Deserialize)]
struct Said {
    local: String,
    cipher: String,
    records: u64,
    lengths: Vec<u16>,
    peak: u64,
    pongs: u64,
    messages: u64,
    #[serde(default)]
    echo_ms: Vec<f64>,
    took: u64,
    unanswered: u64,
    silent: bool,
}

/// A row of `flows -o json`.
#[derive(Debug, Deserialize)]
struct Flow {
    client: String,
    state: String,
    tls: bool,
    paced: bool,
    frames_in: u64,
    pings_in: u64,
    defused: u64,
    violations: u64,
    unsynced_total: u64,
    request_unseen: bool,
}

struct Stage {
    // Dropped in this order.
    guard: Guard,
    _servers: Vec<Process>,
    _dir: tempfile::TempDir,
    pair: Pair,
}

/// A client that has sent everything, and stays connected until it is dropped.
struct Client {
    child: Child,
    said: Said,
}

impl Drop for Client {
    fn drop(&mut self) {
        // The client ends with its standard input.
        self.child.stdin.take();
        let _ = self.child.wait();
    }
}

impl Stage {
    /// Start servers with [`SERVERS`]' ciphers, behind a guard with these arguments.
    fn new(words: &str) -> Result<Stage> {
        let pair = Pair::new(PairOptions { clients: 8, ..PairOptions::default() })?;
        let dir = tempfile::tempdir()?;
        let [cert, key] = certificate::make(dir.path())?;
        let start = |(index, (version, ciphers, _)): (usize, &(&str, &str, Cipher))| {
            let mut command = pair.server.command(tools::python());
            let port = (PORT + index as u16).to_string();
            command.arg(tools::foreign().join("wss_echo.py"));
            command.args([&port, &cert, &key, *version, *ciphers]);
            let server = Process::spawn("wss_echo.py", command)?;
            server.wait_for(Duration::from_secs(10), |line| {
                line.contains("listening").then_some(())
            })?;
            Ok(server)
        };
        let servers = SERVERS.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        let ports: Vec<String> =
            (0..SERVERS.len() as u16).map(|index| format!("{}/tls", PORT + index)).collect();
        let guard = Guard::start(
            &pair.server,
            &format!("--port {} --state-file none {words}", ports.join(",")),
        )?;
        Ok(Stage { guard, _servers: servers, _dir: dir, pair })
    }

    /// Start client number `n` of the first server, or of another `tls` version's.
    fn start(&self, n: u8, server: usize, mut what: Value) -> Result<Child> {
        what["source"] = Family::V4.client(n).to_string().into();
        what["server"] = Family::V4.server().to_string().into();
        what["port"] = (PORT + server as u16).into();
        what["tls"] = SERVERS[server].0.into();
        let mut command: Command = self.pair.client.command(tools::python());
        command.arg(tools::foreign().join("wss_client.py")).arg(what.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("starting wss_client.py")
    }

    fn client(&self, n: u8, server: usize, what: Value) -> Result<Client> {
        said(self.start(n, server, what)?)
    }

    fn flow(&self, client: &Client) -> Result<Flow> {
        let flows: Vec<Flow> = self.guard.ask("flows")?;
        let found = flows.into_iter().find(|flow| flow.client == client.said.local);
        found.with_context(|| format!("no flow of {}", client.said.local))
    }

    fn source(&self, n: u8) -> Result<Source> {
        let sources: Vec<Source> = self.guard.ask("sources")?;
        let name = Family::V4.client(n).to_string();
        Ok(sources.into_iter().find(|source| source.source == name).unwrap_or_default())
    }

    /// Report pings of client number `n` as a terminator does.
    fn report(&self, n: u8, pings: u32) -> Result<String> {
        let source = Family::V4.client(n).to_string();
        let body = json!({"reports": [{"source": source, "pings": pings, "port": PORT}]});
        let body = body.to_string();
        let mut socket = UnixStream::connect(self.guard.socket())?;
        write!(
            socket,
            "POST /v1/reports HTTP/1.1\r\nHost: ws-guard\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(answer)
    }
}

/// Read the one-line report of a client.
fn said(mut child: Child) -> Result<Client> {
    let mut line = String::new();
    let mut stdout = child.stdout.take().context("its output is captured")?;
    let mut byte = [0];
    while stdout.read(&mut byte)? > 0 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    match serde_json::from_str(&line) {
        Ok(said) => Ok(Client { child, said }),
        Err(error) => {
            drop(child.stdin.take());
            let output = child.wait_with_output()?;
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(error).with_context(|| format!("the client said {line:?}: {why}"))
        }
    }
}

#[test]
fn every_record_is_counted_under_each_cipher() -> Result<()> {
    needs_root!();
    let stage = Stage::new("--max-record-rate 1000")?;
    let mut certain = 0;
    for (index, (version, _, cipher)) in SERVERS.iter().enumerate() {
        for (length, bytes) in [(0, SHORTEST_PING), (125, LONGEST_PING)] {
            for pieces in [1 << 16, 7] {
                let what = json!({"pings": 60, "length": length, "pieces": pieces});
                let client = stage.client(1, index, what)?;
                let (said, flow) = (&client.said, stage.flow(&client)?);
                println!("TLS {version}, {}, {length} bytes: {said:?}", said.cipher);
                ensure!(said.lengths == [cipher.length(bytes)], "{cipher:?}: {:?}", said.lengths);
                ensure!(said.pongs == 60 && !said.silent, "{said:?}");
                ensure!(flow.tls && flow.state == "open", "{flow:?}");
                // A ClientHello retransmitted by a busy machine is not believed.
                certain += u32::from(!flow.request_unseen);
                ensure!(flow.frames_in == said.records, "{said:?}, but {flow:?}");
                let none = [flow.violations, flow.unsynced_total, flow.pings_in, flow.defused];
                ensure!(none == [0; 4], "{flow:?}");
            }
        }
    }
    ensure!(certain >= 8, "only {certain} of 16 were followed from their ClientHello on");
    stage.guard.finish()
}

#[test]
fn a_flood_is_paced_and_dropped_where_configured() -> Result<()> {
    needs_root!();
    let stage = Stage::new("")?;

    // By default: slowed down, and answered to the last.
    let watched = stage.client(1, 0, json!({"pings": 2000}))?;
    let (row, flow) = (stage.source(1)?, stage.flow(&watched)?);
    println!("watched: {:?}, {row:?}", watched.said);
    ensure!(watched.said.pongs == 2000 && flow.frames_in == watched.said.records, "{flow:?}");
    ensure!(row.state == "throttled" && row.dropped_total == 0, "{row:?}");
    ensure!(flow.paced && !watched.said.silent, "{flow:?}");

    // A terminator's report of a client without a connection: it is throttled, and may come again.
    let answer = stage.report(2, 31)?;
    ensure!(answer.contains(&Family::V4.client(2).to_string()), "{answer}");
    let again = stage.client(2, 0, json!({"pings": 10}))?;
    ensure!(again.said.pongs == 10, "{:?}", again.said);
    let other = stage.client(3, 0, json!({"pings": 10}))?;
    ensure!(other.said.pongs == 10, "{:?}", other.said);
    let row = stage.source(2)?;
    println!("reported: {row:?}");
    ensure!(row.state == "throttled" && row.defused_total == 0, "{row:?}");

    // By the operator's policy.
    stage.guard.run(&format!("policy set --for-port {PORT} --action drop"))?;
    let dropped = stage.client(4, 0, json!({"pings": 2000, "patience": 2}))?;
    let row = stage.source(4)?;
    println!("dropped: {:?}, {row:?}", dropped.said);
    ensure!(dropped.said.pongs < 310 && dropped.said.silent, "{:?}", dropped.said);
    ensure!(row.state == "throttled" && row.dropped_total > 0, "{row:?}");
    // The other ports still only slow down, and only flooders.
    let other = stage.client(5, 1, json!({"pings": 2000}))?;
    ensure!(other.said.pongs == 2000 && stage.flow(&other)?.paced, "{:?}", other.said);
    let neighbour = stage.client(5, 1, json!({"pings": 20}))?;
    ensure!(!stage.flow(&neighbour)?.paced, "the neighbour of the same address is paced");

    // A limit of the method: pings that share a record.
    let together = stage.client(6, 0, json!({"pings": 2000, "coalesce": 100}))?;
    println!("together: {:?}, {:?}", together.said, stage.source(6)?);
    ensure!(together.said.pongs == 2000 && stage.source(6)?.state != "throttled");
    drop((watched, other, neighbour, dropped, together));
    stage.guard.finish()
}

/// A connection older than the guard is followed after a few records.
#[test]
fn a_connection_from_before_is_joined() -> Result<()> {
    needs_root!();
    let stage = Stage::new("--max-record-rate 1000")?;
    let chat = json!({"chat": 6, "pause": [0.05, 0.1], "words": [1, 5]});
    stage.guard.run(&format!("policy set --port {}/tls", PORT + 1))?;
    let child = stage.start(1, 0, chat)?;
    thread::sleep(Duration::from_secs(2));
    stage.guard.run(&format!("policy set --port {PORT}/tls"))?;
    let client = said(child)?;
    let flow = stage.flow(&client)?;
    println!("{:?}: {flow:?}", client.said);
    ensure!(flow.state == "open" && flow.tls && flow.violations == 0, "{flow:?}");
    let seen = flow.frames_in * 100 / client.said.records;
    ensure!((30..100).contains(&seen), "{seen} % of its records were seen");
    drop(client);
    stage.guard.finish()
}

/// Chatting people and machines, and how near the default limit they are.
/// `WS_GUARD_CHAT_SECONDS` sets the duration.
#[test]
fn chat_is_no_flood() -> Result<()> {
    needs_root!();
    let stage = Stage::new("")?;
    let seconds: u64 = std::env::var("WS_GUARD_CHAT_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(12);
    let profiles = [
        ("a person", [2.0, 8.0], [3, 20]),
        ("a person in haste, a word or two at a time", [0.4, 1.5], [1, 3]),
        ("a bot, ten messages a second", [0.05, 0.15], [1, 15]),
        ("a busy bot, 25 a second", [0.03, 0.05], [1, 15]),
    ];
    let mut running = Vec::new();
    for (index, (name, pause, words)) in profiles.iter().enumerate() {
        for compression in [false, true] {
            let what = json!({
                "chat": seconds, "pause": pause, "words": words, "compression": compression,
            });
            let n = (index * 2) as u8 + u8::from(compression);
            running.push((name, compression, n, stage.start(n, 0, what)?));
        }
    }
    for (name, compression, n, child) in running {
        let client = said(child)?;
        let (flow, source) = (stage.flow(&client)?, stage.source(n)?);
        let lengths = (client.said.lengths.first(), client.said.lengths.last());
        println!(
            "{name}, compression {compression}: {} messages in {seconds} s, records of {lengths:?} \
             bytes, at most {} small ones in any 10 s; {}",
            client.said.messages, client.said.peak, source.state
        );
        ensure!(flow.frames_in == client.said.records, "{:?}, but {flow:?}", client.said);
        ensure!(client.said.peak <= 300 && source.state != "throttled", "{name}: {source:?}");
    }
    let status: Value = stage.guard.ask("status")?;
    ensure!(status["packets"]["dropped"] == 0, "{status}");
    stage.guard.finish()
}

/// Harmless clients, all of them taken for flooders: the effects of pacing on them.
/// `WS_GUARD_CHAT_SECONDS` sets the duration of the measurement.
#[test]
fn a_false_positive_is_bearable() -> Result<()> {
    needs_root!();
    let seconds: u64 = std::env::var("WS_GUARD_CHAT_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(12);
    // Any message is too much, so that each of them is over the limit all the time.
    const ANY: &str = "--max-record-rate 2 --record-bytes 22-16000";
    let profiles = [
        ("a person in haste, a word or two at a time", [0.4, 1.5], [1, 3]),
        ("a bot, ten messages a second", [0.05, 0.15], [1, 15]),
        ("a busy bot, 25 a second", [0.03, 0.05], [1, 15]),
        ("reports of 1 KB, ten a second", [0.09, 0.11], [220, 220]),
        ("reports of 4 KB, ten a second", [0.09, 0.11], [880, 880]),
    ];
    for paced in [false, true] {
        let pace = if paced { "" } else { "--pace off" };
        let stage = Stage::new(&format!("{ANY} {pace}"))?;
        let mut running = Vec::new();
        for (n, (name, pause, words)) in profiles.iter().enumerate() {
            let what = json!({"chat": seconds, "pause": pause, "words": words, "after": 2});
            running.push((name, stage.start(n as u8, 0, what)?));
        }
        for (name, child) in running {
            let client = said(child)?;
            let (said, flow) = (&client.said, stage.flow(&client)?);
            println!(
                "{name}, paced {}: {} echoes in {seconds} s, after {:.1?} ms, {} without one",
                flow.paced, said.took, said.echo_ms, said.unanswered
            );
            ensure!(flow.paced == paced, "{flow:?}");
            // Nothing is lost, and the connection goes on.
            ensure!(!said.silent && said.unanswered == 0 && flow.state == "open", "{said:?}");
        }
        let status: Value = stage.guard.ask("status")?;
        ensure!(status["packets"]["dropped"] == 0, "{status}");
        stage.guard.finish()?;
    }
    Ok(())
}
