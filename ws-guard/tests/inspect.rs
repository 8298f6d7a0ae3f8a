//! `ws-guard inspect` for its users: lists, displays and files.

#[path = "../../ws-guard-inspect/tests/common/mod.rs"]
mod common;

use std::{path::Path, process::Command};

use common::{START, Talk, frame};
use serde_json::Value;
use tempfile::TempDir;
use ws_guard_inspect::Side;

/// Write a capture of a client's pings, one a second, and their answers.
fn pings(folder: &Path, name: &str, port: u16) -> String {
    let mut talk = Talk::new(false, [7, 9]);
    talk.client.set_port(port);
    talk.handshake();
    talk.send(Side::Client, common::REQUEST);
    talk.send(Side::Server, &common::switching(false));
    for number in 0..5 {
        talk.now_ns = START + 1_000_000_000 * number;
        talk.send(Side::Client, &frame(Side::Client, 0x89, &[b'0' + number as u8]));
        talk.send(Side::Server, &frame(Side::Server, 0x8A, &[b'0' + number as u8]));
    }
    let path = folder.join(name);
    std::fs::write(&path, talk.pcap()).unwrap();
    path.display().to_string()
}

/// Run it; return exit code, standard output and standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
    let output = command.env_clear().arg("inspect").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn document(arguments: &[&str]) -> Value {
    let (code, out, error) = run(&[arguments, &["-o", "json"]].concat());
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&out).unwrap()
}

/// Return the frame numbers of the listed pings.
fn listed(arguments: &[&str]) -> Vec<u64> {
    let all = document(&[arguments, &["--kind", "ping"]].concat());
    let findings = all["findings"].as_array().unwrap().iter();
    let json: Vec<u64> = findings.map(|finding| finding["frame"].as_u64().unwrap()).collect();
    // Lines of JSON say the same.
    let (_, out, _) = run(&[arguments, &["--kind", "ping", "-o", "jsonl"]].concat());
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines = lines.filter_map(|line| line["frame"].as_u64());
    assert_eq!(lines.collect::<Vec<_>>(), json);
    json
}

#[test]
fn ranges_of_entries_and_of_time() {
    let folder = TempDir::new().unwrap();
    let file = pings(folder.path(), "one.pcap", 4711);
    assert_eq!(listed(&[&file]), [1, 2, 3, 4, 5]);
    assert_eq!(listed(&[&file, "--first", "2"]), [1, 2]);
    assert_eq!(listed(&[&file, "--last", "2"]), [4, 5]);
    assert_eq!(listed(&[&file, "--since", "+1s", "--until", "+3s"]), [2, 3, 4]);
    assert_eq!(listed(&[&file, "--until", "2023-11-14T22:13:21Z", "--last", "1"]), [2]);
    let flows = |arguments: &[&str]| document(arguments)["flows"].as_array().unwrap().len();
    assert_eq!((flows(&[&file, "--since", "+4s"]), flows(&[&file, "--since", "+5s"])), (1, 0));
    let other = pings(folder.path(), "two.pcap", 4712);
    assert_eq!((flows(&[&file, &other]), flows(&[&file, &other, "--last", "1"])), (2, 1));
    assert_eq!(run(&[&file, "--first", "1", "--last", "1"]).0, 2);
    assert_eq!(run(&[&file, "--since", "yesterday"]).0, 2);
}

