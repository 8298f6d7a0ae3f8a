//! Debian's Prometheus with the shipped configuration, in a namespace.
//!
//! Debian builds it without pod discovery, so its targets replace `kubernetes_sd_configs`, with the
//! labels that the discovery would give them: the relabelling is the shipped configuration's.
use std::{fs, net::SocketAddr, time::SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use ws_guard_testkit::{netns::Namespace, process::Process, tools};

use crate::{files, http, stage::eventually};

const LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 9090);
/// Configuration that the targets replace.
const DISCOVERY: &str = "kubernetes_sd_configs:\n      - role: pod\n";

/// A pod as the discovery would show it, and its address.
pub struct Pod {
    /// Its label `app.kubernetes.io/component`.
    pub component: &'static str,
    pub name: &'static str,
    pub node: &'static str,
    pub address: String,
}

impl Pod {
    fn target(&self) -> String {
        format!(
            "      - targets: [\"{}\"]
        labels:
          __meta_kubernetes_pod_label_app_kubernetes_io_name: ws-guard
          __meta_kubernetes_pod_label_app_kubernetes_io_component: {}
          __meta_kubernetes_pod_container_port_name: metrics
          __meta_kubernetes_pod_name: {}
          __meta_kubernetes_pod_node_name: {}\n",
            self.address, self.component, self.name, self.node
        )
    }
}

/// Return the shipped configuration, for these pods, with a scrape each second.
fn configuration(pods: &[Pod]) -> Result<String> {
    let text = files::read("deploy/prometheus/prometheus.yml")?;
    ensure!(text.matches(DISCOVERY).count() == 2, "the shipped configuration has other jobs");
    // Both jobs see all pods, as they would in a cluster.
    let targets: String = pods.iter().map(Pod::target).collect();
    let text = text.replace(DISCOVERY, &format!("static_configs:\n{targets}"));
    Ok(text.replace("15s", "1s"))
}

/// Labels, and values by time.
pub struct Series {
    pub labels: Value,
    pub points: Vec<(f64, f64)>,
}

/// A server that scrapes.
pub struct Prometheus<'a> {
    _process: Process,
    namespace: &'a Namespace,
    _folder: TempDir,
}

impl<'a> Prometheus<'a> {
    /// Start it for these pods, and wait until it has scraped each a few times.
    pub fn start(namespace: &'a Namespace, pods: &[Pod]) -> Result<Self> {
        Prometheus::with(namespace, &configuration(pods)?, pods.len())
    }

    /// Start it with a configuration next to the rules; wait for `wanted` targets.
    pub fn with(namespace: &'a Namespace, text: &str, wanted: usize) -> Result<Self> {
        let folder = TempDir::with_prefix("wsg-prometheus-")?;
        let config = folder.path().join("prometheus.yml");
        fs::write(&config, text)?;
        for rules in files::RULES {
            fs::copy(files::path("deploy/prometheus").join(rules), folder.path().join(rules))?;
        }
        files::promtool(&["check", "config", config.to_str().context("a path that is no text")?])?;
        let mut command = namespace.command(tools::prometheus());
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={}", SocketAddr::from(LISTEN)));
        command.arg("--enable-feature=exemplar-storage");
        let process = Process::spawn("prometheus", command)?;
        let prometheus = Prometheus { _process: process, namespace, _folder: folder };
        let scraped = "count_over_time(up[1m]) > 3";
        let there = || Ok(prometheus.ask(scraped).is_ok_and(|found| found.len() == wanted));
        match eventually("all pods are scraped", there) {
            Ok(()) => Ok(prometheus),
            Err(error) => Err(error.context(prometheus._process.lines().join("\n"))),
        }
    }

    /// Evaluate an expression now: series with labels in `metric`, and a `value`.
    pub fn ask(&self, expr: &str) -> Result<Vec<Value>> {
        match self.answer("query?", expr)?["result"].take() {
            Value::Array(series) => Ok(series),
            other => bail!("{expr} gives {other}"),
        }
    }

    /// Return the labels of all exemplars of the series that an expression names.
    pub fn exemplars(&self, expr: &str) -> Result<Vec<Value>> {
        let series = self.answer("query_exemplars?start=0&end=9999999999&", expr)?;
        let of_series = |series: &Value| series["exemplars"].as_array().cloned();
        let exemplars = series.as_array().into_iter().flatten().filter_map(of_series).flatten();
        Ok(exemplars.map(|exemplar| exemplar["labels"].clone()).collect())
    }

    /// Evaluate it over the last minute.
    pub fn range(&self, expr: &str) -> Result<Vec<Series>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let question = format!("query_range?start={}&end={now}&step=1&", now - 60);
        let found = self.answer(&question, expr)?["result"].take();
        let point = |point: &Value| Some((point[0].as_f64()?, point[1].as_str()?.parse().ok()?));
        let series = |series: &Value| Series {
            labels: series["metric"].clone(),
            points: series["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(point)
                .filter(|(_, value): &(f64, f64)| value.is_finite())
                .collect(),
        };
        Ok(found.as_array().into_iter().flatten().map(series).collect())
    }

    fn answer(&self, question: &str, expr: &str) -> Result<Value> {
        let query: String = expr.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/{question}query={query}");
        let (status, answer) = http::get(self.namespace, LISTEN.into(), &path)?;
        ensure!(status == 200, "{expr}: {answer}");
        let mut answer: Value = serde_json::from_str(&answer).with_context(|| expr.to_owned())?;
        Ok(answer["data"].take())
    }

    /// Check whether it gives a number: a quantile of nothing is none.
    pub fn gives_data(&self, expr: &str) -> Result<bool> {
        let number = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|value| value.parse::<f64>().ok());
            value.is_some_and(f64::is_finite)
        };
        Ok(self.ask(expr)?.iter().any(number))
    }
}
