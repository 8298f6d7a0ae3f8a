//! Debian's Prometheus with the shipped configuration, in a namespace.
//!
//! Debian builds it without the discovery of pods, so its targets are given in the place of
//! `kubernetes_sd_configs`, with the labels that the discovery would give them: what the relabelling
//! makes of them is the shipped configuration's.
use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use ws_guard_testkit::{netns::Namespace, process::Process, tools};

use crate::{
    files::{self, run},
    stage::eventually,
};

const LISTEN: &str = "127.0.0.1:9090";
/// What the targets take the place of.
const DISCOVERY: &str = "kubernetes_sd_configs:\n      - role: pod\n";

/// A pod as the discovery would show it, and as it can be reached.
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

/// The shipped configuration, for these pods, asking each second.
fn configuration(pods: &[Pod]) -> Result<String> {
    let text = files::read("deploy/prometheus/prometheus.yml")?;
    ensure!(text.matches(DISCOVERY).count() == 2, "the shipped configuration has other jobs");
    // Both jobs see all pods, as they would in a cluster.
    let targets: String = pods.iter().map(Pod::target).collect();
    let text = text.replace(DISCOVERY, &format!("static_configs:\n{targets}"));
    Ok(text.replace("15s", "1s"))
}

/// A server that scrapes.
pub struct Prometheus {
    _process: Process,
    namespace: std::path::PathBuf,
    _folder: TempDir,
}

impl Prometheus {
    /// Start it, and wait until it has scraped each pod a few times.
    pub fn start(namespace: &Namespace, pods: &[Pod]) -> Result<Prometheus> {
        let folder = TempDir::with_prefix("wsg-prometheus-")?;
        let config = folder.path().join("prometheus.yml");
        fs::write(&config, configuration(pods)?)?;
        for rules in files::RULES {
            fs::copy(files::path("deploy/prometheus").join(rules), folder.path().join(rules))?;
        }
        files::promtool(&["check", "config", config.to_str().context("a path that is no text")?])?;
        let mut command = namespace.command(tools::prometheus());
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={LISTEN}"));
        let process = Process::spawn("prometheus", command)?;
        let prometheus =
            Prometheus { _process: process, namespace: namespace.path(), _folder: folder };
        let wanted = pods.len();
        let scraped = "count_over_time(up[1m]) > 3";
        let there = || Ok(prometheus.ask(scraped).is_ok_and(|found| found.len() == wanted));
        match eventually("all pods are scraped", there) {
            Ok(()) => Ok(prometheus),
            Err(error) => Err(error.context(prometheus._process.lines().join("\n"))),
        }
    }

    /// What an expression gives now: series, each with its labels in `metric` and its `value`.
    pub fn ask(&self, expr: &str) -> Result<Vec<Value>> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace.display())).arg("--");
        command.arg(tools::promtool()).args(["query", "instant", "-o", "json"]);
        command.arg(format!("http://{LISTEN}")).arg(expr);
        serde_json::from_str(&run(command)?).with_context(|| expr.to_owned())
    }

    /// Whether it gives a number: a quantile of nothing is none.
    pub fn gives_data(&self, expr: &str) -> Result<bool> {
        let number = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|value| value.parse::<f64>().ok());
            value.is_some_and(f64::is_finite)
        };
        Ok(self.ask(expr)?.iter().any(number))
    }
}
