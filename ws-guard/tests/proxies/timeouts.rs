//! A connection that nginx gives up: the runbook's command finds its log lines.
use std::{
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    netns::{Family, Pair, PairOptions},
    process::Process,
    proxies::{Proxy, nginx},
    tools,
};

const SERVER: &str = "127.0.0.1:9001";
const RUNBOOK: &str = "docs/runbooks/WsGuardServerTimeouts.md";
/// Placeholders of the runbook's command for a connection and its logs.
const SHOWN: [&str; 3] =
    ["connection 17 ", "/var/log/ws-guard/access.log", "/var/log/nginx/error.log"];

/// Return the command in the runbook, with these replacements.
fn command(replaced: [&str; 3]) -> Result<String> {
    let text = fs::read_to_string(tools::workspace().join(RUNBOOK))?;
    let block = text.split("```\n").nth(1).context("the runbook has no command")?;
    ensure!(block.trim().lines().count() == 1, "it is one command: {block}");
    let replace = |text: String, (shown, own): (&str, &str)| {
        ensure!(text.contains(shown), "{shown} is not in {text}");
        Ok(text.replace(shown, own))
    };
    SHOWN.into_iter().zip(replaced).try_fold(block.trim().to_owned(), replace)
}

#[test]
fn the_runbooks_command_brings_the_lines_of_both_logs() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions { clients: 2, ..PairOptions::default() })?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (socket, access, errors) = (path("serve.sock"), path("access.log"), path("error.log"));
    let mut serve = pair.server.command(env!("CARGO_BIN_EXE_ws-guard"));
    serve.args(["serve", "--listen", SERVER, "--trusted-proxy=127.0.0.0/8", "--shards=1"]);
    serve.args(["--ping-interval=1h", "--stall-refuse=1h", "--stall-shed=1h"]);
    serve.args(["--control-socket", &socket, "--access-log", &access]);
    let server = Process::spawn("ws-guard serve", serve)?;
    let wait = Duration::from_secs(20);
    server.wait_for(wait, |line| line.contains("serving WebSocket").then_some(()))?;
    let front = SocketAddr::new(Family::V4.server(), 8080);
    let config = nginx::appending(front, SERVER.parse()?);
    // nginx logs it at this level.
    let changes = [("read_timeout 1h", "read_timeout 2s"), ("stderr notice", "stderr info")];
    let change = |config: String, (old, new): (&str, &str)| {
        ensure!(config.contains(old), "{old} is not in {config}");
        Ok(config.replace(old, new))
    };
    let proxy = Proxy::nginx(&pair.server, &changes.into_iter().try_fold(config, change)?)?;

    let client = |n| {
        let source = Some(Family::V4.client(n));
        let options = ConnectOptions { source, reads: true, receive_buffer: None };
        Client::connect(&pair.client, front, options)
    };
    let (silent, other) = (client(0)?, client(1)?);
    let list = || -> Result<Value> {
        let mut list = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
        list.args(["connections", "--all", "-o", "json", "--control-socket", &socket]);
        Ok(serde_json::from_slice(&list.output()?.stdout)?)
    };
    let address = silent.local().ip().to_string();
    let of_silent = |view: &&Value| view["client"] == address.as_str();
    let find = || {
        Ok::<_, anyhow::Error>(
            list()?.as_array().and_then(|views| views.iter().find(of_silent).cloned()),
        )
    };
    proxy.wait_for(wait, &format!("client: {address},"))?;
    let deadline = Instant::now() + wait;
    while find()?.is_none_or(|view| view["code"] != 1006) {
        ensure!(Instant::now() < deadline, "the server has not noticed: {}", list()?);
        thread::sleep(Duration::from_millis(20));
    }
    fs::write(&errors, proxy.log())?;

    let id = find()?.context("it is forgotten")?["id"].to_string();
    let shown = format!("connection {id} --control-socket {socket} ");
    let program = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
    let folder = std::path::Path::new(program.get_program()).parent().context("no folder")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    let mut shell = Command::new("sh");
    let output =
        shell.args(["-c", &command([&shown, &access, &errors])?]).env("PATH", path).output()?;
    let lines = String::from_utf8(output.stdout)?;
    let found =
        |words: &[&str]| lines.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(found(&[&errors, "upstream timed out", "upgraded connection"]), "{lines}");
    let close = [&*access, "\"event\":\"close\"", "\"cause\":\"peer_vanished\"", "\"code\":1006"];
    ensure!(found(&close), "{lines}");
    let others = other.local().ip().to_string();
    ensure!(!found(&[&others]), "{lines}");
    proxy.stop()
}
