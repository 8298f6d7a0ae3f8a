//! `run --listen`: the companion server in the daemon, behind the daemon's guard.
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, Pair, PairOptions},
};

use crate::{
    process::Guard,
    stage::{Flow, PORT, WAIT, eventually},
    talk::{pings, round_trip},
};

/// Connect, even to a server that refuses connections for a second after a stall.
fn connect(pair: &Pair, server: SocketAddr) -> Result<Client> {
    let start = Instant::now();
    loop {
        match Client::connect(&pair.client, server, ConnectOptions::default()) {
            Err(_) if start.elapsed() < WAIT => std::thread::sleep(Duration::from_millis(200)),
            connected => return connected,
        }
    }
}

#[test]
fn it_serves_and_follows_the_policy() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let words = format!("--port {PORT} --listen [::]:{PORT} --access-log /dev/null");
    let guard = Guard::start(&pair.server, &format!("{words} --action observe"))?;
    for family in Family::BOTH {
        let server = (family.server(), PORT).into();
        let mut client = connect(&pair, server)?;
        client.send(&pings(0, 20), &Cut::Whole)?;
        round_trip(&mut client, "echo")?;
        ensure!(client.received().pongs == 20, "{} pongs", client.received().pongs);
        let flows: Vec<Flow> = guard.ask("flows")?;
        let flow = flows.iter().find(|flow| flow.client == client.local().to_string());
        ensure!(flow.is_some_and(|f| (f.pings_in, f.pongs_out) == (20, 20)), "{flows:?}");
        client.close()?;
    }
    // The guard only observes: pings without an answer are those that the server itself does not
    // answer.
    guard.run("policy set --max-ping-rate 25 --window-seconds 600")?;
    std::thread::sleep(Duration::from_millis(1500));
    let server = (Family::V4.server(), PORT).into();
    let mut client = connect(&pair, server)?;
    client.send(&pings(0, 20), &Cut::Whole)?;
    round_trip(&mut client, "echo")?;
    ensure!(client.received().pongs == 5, "{} pongs", client.received().pongs);
    client.send_one(Frame::text("still open"))?;
    client.close()?;
    guard.finish()
}

/// Overrides by port and network, and the allowlist, apply to the server's answers.
/// The kernel only observes here.
#[test]
fn it_follows_ports_networks_and_the_allowlist() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("guard.toml");
    let text = format!(
        "action = \"observe\"\nwindow-seconds = 600\nconnection-share = 0\n[[port]]\nport = {PORT}\nmax-ping-rate = 5\n\
         [[cidr]]\ncidr = \"{}\"\nmax-ping-rate = 9\n",
        Family::V6.client(0)
    );
    fs::write(&file, text)?;
    let words = format!(
        "--listen [::]:{PORT} --access-log /dev/null --state-file none --config {}",
        file.display()
    );
    let guard = Guard::start(&pair.server, &words)?;
    let answered = |family: Family| -> Result<u64> {
        let mut client = connect(&pair, (family.server(), PORT).into())?;
        client.send(&pings(0, 20), &Cut::Whole)?;
        round_trip(&mut client, "echo")?;
        let pongs = client.received().pongs;
        client.close()?;
        Ok(pongs as u64)
    };
    let pongs = (answered(Family::V4)?, answered(Family::V6)?);
    ensure!(pongs == (5, 9), "{pongs:?} pongs");
    guard.run(&format!("allow {}", Family::V4.client(0)))?;
    eventually("the allowlist holds", || Ok(answered(Family::V4)? == 20))?;
    let pongs = answered(Family::V6)?;
    ensure!(pongs == 0, "{pongs} pongs");
    guard.finish()
}

/// Offer two subprotocols; return the version in the answer.
fn version(pair: &Pair, server: SocketAddr) -> Result<String> {
    let mut stream = pair.client.run(|| TcpStream::connect_timeout(&server, WAIT))??;
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(
        b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Protocol: v1, v2+compression\r\n\r\n",
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?.to_lowercase();
    let field = head.lines().find_map(|line| line.strip_prefix("x-ws-protocol-version: "));
    Ok(field.with_context(|| head.clone())?.to_owned())
}

/// Options of `serve`, and the server's section of the daemon's own file.
/// It is read again with the file.
#[test]
fn it_takes_the_options_of_serve_and_the_daemons_file() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("guard.toml");
    let with = |rate: u32, offer: &str| {
        let text = format!("max-ping-rate = {rate}\n[[server.protocol]]\noffer = \"{offer}\"\n");
        fs::write(&file, text).context("writing the file")
    };
    with(40, "v1")?;
    let words = format!(
        "--port {PORT} --listen [::]:{PORT} --access-log /dev/null --config {} \
         --max-connections 1 --stall-refuse 1h --stall-shed 1h --state-file none",
        file.display()
    );
    let guard = Guard::start(&pair.server, &words)?;
    let server = (Family::V4.server(), PORT).into();
    ensure!(version(&pair, server)? == "v1");
    // `--max-connections` is the server's option: a second simultaneous connection is refused.
    let client = connect(&pair, server)?;
    ensure!(Client::connect(&pair.client, server, ConnectOptions::default()).is_err());
    client.close()?;

    // An error in the server's section prevents the whole file from taking effect.
    with(50, "not a name")?;
    eventually("the error is told", || {
        Ok(guard.log().contains("\"not a name\" is no name of a protocol"))
    })?;
    let rate = || -> Result<serde_json::Value> {
        Ok(guard.ask::<serde_json::Value>("policy get")?["max_ping_rate"].clone())
    };
    ensure!(rate()? == 40, "{}", rate()?);
    eventually(
        "the old table is in force",
        || Ok(version(&pair, server).is_ok_and(|v| v == "v1")),
    )?;
    with(50, "v2+compression")?;
    eventually("the new table is in force", || {
        Ok(version(&pair, server).is_ok_and(|version| version == "v2+compression"))
    })?;
    ensure!(rate()? == 50, "{}", rate()?);
    guard.finish()
}
