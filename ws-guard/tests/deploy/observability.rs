//! The examples in `deploy/observability`, started:
//! a trouble of the guard becomes a mail that leads to its panel and its runbook, and a collector
//! forwards the telemetry of guard and server.
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::Command,
    sync::PoisonError,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data};
use tempfile::TempDir;
use ws_guard_testkit::{netns::Namespace, process::Process, tools};

use crate::{
    collector::{Collector, text},
    files::{self, run},
    http,
    prometheus::Prometheus,
    stage::{Stage, eventually},
};

const FOLDER: &str = "deploy/observability";

/// Overlay for Debian's Alertmanager, whose templates are in the package.
/// Runs the command after the package's `/usr/share` with that laid over the machine's, which stays
/// unchanged.
const WITH_SHARE: &str =
    "mount -t overlay ws-guard -o lowerdir=\"$0\":/usr/share /usr/share && exec \"$@\"";

fn amtool(words: &[&str]) -> Result<String> {
    let mut amtool = Command::new(tools::amtool());
    amtool.args(words).current_dir(files::path(FOLDER));
    run(amtool)
}

#[test]
fn the_configurations_are_valid() -> Result<()> {
    files::promtool(&["check", "config", "../observability/prometheus.yml"])?;
    amtool(&["check-config", "alertmanager.yml"])?;
    for (severity, receiver) in [("page", "on-call"), ("ticket", "tickets"), ("info", "nobody")] {
        let label = format!("severity={severity}");
        let routed =
            amtool(&["config", "routes", "test", "--config.file=alertmanager.yml", &label])?;
        assert_eq!(routed.trim(), receiver, "{severity}");
    }
    Ok(())
}

#[test]
fn a_trouble_becomes_a_mail_with_its_panel_and_its_page() -> Result<()> {
    needs_root!();
    let stage = Stage::start()?;
    let namespace = &stage.pair.server;
    // Each accepts one mail, the first.
    let mail = namespace.run(|| TcpListener::bind("127.0.0.1:25"))??;
    let alertmanager = Alertmanager::start(namespace)?;
    let text = files::read(&format!("{FOLDER}/prometheus.yml"))?;
    let _prometheus = Prometheus::with(
        namespace,
        &text.replace("15s", "1s").replace("../prometheus/", ""),
        stage.pods().len(),
    )?;
    let received = thread::spawn(move || receive(&mail));
    stage.configure("action = \"destroy\"\n")?;
    eventually("a mail", || Ok(received.is_finished()))
        .with_context(|| alertmanager.process.lines().join("\n"))?;
    let (to, mail) = received.join().map_err(|_| anyhow!("the mail server panicked"))??;
    ensure!(to == "tickets@example.com", "the mail went to {to}");
    // Long lines are cut in a mail, with "=" at their ends; "=" itself is "=3D".
    let mail = mail.replace("=\r\n", "").replace("=3D", "=");
    for part in [
        "Subject: firing: WsGuardReloadFailed (1)",
        "host-1 refused its configuration",
        "http://127.0.0.1:3000/d/ws-guard-overview?viewPanel=8&var-instance=host-1",
        "/docs/runbooks/WsGuardReloadFailed.md",
    ] {
        ensure!(mail.contains(part), "no {part:?} in\n{mail}");
    }
    Ok(())
}

/// A server that runs the example, without waiting for more alerts of a group.
struct Alertmanager {
    process: Process,
    _folder: TempDir,
}