#[test]
fn a_frame_is_explained_byte_by_byte() {
    let folder = TempDir::new().unwrap();
    let file = pings(folder.path(), "one.pcap", 4711);
    let (code, out, _) = run(&[&file, "--hexdump", "client:3"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(code, 0);
    assert!(lines[0].starts_with("10.77.0.1:4711 → 10.77.0.2:80, client frame 3: ping"), "{out}");
    assert!(lines[1].starts_with("packet 10 at offset 0"), "{out}");
    assert!(lines[3].contains("89 ") && lines[3].ends_with("opcode 0x9, ping"), "{out}");
    assert!(lines[5].contains("12 34 56 78") && lines[5].contains("masking key"), "{out}");
    assert!(lines[6].contains("payload: 2"), "{out}");
    let frame = document(&[&file, "--hexdump", "server:1"]);
    assert_eq!((&frame["opcode"], &frame["parts"][0]["hex"]), (&10.into(), &"8a".into()));
    let (code, out, error) = run(&[&file, "--hexdump", "client:6"]);
    assert!(code == 1 && out.is_empty() && error.contains("no connection has a frame client:6"));
    assert_eq!(run(&[&file, "--hexdump", "6"]).0, 2);
}

#[test]
fn one_connection_is_written_and_which_has_to_be_named() {
    let folder = TempDir::new().unwrap();
    let one = pings(folder.path(), "one.pcap", 4711);
    let two = pings(folder.path(), "two.pcap", 4712);
    let target = folder.path().join("out.pcapng").display().to_string();
    for output in ["table", "jsonl"] {
        let (code, _, error) = run(&[&one, &two, "--write", &target, "-o", output]);
        assert!(code == 1 && error.contains("--flow"), "{error}");
        assert!(!Path::new(&target).exists());
    }
    let chosen = [&one, &two, "--flow", "10.77.0.1:4712", "--write", &target];
    let (code, _, error) = run(&chosen);
    assert!(code == 0 && error.contains("15 packets with 5 comments"), "{error}");
    let written = document(&[&target]);
    assert_eq!(written["flows"][0]["client"], "10.77.0.1:4712");
    assert_eq!(
        (&written["flows"][0]["pings_client"], &written["totals"]["packets"]),
        (&5.into(), &15.into())
    );
}

#[test]
fn messages_are_listed_with_what_they_say() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("said.pcap");
    let mut talk = Talk::open(false, [1, 2], false);
    talk.send(Side::Client, &frame(Side::Client, 0x81, b"twelve bytes"));
    std::fs::write(&path, talk.pcap()).unwrap();
    let file = path.display().to_string();
    let (code, out, _) = run(&[&file, "--payload=6"]);
    assert!(code == 0 && out.contains("text, 12 bytes: \"twelve\"…"), "{out}");
    let found = &document(&[&file, "--kind", "message"])["findings"];
    assert_eq!((&found[0]["text"], found.as_array().unwrap().len()), (&"twelve bytes".into(), 1));
    assert_eq!(document(&[&file])["flows"][0]["findings_total"], 0);
}

#[test]
fn layouts_come_from_a_file() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (capture, layouts) = (at("units.pcap"), at("layouts.toml"));
    let mut talk = Talk::new(false, [1, 2]);
    talk.server.set_port(9000);
    talk.handshake();
    talk.send(Side::Client, b"\x03\0abc\x01\0d");
    std::fs::write(&capture, talk.pcap()).unwrap();
    let fields = "[[protocol]]\nport = 9000\nheader = 2\nwidth = 2\norder = \"little\"\n";
    std::fs::write(&layouts, fields).unwrap();
    let flow = &document(&[&capture, "--layouts", &layouts])["flows"][0];
    assert_eq!((&flow["frames_client"], &flow["violations_total"]), (&2.into(), &0.into()));
    // The command line takes precedence.
    let given = [&capture, "--layouts", &layouts, "--protocol", "9000=length-prefix"];
    assert_eq!(document(&given)["flows"][0]["protocol"], "length-prefix");
    std::fs::write(&layouts, "[[protocol]]\nport = 9000\nheader = 0\n").unwrap();
    let (code, _, error) = run(&[&capture, "--layouts", &layouts]);
    assert!(code == 1 && error.contains("layouts.toml") && error.contains("9000"), "{error}");
}

#[test]
fn a_page_is_written() {
    let folder = TempDir::new().unwrap();
    let file = pings(folder.path(), "one.pcap", 4711);
    let target = folder.path().join("page.html").display().to_string();
    let (code, out, error) = run(&[&file, "--html", &target]);
    assert!(code == 0 && out.contains("10.77.0.1:4711"), "{error}");
    let page = std::fs::read_to_string(&target).unwrap();
    let (_, data) = page.split_once("id=\"data\">").unwrap();
    let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    assert_eq!(data["flows"][0]["frames"].as_array().unwrap().len(), 10);
    let (code, _, error) = run(&[&file, "--html", "/nonexistent/page.html"]);
    assert!(code == 1 && error.contains("/nonexistent/page.html"), "{error}");
}

