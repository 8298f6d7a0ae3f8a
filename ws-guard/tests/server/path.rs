//! Output of `connection ID` about a connection's TCP, compared with `ss -i`.

use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    frame::Frame,
    netns::{Family, Pair, PairOptions},
    process::Process,
    skip_reason,
};

use super::stage::{Client, PATIENCE, wait_for};

/// A server in a namespace, and a client in another.
struct Scene {
    pair: Pair,
    _server: Process,
    address: SocketAddr,
    socket: String,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn start() -> Result<Scene> {
        let pair = Pair::new(PairOptions::default())?;
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("serve.sock").display().to_string();
        let address = SocketAddr::new(Family::V4.server(), 9001);
        let mut command = pair.server.command(env!("CARGO_BIN_EXE_ws-guard"));
        command.args(["serve", "--listen", &address.to_string(), "--control-socket", &socket]);
        command.args(["--shards", "1", "--stall-refuse", "1h", "--stall-shed", "1h"]);
        command.args(["--ping-interval", "1s", "--pong-timeout", "2s"]);
        command.args(["--metrics-listen", "127.0.0.1:9464", "--access-log"]);
        command.arg(dir.path().join("access.log"));
        let server = Process::spawn("ws-guard serve", command)?;
        server.wait_for(PATIENCE, |line| line.contains("serving WebSocket").then_some(()))?;
        Ok(Scene { pair, _server: server, address, socket, _dir: dir })
    }

    /// Return its only connection, as the server lists it.
    fn view(&self) -> Result<Value> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
        command.args(["connection", "1", "-o", "json", "--control-socket", &self.socket]);
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice::<Value>(&output.stdout)?["connection"].clone())
    }

    /// Return a figure of that connection from `ss -i`: the text after `name:`, or 0.
    fn ss(&self) -> Result<impl Fn(&str) -> String + use<>> {
        let mut command = self.pair.server.command("ss");
        let output = command.args(["-tinH", "sport", "=", ":9001"]).output().context("ss")?;
        let text = String::from_utf8(output.stdout)?;
        Ok(move |name: &str| {
            let figure = text.split_whitespace().find_map(|word| word.strip_prefix(name));
            figure.unwrap_or("0").to_owned()
        })
    }

    fn metric(&self, sample: &str) -> Result<f64> {
        let at = SocketAddr::from(([127, 0, 0, 1], 9464));
        let stream = self.pair.server.run(|| TcpStream::connect(at))??;
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = super::stage::refused(stream, request);
        let line = answer.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {sample} in {answer}"))?.trim().parse()?)
    }

    /// Return the server's figures if those of `ss` were the same before and after.
    fn compared(&self) -> Result<Option<Value>> {
        const NAMES: [&str; 3] = ["rtt:", "retrans:", "unacked:"];
        let (before, view, after) = (self.ss()?, self.view()?, self.ss()?);
        if NAMES.iter().any(|name| before(name) != after(name)) {
            return Ok(None);
        }
        let tcp = view["tcp"].clone();
        let rtt = after("rtt:");
        let (rtt, deviation) = rtt.split_once('/').context("no rtt")?;
        // Those in flight, and all.
        let again = after("retrans:");
        let again = again.rsplit('/').next().unwrap_or_default();
        for (name, theirs) in [
            ("rtt_ms", rtt),
            ("rtt_deviation_ms", deviation),
            ("retransmitted", again),
            ("unacknowledged", &after("unacked:")),
        ] {
            let theirs: f64 = theirs.parse()?;
            ensure!(tcp[name].as_f64() == Some(theirs), "{name}: ss has {theirs}, we {tcp}");
        }
        Ok(Some(tcp))
    }
}

/// A client talks, and then its host falls silent, without even acknowledgements.
#[test]
fn a_connection_shows_what_ss_shows() -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let scene = Scene::start()?;
    let address = scene.address;
    let stream = scene.pair.client.run(|| TcpStream::connect_timeout(&address, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut client = Client::request(stream, "", &[]);
    client.send(&[Frame::text("hello")]);
    client.message();
    let fresh = wait_for(PATIENCE, || scene.compared().transpose()).context("ss never rests")??;
    ensure!(fresh["retransmitted"] == 0 && fresh["rtt_ms"].as_f64() > Some(0.0), "{fresh}");

    scene.pair.client.ip(&format!("route add blackhole {}/32", address.ip()))?;
    let lossy = wait_for(PATIENCE, || {
        let tcp = scene.compared().transpose()?;
        let wanted = |tcp: &Value| tcp["retransmitted"].as_u64() >= Some(3);
        tcp.map(|tcp| wanted(&tcp).then_some(tcp)).transpose()
    });
    let lossy = lossy.context("nothing is sent again")??;
    ensure!(lossy["unacknowledged"].as_u64() >= Some(1), "{lossy}");

    // The metrics have it after a ping interval.
    let counted = || {
        let again = scene.metric("wsguard_server_tcp_retransmitted_segments_sum");
        again.map(|again| (again >= 3.0).then_some(())).transpose()
    };
    wait_for(Duration::from_secs(20), counted).context("the metrics miss it")??;
    ensure!(scene.metric("wsguard_server_tcp_rtt_seconds_sum")? > 0.0);
    ensure!(
        scene.metric("wsguard_server_tcp_unacknowledged_segments_bucket{le=\"0\"}")?
            < scene.metric("wsguard_server_tcp_unacknowledged_segments_count")?
    );
    Ok(())
}