impl Alertmanager {
    fn start(namespace: &Namespace) -> Result<Alertmanager> {
        let folder = TempDir::with_prefix("wsg-alertmanager-")?;
        let text = files::read(&format!("{FOLDER}/alertmanager.yml"))?;
        ensure!(text.matches("group_wait: 30s").count() == 1, "the example waits otherwise");
        let config = folder.path().join("alertmanager.yml");
        fs::write(&config, text.replace("group_wait: 30s", "group_wait: 1s"))?;
        let links = files::path(FOLDER).join("links.tmpl");
        fs::copy(links, folder.path().join("links.tmpl"))?;
        let mut command = namespace.command("unshare");
        command.args(["--mount", "sh", "-c", WITH_SHARE]).arg(tools::alertmanager_share());
        command.arg(tools::alertmanager());
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.path={}", folder.path().join("data").display()));
        // Alone, without a cluster.
        command.args(["--web.listen-address=127.0.0.1:9093", "--cluster.listen-address="]);
        let process = Process::spawn("alertmanager", command)?;
        let alertmanager = Alertmanager { process, _folder: folder };
        let ready = || {
            let answer = http::get(namespace, ([127, 0, 0, 1], 9093).into(), "/-/ready");
            Ok(answer.is_ok_and(|(status, _)| status == 200))
        };
        match eventually("Alertmanager is ready", ready) {
            Ok(()) => Ok(alertmanager),
            Err(error) => Err(error.context(alertmanager.process.lines().join("\n"))),
        }
    }
}

/// All three signals through a third-party collector.
#[test]
fn a_collector_takes_what_guard_and_server_say() -> Result<()> {
    needs_root!();
    let stage = Stage::collected()?;
    let namespace = &stage.pair.server;
    // The receivers behind the collector; anything sent before they exist is sent again.
    let example = files::read(&format!("{FOLDER}/rotel.env"))?;
    let variables: Vec<(&str, &str)> =
        example.lines().filter_map(|line| line.split_once('=')).collect();
    let to = variables.iter().find(|(name, _)| *name == "ROTEL_OTLP_EXPORTER_ENDPOINT");
    let to = to.context("no endpoint")?.1.trim_start_matches("http://");
    let behind = Collector::on(namespace.run(|| TcpListener::bind(to))??, None);
    let mut rotel = namespace.command(tools::rotel());
    rotel.arg("start").envs(variables.iter().copied());
    let rotel = Process::spawn("rotel", rotel)?;

    let client = stage.client(0, true)?;
    let traced = || behind.spans("onopen").pop();
    eventually("a span", || Ok(traced().is_some())).with_context(|| rotel.lines().join("\n"))?;
    let listed = stage.connections()?;
    let id = traced().and_then(|span| text(&span.attributes, "connection_id"));
    ensure!(id == Some(listed[0]["id"].to_string()), "{id:?} is not among {listed}");
    eventually("metrics of both", || {
        let one = |name| behind.metric(name, &[]) == 1.0;
        Ok(one("wsguard_up") && one("wsguard_server_opened_total"))
    })?;
    let buckets = || {
        let received = behind.received.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |metric: &&Metric| metric.name == "wsguard_server_handshake_seconds";
        let metric = received.metrics.iter().find(found).cloned();
        let Some(Data::Histogram(histogram)) = metric.and_then(|metric| metric.data) else {
            return 0;
        };
        histogram.data_points.iter().flat_map(|point| &point.bucket_counts).sum()
    };
    eventually("a histogram with the handshake", || Ok(buckets() == 1))?;
    eventually("an event", || {
        let received = behind.received.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(received.logs.iter().any(|record| record.event_name == "flow_opened"))
    })?;
    client.close()?;
    let received = behind.received.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(received.packed && received.resources.iter().all(|name| name == "ws-guard"));
    Ok(())
}

/// Act as a mail server (RFC 5321) for one mail: return its recipient and its text.
fn receive(listener: &TcpListener) -> Result<(String, String)> {
    let (mut stream, _) = listener.accept()?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    stream.write_all(b"220 test ESMTP\r\n")?;
    let (mut to, mut mail) = (String::new(), String::new());
    while let Some(line) = lines.next().transpose()? {
        let word = line.split([' ', ':']).next().unwrap_or_default().to_uppercase();
        let answer = match word.as_str() {
            "RCPT" => {
                to = line.split(['<', '>']).nth(1).context("no recipient")?.to_owned();
                "250 ok"
            }
            "DATA" => {
                stream.write_all(b"354 go on\r\n")?;
                for line in lines.by_ref() {
                    let line = line?;
                    if line == "." {
                        break;
                    }
                    mail += &line;
                    mail += "\r\n";
                }
                "250 ok"
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n")?;
                break;
            }
            _ => "250 ok",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes())?;
    }
    ensure!(!mail.is_empty(), "a connection without a mail");
    Ok((to, mail))
}