/// The demonstration, without root, where the system lets users make namespaces.
#[test]
fn the_demonstration_shows_what_it_says() {
    use std::os::unix::process::CommandExt;
    let folder = TempDir::new().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let mut users = vec![None];
    if nix::unistd::geteuid().is_root() {
        users.push(Some(65534));
    }
    for user in users {
        let binary = folder.path().join("ws-guard");
        // The build path must not be readable.
        std::fs::copy(env!("CARGO_BIN_EXE_ws-guard"), &binary).unwrap();
        let mut command = Command::new(&binary);
        command.env_clear().env("TMPDIR", folder.path()).args(["inspect", "--demo"]);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("this system forbids it to users") {
            println!("skipped: {error}");
            continue;
        }
        assert!(output.status.success(), "{error}");
        let out = String::from_utf8(output.stdout).unwrap();
        let (_, file) = out.split_once("The capture is ").unwrap();
        let file = file.split_once(". See").unwrap().0;
        let flows = document(&[file])["flows"].as_array().unwrap().clone();
        let looks: Vec<_> = flows.iter().map(|flow| flow["looks_like"].as_str().unwrap()).collect();
        assert_eq!(looks[..4], ["framing", "heartbeat", "pause", "framing"], "{out}");
        assert_eq!(
            (&flows[0]["split_headers"], &flows[0]["coalesced_segments"]),
            (&1.into(), &1.into())
        );
        assert_eq!(flows[3]["violations"][0]["kind"], "unmasked");
        // A program that reads slowly, with nothing on the path that holds its window.
        assert!(flows[4]["of_server"]["zero_windows"].as_u64() > Some(0), "{out}");
        assert_eq!(flows[4]["of_server"]["held_windows"], 0, "{out}");
        assert!(flows.iter().all(|flow| flow["of_client"]["gaps"] == 0), "{out}");
        for said in ["split_header: header of frame 4 is cut after 3 bytes", "--hexdump client:1"] {
            assert!(out.contains(said), "{said}: {out}");
        }
    }
    assert_eq!(run(&["--demo", "app.pcap"]).0, 2);
}

/// A process that ends with the test.
struct Live(std::process::Child);

