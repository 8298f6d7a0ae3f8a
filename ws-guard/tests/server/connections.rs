//! Output of `ws-guard connections` and `connection` about a server.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use ws_guard_testkit::frame::{Frame, opcode};

use super::{
    served::Served,
    stage::{Client, PATIENCE, wait_for},
};

/// A server with a separate control socket.
struct Listed {
    served: Served,
    socket: String,
    _dir: tempfile::TempDir,
}

impl Listed {
    fn start(more: &[&str]) -> Listed {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("serve.sock").display().to_string();
        let served = Served::start(&[&["--control-socket", &socket], more].concat());
        Listed { served, socket, _dir: dir }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
        command.args(arguments).args(["--control-socket", &self.socket]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Return the listed connection of `client`, once `wanted` is true of it.
    fn find(&self, client: &Client, wanted: impl Fn(&Value) -> bool) -> Value {
        let peer = client.local.to_string();
        let mut last = Value::Null;
        let found = wait_for(PATIENCE, || {
            last = self.json(&["connections"]);
            let views = last.as_array().unwrap();
            views.iter().find(|view| view["peer"] == *peer && wanted(view)).cloned()
        });
        found.unwrap_or_else(|| panic!("{peer} in {last}"))
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn live_connections_and_those_that_ended_are_listed() {
    let listed = Listed::start(&["--user-from", "query:user", "--region-from", "query:region"]);
    let mut first = Client::connect(listed.served.address);
    let mut second = Client::connect(listed.served.address);
    first.send(&[Frame::text("hello")]);
    first.message();
    let view = listed.find(&first, |view| view["messages_out"] == 1);
    assert_eq!((&view["state"], &view["client"]), (&"idle".into(), &"127.0.0.1".into()));
    assert_eq!((&view["cause"], &view["message_queue_size"]), (&Value::Null, &0.into()));
    assert!(view["handshake_duration_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(view["ping_interval_ms"], 25_000);

    second.send(&[Frame::new(opcode::CLOSE, [0x03, 0xE8])]);
    second.close_code();
    let gone = listed.find(&second, |view| view["state"] == "closed");
    assert_eq!((&gone["cause"], &gone["code"]), (&"peer_closed".into(), &1000.into()));
    assert!(gone["tcp"]["rtt_ms"].as_f64() > Some(0.0), "{gone}");
    let table = text(&listed.run(&["connections"]));
    assert!(table.starts_with("ID  CLIENT "), "{table}");
    assert!(table.ends_with("\n1 connection, 0 suspect, 1 closed\n"), "{table}");
    let wide = text(&listed.run(&["connections", "-o", "wide"]));
    assert!(wide.contains("HANDSHAKE") && wide.contains(&first.local.to_string()), "{wide}");
}

/// The states of a client that falls silent, in order, and the cause of its end.
#[test]
fn the_story_of_a_client_that_falls_silent() {
    let listed = Listed::start(&["--ping-interval", "200ms", "--pong-timeout", "300ms"]);
    let mut client = Client::connect(listed.served.address);
    let ping = client.next().unwrap();
    assert_eq!(ping.opcode, opcode::PING);
    client.send(&[Frame { opcode: opcode::PONG, ..Frame::ping(ping.payload) }]);
    let active = listed.find(&client, |view| view["state"] == "active");
    assert!(active["last_pong"].is_string() && active["heartbeat_rtt_ms"].is_number(), "{active}");
    let id = active["id"].to_string();

    // From here on the client answers nothing.
    let mut follow = listed.command(&["connection", &id, "--follow", "-o", "json"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let told: Vec<Value> =
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(follow.wait().unwrap().success());
    let names: Vec<&str> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!((names[0], *names.last().unwrap()), ("opened", "closed"), "{names:?}");
    assert!(names.contains(&"ping_sent") && names.contains(&"closing"), "{names:?}");
    let states: Vec<&str> = told
        .iter()
        .filter(|event| event["event"] == "state")
        .map(|event| event["what"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["handshaking", "active", "suspect", "dead"]);
    assert_eq!(told.last().unwrap()["what"], "silence, 1006");

    let story = listed.run(&["connection", &id]);
    let story = text(&story);
    assert!(story.contains("\ncause         silence\ncode          1006\n"), "{story}");
    assert!(story.trim_end().ends_with("events"), "{story}");
}

/// Records for followers only: each once.
#[test]
fn a_follower_is_told_each_message_and_ping_once() {
    let listed = Listed::start(&[]);
    let mut client = Client::connect(listed.served.address);
    let id = listed.find(&client, |_| true)["id"].to_string();
    let mut follow = listed.command(&["connection", &id, "--follow", "-o", "json"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    // The first line is the past, reported once the follower is there.
    assert!(lines.next().unwrap().unwrap().contains("\"opened\""));
    client.send(&[Frame::text("hello"), Frame::ping("?"), Frame::new(opcode::CLOSE, [])]);
    client.close_code();
    let told: Vec<Value> =
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(follow.wait().unwrap().success());
    let told: Vec<(&str, &str)> = told
        .iter()
        .map(|event| (event["event"].as_str().unwrap(), event["what"].as_str().unwrap()))
        .collect();
    let wanted = [("message", "5 bytes"), ("ping", "answered"), ("closed", "peer_closed, 1005")];
    assert_eq!(told, wanted);
}

#[test]
fn exit_codes() {
    let listed = Listed::start(&[]);
    let unknown = listed.run(&["connection", "99"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no connection 99"));
    assert_eq!(listed.run(&["connection", "x"]).status.code(), Some(2));
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
    let nobody = nobody.args(["connections", "--control-socket", "/nonexistent/sock"]).output();
    assert_eq!(nobody.unwrap().status.code(), Some(69));
}

/// Listing asks each connection, and does not delay the others.
#[test]
fn many_connections_are_listed_while_others_go_on() {
    let listed = Listed::start(&[]);
    let clients: Vec<Client> = (0..800).map(|_| Client::connect(listed.served.address)).collect();
    let mut busy = Client::connect(listed.served.address);
    let mut listing = listed.command(&["connections", "--watch", "-o", "json"]);
    let mut listing = listing.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(listing.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let views: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(views.as_array().unwrap().len(), 801);
        busy.stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        busy.send(&[Frame::text("still here")]);
        assert_eq!(busy.message(), b"still here");
    }
    drop(lines);
    listing.kill().unwrap();
    listing.wait().unwrap();
    drop(clients);
}
