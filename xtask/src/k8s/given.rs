//! A cluster of its operator, named by `KUBECONFIG`.
//! Clients are on this machine, and share its address; steps that need access to the node itself
//! are left out, and the transcript says so.
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ws_guard_testkit::netns::Namespace;

use super::{images, stage::stdout};
use crate::{image, step};

/// Options for a given cluster.
#[derive(clap::Args)]
pub struct Options {
    /// Run in the cluster of KUBECONFIG, having read what that does there
    #[arg(long)]
    in_given_cluster: bool,
    /// There: command that restarts the kubelet of the node in the environment variable NODE, as
    /// `ssh $NODE systemctl restart kubelet`; without it, none is restarted
    #[arg(long, value_name = "COMMAND")]
    restart_kubelet: Option<String>,
    /// There: node that everything is done on [default: the first that is ready]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// There: the nodes' uplink
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    uplink: String,
    /// There: the nodes' ends of the pods' interfaces
    #[arg(long, value_name = "PATTERN", default_value = "cali*")]
    pod_interfaces: String,
}

/// Return the environment's cluster file or files, if any; kubectl reads them.
pub fn kubeconfig() -> Option<String> {
    std::env::var("KUBECONFIG").ok().filter(|files| !files.is_empty())
}

pub struct Given {
    kubeconfig: String,
    node: String,
    address: IpAddr,
    /// Address of this machine, as the node sees it.
    own: IpAddr,
    here: Namespace,
    pub uplink: String,
    pub pod_interfaces: String,
    restart_kubelet: Option<String>,
}

impl Given {
    /// Inspect it, and change nothing.
    /// An error unless that was requested: then only the plan is shown.
    pub fn new(kubeconfig: String, options: Options) -> Result<Given> {
        let nodes = stdout(kubectl(&["get", "nodes", "--output", "json"]))?;
        let nodes: Value = serde_json::from_str(&nodes)?;
        let (node, address) = choose(&nodes, options.node.as_deref())?;
        let given = Given {
            own: own_address(address)?,
            here: Namespace::borrow("/proc/self/ns/net"),
            uplink: options.uplink,
            pod_interfaces: options.pod_interfaces,
            restart_kubelet: options.restart_kubelet,
            kubeconfig,
            node,
            address,
        };
        let count = nodes["items"].as_array().map_or(0, Vec::len);
        eprintln!("{}", given.plan(count));
        ensure!(
            options.in_given_cluster,
            "nothing was done: pass --in-given-cluster to do this in the cluster of {}, or unset \
             KUBECONFIG for a cluster of the test's own",
            given.kubeconfig
        );
        for namespace in ["demo", "ws-guard"] {
            let found = kubectl(&["get", "namespace", namespace, "--output=name"]).output()?;
            ensure!(
                !found.status.success(),
                "nothing was done: the cluster has a namespace {namespace}, and the test would \
                 delete it at its end"
            );
        }
        Ok(given)
    }

    /// Describe the planned changes, for the cluster's operators.
    fn plan(&self, nodes: usize) -> String {
        let Given { kubeconfig, node, address, own, uplink, pod_interfaces, .. } = self;
        let kubelet = match &self.restart_kubelet {
            Some(command) => format!("restarts the kubelet of {node} once: `{command}`"),
            None => "restarts no kubelet (--restart-kubelet COMMAND)".to_owned(),
        };
        let archives: Vec<String> =
            archives().iter().map(|path| format!("    {}", path.display())).collect();
        format!(
            "In the cluster of {}, the test\n\
             - makes the namespaces demo and ws-guard, and deletes them at its end, also after a \
             failure;\n\
             - attaches the guard on each node ({nodes}), first at {pod_interfaces}, then at {uplink}, \
             port 30081 and 30082, and unloads it at its end;\n\
             - opens the node ports 30080 to 30083, and floods the first three with pings from here \
             ({own}) to {node} ({address}), 15 s each time;\n\
             - rolls the DaemonSet and deletes its pod on {node} under a flood;\n\
             - {kubelet}.\n\
             The nodes must have these images already (`ctr --namespace k8s.io images import FILE`):\n{}",
            kubeconfig,
            archives.join("\n")
        )
    }

    pub fn node(&self) -> (&str, IpAddr) {
        (&self.node, self.address)
    }

    pub fn own(&self) -> IpAddr {
        self.own
    }

    /// Return this machine's own namespace.
    pub fn here(&self) -> &Namespace {
        &self.here
    }

    /// Restart the kubelet; return whether there was a command for it.
    pub fn restart_kubelet(&self) -> Result<bool> {
        let Some(command) = &self.restart_kubelet else { return Ok(false) };
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("NODE", &self.node);
        step::run("restarting the kubelet", shell)?;
        Ok(true)
    }
}

/// Return the archives to be imported on the nodes before.
fn archives() -> Vec<PathBuf> {
    let mut archives = images::archives();
    archives.push(image::last_for_tests());
    archives
}

fn kubectl(words: &[&str]) -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(words);
    kubectl
}

/// Return the node of this name, or the first ready one, and its address.
fn choose(nodes: &Value, named: Option<&str>) -> Result<(String, IpAddr)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let is_ready = |node: &Value| {
        let conditions = list(&node["status"]["conditions"]);
        conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    for node in list(&nodes["items"]) {
        let name = node["metadata"]["name"].as_str().context("a node without a name")?;
        if !is_ready(&node) || named.is_some_and(|named| named != name) {
            continue;
        }
        let addresses = list(&node["status"]["addresses"]);
        let internal = addresses.iter().find(|one| one["type"] == "InternalIP");
        let address = internal.and_then(|one| one["address"].as_str());
        let address = address.with_context(|| format!("{name} has no internal address"))?;
        return Ok((name.to_owned(), address.parse().with_context(|| address.to_owned())?));
    }
    match named {
        Some(name) => bail!("the cluster has no node {name} that is ready"),
        None => bail!("no node of the cluster is ready"),
    }
}

/// Return this machine's address on the route to another; nothing is sent for that.
fn own_address(to: IpAddr) -> Result<IpAddr> {
    let any: SocketAddr = match to {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect((to, 9)).with_context(|| format!("there is no way from here to {to}"))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: &str, address: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": ready}],
                "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}],
            },
        })
    }

    #[test]
    fn the_first_ready_node_or_the_named_one() {
        let nodes = json!({"items": [
            node("a", "False", "10.0.0.1"),
            node("b", "True", "10.0.0.2"),
            node("c", "True", "fd00::3"),
        ]});
        let chosen = |named| choose(&nodes, named).map_err(|error| error.to_string());
        assert_eq!(chosen(None), Ok(("b".into(), [10, 0, 0, 2].into())));
        assert_eq!(chosen(Some("c")), Ok(("c".into(), "fd00::3".parse().expect("an address"))));
        assert_eq!(chosen(Some("a")), Err("the cluster has no node a that is ready".into()));
        let none = choose(&json!({}), None).map_err(|error| error.to_string());
        assert_eq!(none, Err("no node of the cluster is ready".into()));
    }

    #[test]
    fn an_address_on_the_way_to_itself() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(own_address(loopback).ok(), Some(loopback));
    }
}