impl Drop for Live {
    fn drop(&mut self) {
        // It has ended already if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_interface_is_inspected_live() -> anyhow::Result<()> {
    use nix::{sys::signal, unistd::Pid};
    use std::{
        io::{BufRead, BufReader},
        process::Stdio,
    };
    use ws_guard_testkit::{
        client::{Client, ConnectOptions, Cut},
        frame::Frame,
        netns::{Family, INTERFACE, Pair, PairOptions},
        servers::{Library, Server},
        skip_reason,
    };
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let pair = Pair::new(PairOptions::default())?;
    // First, since it may have to be compiled.
    let server = Server::start(&pair.server, Library::TokioTungstenite, 9001, None)?;
    let mut command = pair.server.command(env!("CARGO_BIN_EXE_ws-guard"));
    command.args(["inspect", "--interface", INTERFACE, "-o", "jsonl", "--payload"]);
    // It ends even if nothing is found.
    command.args(["--seconds", "20"]);
    command.args(["--kind", "message,split_point,close"]);
    let mut live = Live(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(live.0.stdout.take().unwrap()).lines();
    let mut said = BufReader::new(live.0.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line)?;
    assert!(line.starts_with("listening on "), "{line}");
    let at = server.at(Family::V6.server());
    let mut client = Client::connect(&pair.client, at, ConnectOptions::default())?;
    client.send(&["one", "two"].map(Frame::text), &Cut::Whole)?;
    let wait = std::time::Duration::from_secs(20);
    assert!(client.wait(wait, |received| received.messages == 2));
    client.close()?;
    // Lines appear while it runs: that of the server's close is the last but for the totals.
    let mut found: Vec<Value> = Vec::new();
    while found.iter().filter(|line| line["kind"] == "close").count() < 2 {
        found.push(serde_json::from_str(&lines.next().unwrap()?)?);
    }
    signal::kill(Pid::from_raw(live.0.id() as i32), signal::Signal::SIGINT)?;
    let totals: Value = serde_json::from_str(&lines.next().unwrap()?)?;
    assert_eq!((&totals["kind"], &totals["websocket"]), (&"totals".into(), &1.into()));
    assert!(lines.next().is_none() && live.0.wait()?.success());
    let of = |kind: &str, side: &str| {
        let of_it = found.iter().filter(|line| line["kind"] == kind && line["direction"] == side);
        of_it.cloned().collect::<Vec<Value>>()
    };
    let texts = |side| of("message", side).iter().map(|m| m["text"].clone()).collect::<Vec<_>>();
    assert_eq!(
        (texts("client"), texts("server")),
        (vec!["one".into(), "two".into()], vec!["one".into(), "two".into()])
    );
    assert_eq!(of("split_point", "client")[0]["offsets"], serde_json::json!([9]));
    server.stop()?;
    Ok(())
}

/// Return the packets that went over the interface of a namespace, both ways.
fn packets_over(namespace: &ws_guard_testkit::netns::Namespace, interface: &str) -> u64 {
    let mut command = namespace.command("ip");
    let out = command.args(["-json", "-statistics", "link", "show", interface]).output().unwrap();
    let links: Value = serde_json::from_slice(&out.stdout).unwrap();
    let of = |way: &str| links[0]["stats64"][way]["packets"].as_u64().unwrap();
    of("rx") + of("tx")
}

#[test]
fn what_comes_too_fast_is_counted_to_the_packet() -> anyhow::Result<()> {
    use nix::sys::signal::Signal;
    use std::time::{Duration, Instant};
    use ws_guard_testkit::{
        client::{Client, ConnectOptions, Cut},
        frame::{Frame, opcode},
        netns::{Family, INTERFACE, Pair, PairOptions},
        process::Process,
        servers::{Library, Server},
        skip_reason,
    };
    const WAIT: Duration = Duration::from_secs(20);
    /// Twice the capacity of the ring; the echoes are as much again.
    const MEGABYTES: usize = 32;
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let pair = Pair::new(PairOptions::default())?;
    let server = Server::start(&pair.server, Library::Python, 9001, None)?;
    let before = packets_over(&pair.server, INTERFACE);
    let mut command = pair.server.command(env!("CARGO_BIN_EXE_ws-guard"));
    command.args(["inspect", "--interface", INTERFACE, "-o", "jsonl", "--seconds", "60"]);
    let mut live = Process::spawn("ws-guard inspect", command)?;
    live.wait_for(WAIT, |line| line.starts_with("listening on ").then_some(()))?;
    let listening = packets_over(&pair.server, INTERFACE);
    let at = server.at(Family::V4.server());
    let mut client = Client::connect(&pair.client, at, ConnectOptions::default())?;
    live.signal(Signal::SIGSTOP)?;
    let mut messages = 0;
    for _ in 0..MEGABYTES {
        client.send(&[Frame::new(opcode::BINARY, vec![7; 1_000_000])], &Cut::Whole)?;
        messages += 1;
        assert!(client.wait(WAIT, |received| received.messages == messages));
    }
    live.signal(Signal::SIGCONT)?;
    // Bytes from now on are read again, and acknowledge those that were lost.
    let start = Instant::now();
    let has = |live: &Process, what: &str| live.lines().iter().any(|line| line.contains(what));
    while !has(&live, "\"kind\":\"gap\"") {
        assert!(start.elapsed() < WAIT, "no gap: {:?}", live.lines());
        client.send(&[Frame::text("on")], &Cut::Whole)?;
        messages += 1;
        assert!(client.wait(WAIT, |received| received.messages == messages));
    }
    client.close()?;
    let least = packets_over(&pair.server, INTERFACE) - listening;
    live.signal(Signal::SIGINT)?;
    let totals = |line: &str| line.contains("\"kind\":\"totals\"").then(|| line.to_owned());
    let totals: Value = serde_json::from_str(&live.wait_for(WAIT, totals)?)?;
    live.terminate()?;
    let most = packets_over(&pair.server, INTERFACE) - before;
    let count = |name: &str| totals[name].as_u64().unwrap();
    let (read, too_fast) = (count("packets"), count("too_fast"));
    println!("{read} read, {too_fast} too fast, of {least} to {most}");
    assert!(too_fast > 0, "{totals}");
    assert!((least..=most).contains(&(read + too_fast)), "{least} to {most}: {totals}");
    assert!(
        has(&live, "come too fast") && has(&live, &format!("{too_fast} packets came too fast"))
    );
    server.stop()?;
    Ok(())
}

#[test]
fn an_interface_has_to_be_there() {
    let (code, _, error) = run(&["--interface", "none-such", "--seconds", "1"]);
    assert!(code == 66 && error.contains("none-such") && error.contains("ip link"), "{error}");
    assert_eq!(run(&["--interface", "lo", "file.pcap"]).0, 2);
    assert_eq!(run(&["file.pcap", "--seconds", "1"]).0, 2);
}

/// A ping without an answer is known at the end, and listed at its place.
#[test]
fn findings_are_listed_in_order_of_their_packets() {
    let folder = TempDir::new().unwrap();
    let mut talk = Talk::open(false, [7, 9], false);
    let pinged = talk.send(Side::Server, &frame(Side::Server, 0x89, b"to no avail"));
    let two = [frame(Side::Client, 0x81, b"a"), frame(Side::Client, 0x81, b"b")].concat();
    let joined = talk.send(Side::Client, &two);
    let closed = talk.send(Side::Client, &frame(Side::Client, 0x88, &[3, 232]));
    let path = folder.path().join("app.pcap").display().to_string();
    std::fs::write(&path, talk.pcap()).unwrap();
    let listed = |arguments: &[&str]| -> Vec<u64> {
        let kinds = ["--kind", "ping,split_point,close"];
        let all = document(&[&[path.as_str()], &kinds[..], arguments].concat());
        let findings = all["findings"].as_array().unwrap().iter();
        findings.map(|finding| finding["packet"].as_u64().unwrap()).collect()
    };
    assert_eq!(listed(&[]), [pinged, joined, closed]);
    assert_eq!(listed(&["--first", "1"]), [pinged]);
    assert_eq!(listed(&["--last", "2"]), [joined, closed]);
}

/// Packets are counted by file: the file is shown, and each damaged one named.
#[test]
fn several_files_are_numbered_and_damaged_ones_named() {
    let folder = TempDir::new().unwrap();
    let one = pings(folder.path(), "one.pcap", 4711);
    let two = pings(folder.path(), "two.pcap", 4712);
    let broken = [("text", "no capture"), ("cut", "")].map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    });
    let (code, out, error) = run(&[&one, &two, "--kind", "ping"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.lines().next().unwrap().starts_with("FILE"), "{out}");
    assert!(out.contains(&format!("file 1: {one}\nfile 2: {two}")), "{out}");
    let (code, out, error) = run(&[&broken[0], &one, &broken[1], &two]);
    assert!(code == 65 && out.contains("2 WebSocket connections"), "{out}");
    assert!(
        broken.iter().all(|path| error.contains(path)) && error.lines().count() == 2,
        "{error}"
    );
    // Even if the requested connection is not in them.
    let (code, _, error) = run(&[&broken[0], &one, "--hexdump", "client:9"]);
    assert!(code == 1 && error.contains(&broken[0]) && error.contains("client:9"), "{error}");
    let (_, out, _) = run(&[&one, "--kind", "ping"]);
    assert!(out.starts_with("PACKET") && !out.contains("file 1"), "{out}");
}
