//! Pods of the guard, by node.
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Cluster;

/// Label selector of the guard's pods in the manifests.
const SELECTOR: &str = "app.kubernetes.io/name=ws-guard,app.kubernetes.io/component=guard";

/// A pod in which the guard runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub node: String,
}

impl Cluster {
    /// Build a `kubectl` command for this namespace and context.
    /// `KUBECTL` names another program.
    pub fn kubectl(&self) -> Command {
        let program = std::env::var_os("KUBECTL").unwrap_or("kubectl".into());
        let mut kubectl = Command::new(program);
        kubectl.args(["--namespace", &self.namespace]);
        for (flag, value) in [("--context", &self.context), ("--kubeconfig", &self.kubeconfig)] {
            if let Some(value) = value {
                kubectl.args([flag, value]);
            }
        }
        kubectl
    }
}

/// Return the pods on the named nodes, or on all, and why nodes are missing.
pub fn find(cluster: &Cluster, nodes: &[String]) -> Result<(Vec<Pod>, Vec<String>)> {
    let mut kubectl = cluster.kubectl();
    kubectl.args(["get", "pods", "--selector", SELECTOR, "--output", "json"]);
    let output = kubectl.stdin(Stdio::null()).output().context("running kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl cannot list the guard's pods: {}", said.trim());
    let list: Value = serde_json::from_slice(&output.stdout).context("kubectl's list of pods")?;
    Ok(choose(&list, nodes))
}

fn choose(list: &Value, nodes: &[String]) -> (Vec<Pod>, Vec<String>) {
    let (mut pods, mut missing) = (Vec::new(), Vec::new());
    for item in list["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, node) = (text(&item["metadata"]["name"]), text(&item["spec"]["nodeName"]));
        if !nodes.is_empty() && !nodes.contains(&node) {
            continue;
        }
        // A terminating pod is followed by another on its node.
        if !item["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let containers = item["status"]["containerStatuses"].as_array();
        let runs = containers
            .into_iter()
            .flatten()
            .any(|status| status["name"] == "guard" && status["state"]["running"].is_object());
        if runs {
            pods.push(Pod { name, node });
        } else {
            let phase = text(&item["status"]["phase"]);
            missing.push(format!("{node}: no guard runs in pod {name}, which is {phase}"));
        }
    }
    let unknown = nodes.iter().filter(|node| {
        !pods.iter().any(|pod| pod.node == **node)
            && !missing.iter().any(|reason| reason.starts_with(&format!("{node}:")))
    });
    let unknown: Vec<_> =
        unknown.map(|node| format!("{node}: no pod of the guard is there")).collect();
    missing.extend(unknown);
    pods.sort_by(|one, other| one.node.cmp(&other.node));
    (pods, missing)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list() -> Value {
        let pod = |name: &str, node: &str, state: Value, deleted: Value| {
            json!({
                "metadata": {"name": name, "deletionTimestamp": deleted},
                "spec": {"nodeName": node},
                "status": {"phase": "Pending", "containerStatuses": [{"name": "guard", "state": state}]},
            })
        };
        let running = json!({"running": {}});
        json!({"items": [
            pod("b", "n2", running.clone(), Value::Null),
            pod("a", "n1", running.clone(), Value::Null),
            pod("old", "n1", running, json!("2026-01-01T00:00:00Z")),
            pod("c", "n3", json!({"waiting": {}}), Value::Null),
        ]})
    }

    #[test]
    fn only_running_pods_are_asked_and_the_others_named() {
        let (pods, missing) = choose(&list(), &[]);
        let names: Vec<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(missing, ["n3: no guard runs in pod c, which is Pending"]);
    }

    #[test]
    fn a_node_without_a_pod_is_said() {
        let (pods, missing) = choose(&list(), &["n2".into(), "n9".into()]);
        assert_eq!(pods, [Pod { name: "b".into(), node: "n2".into() }]);
        assert_eq!(missing, ["n9: no pod of the guard is there"]);
    }
}
