//! Common parts of the scenarios: the node, the commands on it, the transcript.
use std::{
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::tools;

use super::{cluster::Cluster, node::FOLDERS, wait};
use crate::step;

const NAMESPACE: &str = "ws-guard";
/// Description of the count of [`super::node::Node::leftovers`].
pub const FIGURES: &str = "pins and programs on the node";
/// Attach point of the guard.
/// Not both places with ports of the same servers: a packet that passes both would be counted
/// twice.
#[derive(Clone, Copy)]
pub enum Place {
    /// The node's end of each pod's interface, at the servers' own port.
    Pods,
    /// The node's uplink, at the services' node ports.
    Uplink,
}

/// A cluster, and observations on it.
pub struct Stage {
    pub cluster: Cluster,
    transcript: String,
}

impl Stage {
    pub fn new(cluster: Cluster, up: Option<Duration>) -> Result<Stage> {
        let mut plugin = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        plugin.args(["build", "--package", "kubectl-ws-guard"]).current_dir(tools::workspace());
        step::run("building the plug-in", plugin)?;
        let mut stage = Stage { cluster, transcript: String::new() };
        let mut version = stage.cluster.kubectl();
        version.args(["get", "node", stage.cluster.node(), "-o", "jsonpath={.status.nodeInfo.kubeletVersion}, {.status.nodeInfo.containerRuntimeVersion}, Linux {.status.nodeInfo.kernelVersion}"]);
        let version = stdout(version)?;
        stage.say(&match up {
            Some(up) => format!("cluster up in {:.0} s: {version}", up.as_secs_f64()),
            None => format!("given cluster, node {}: {version}", stage.cluster.node()),
        });
        Ok(stage)
    }

    /// Add a line to the transcript.
    pub fn say(&mut self, line: &str) {
        eprintln!("  {line}");
        let _ = writeln!(self.transcript, "{line}");
    }

    pub fn transcript(&self) -> String {
        self.transcript.clone()
    }

    /// Return the output that an operator would look at after a failure.
    pub fn state(&mut self) -> String {
        let mut text = String::new();
        for words in [
            "get pods -A -o wide",
            "-n ws-guard describe pods",
            "-n ws-guard logs -l app.kubernetes.io/component=guard --tail=20",
        ] {
            let mut kubectl = self.cluster.kubectl();
            kubectl.args(words.split(' '));
            let said = stdout(kubectl).unwrap_or_else(|error| format!("{error:#}\n"));
            let lines: Vec<&str> = said.lines().collect();
            let _ = writeln!(
                text,
                "$ kubectl {words}\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
        if let Some(node) = self.cluster.own() {
            let _ = writeln!(text, "kubelet: {}", node.said("kubelet"));
        }
        text
    }

    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut kubectl = self.cluster.kubectl();
        kubectl.args(words);
        stdout(kubectl)
    }

    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.pipe(&["apply"], manifests)
    }

    fn pipe(&self, words: &[&str], manifests: &str) -> Result<()> {
        let mut kubectl = self.cluster.kubectl();
        kubectl.args(words).args(["--filename", "-"]).stdin(Stdio::piped());
        kubectl.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().context("running kubectl")?;
        child.stdin.take().context("no input")?.write_all(manifests.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", words.join(" "), said.trim());
        Ok(())
    }

    /// Render the chart for this node, with more values.
    pub fn chart(&self, place: Place, values: &[&str]) -> Result<String> {
        let mut all = vec!["namespace.create=true", "server.enabled=true"];
        all.push("guard.action=\"defuse\"");
        let (uplink, pods) = (self.cluster.uplink(), self.cluster.pod_interfaces());
        let place = match place {
            Place::Pods => (String::new(), format!("\"{pods}\""), "8080"),
            Place::Uplink => (format!("\"{uplink}\""), String::new(), "30081,30082"),
        };
        let interface = format!("guard.interface=[{}]", place.0);
        let pod_interface = format!("guard.podInterface=[{}]", place.1);
        let port = format!("guard.port=[{}]", place.2);
        all.extend([&*interface, &*pod_interface, &*port]);
        all.extend(values);
        let templates = stdout(tools::helm("render", &all))?;
        let templates: std::collections::BTreeMap<String, String> =
            serde_json::from_str(&templates)?;
        // The namespace before its content.
        let order = |name: &String| (name != "namespace.yaml", name.clone());
        let mut templates: Vec<_> =
            templates.into_iter().filter(|(name, _)| name != "NOTES.txt").collect();
        templates.sort_by_key(|(name, _)| order(name));
        let text: String =
            templates.into_iter().map(|(_, text)| format!("---\n{text}\n")).collect();
        self.placed(&text, ["{path: ", ","])
    }

    /// Replace the folders in manifests by those of the test's own node;
    /// the text around their names identifies them.
    pub fn placed(&self, manifests: &str, [before, after]: [&str; 2]) -> Result<String> {
        let mut text = manifests.to_owned();
        if let Cluster::Own(_) = self.cluster {
            for (named, here) in FOLDERS {
                let around = |folder| format!("{before}{folder}{after}");
                text = text.replace(&around(named), &around(here));
            }
            ensure!(FOLDERS.iter().any(|(_, here)| text.contains(here)), "no folder of the node");
        }
        Ok(text)
    }

    /// Delete the objects of these manifests.
    pub fn delete(&self, manifests: &str) -> Result<()> {
        self.pipe(&["delete", "--ignore-not-found", "--timeout=120s"], manifests)
    }

    pub fn rolled_out(&self, namespace: &str, workload: &str) -> Result<Duration> {
        let start = Instant::now();
        self.kubectl(&["-n", namespace, "rollout", "status", workload, "--timeout=180s"])?;
        Ok(start.elapsed())
    }

    /// Run `kubectl ws-guard` as a user does: kubectl finds the plug-in by its name.
    pub fn plugin(&self, words: &[&str]) -> Result<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut kubectl = self.cluster.command("kubectl");
        kubectl.arg("ws-guard");
        if let Some(file) = self.cluster.kubeconfig() {
            kubectl.arg("--kubeconfig").arg(file);
        }
        kubectl.args(["--node", self.cluster.node()]).args(words);
        kubectl.env("PATH", format!("{}:{path}", tools::target().join("debug").display()));
        stdout(kubectl)
    }

    pub fn plugin_json(&self, words: &[&str]) -> Result<Value> {
        let text = self.plugin(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Return the row of a source, as the plug-in lists it.
    pub fn source(&self, address: &str) -> Result<Option<Value>> {
        let all = self.plugin_json(&["sources"])?;
        let mut rows = all.as_array().into_iter().flatten();
        Ok(rows.find(|row| row["source"] == address).cloned())
    }

    /// Return the sources that are throttled now.
    pub fn throttled(&self) -> Result<Vec<String>> {
        let all = self.plugin_json(&["throttled"])?;
        let rows = all.as_array().into_iter().flatten();
        Ok(rows.filter_map(|row| row["source"].as_str().map(str::to_owned)).collect())
    }

    /// Return the guard's pod, and its container's name for the runtime.
    pub fn guard(&self) -> Result<(String, String)> {
        let text = self.kubectl(&[
            "-n",
            NAMESPACE,
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/component=guard",
            "-o",
            "json",
        ])?;
        let pods: Value = serde_json::from_str(&text)?;
        let pod = pods["items"].as_array().into_iter().flatten().find(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null()
                && pod["spec"]["nodeName"] == self.cluster.node()
        });
        let pod = pod.context("there is no pod of the guard")?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
        Ok((name.to_owned(), id.trim_start_matches("containerd://").to_owned()))
    }

    /// Return the address of a service inside the cluster.
    pub fn service(&self, namespace: &str, name: &str) -> Result<IpAddr> {
        let path = "jsonpath={.spec.clusterIP}";
        let text = self.kubectl(&["-n", namespace, "get", "service", name, "-o", path])?;
        text.parse().with_context(|| format!("the address of the service {name}: {text:?}"))
    }

    /// Return the addresses of an application's pods among the workloads, in order.
    pub fn addresses(&self, app: &str) -> Result<Vec<IpAddr>> {
        let label = format!("app={app}");
        let path = "jsonpath={.items[*].status.podIP}";
        let text = self.kubectl(&["-n", "demo", "get", "pods", "-l", &label, "-o", path])?;
        let parsed: Result<Vec<IpAddr>, _> = text.split_whitespace().map(str::parse).collect();
        let mut addresses = parsed.with_context(|| format!("no addresses: {text}"))?;
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Wait until the daemon answers again, as the plug-in sees it.
    pub fn answers(&self) -> Result<Duration> {
        wait("the guard answers", Duration::from_secs(120), || {
            Ok(self.plugin(&["policy", "get"]).is_ok())
        })
    }
}

/// Return a command's output; an error if it fails.
pub fn stdout(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
