//! Scenarios on the cluster, and their conditions.
use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ws_guard_testkit::proxies::nginx;

use super::{
    cluster::Cluster,
    companion,
    stage::{FIGURES, Place, Stage},
    traffic::{Clients, flood_clients, flood_during, mixed, pod_clients},
    undo, wait,
};

const INGRESS: u16 = 30080;
pub const LOCAL: u16 = 30081;
const CLUSTER: u16 = 30082;
/// Shipped limit.
pub const LIMIT: u64 = 30;
/// Duration of a flood, longer than the window, so that a second window would show.
const FLOOD: Duration = Duration::from_secs(15);
/// Time limit for the kubelet to write a changed ConfigMap into the pod.
const KUBELET: Duration = Duration::from_secs(180);

type Scenario = fn(&mut Stage) -> Result<()>;

const SCENARIOS: [(&str, Scenario); 12] = [
    ("install", install),
    ("behind an ingress", ingress),
    ("pod to pod", pods),
    ("NodePort, externalTrafficPolicy Local", local),
    ("NodePort, externalTrafficPolicy Cluster", cluster),
    ("threshold, by ConfigMap and by command", threshold),
    ("restarts under a flood", restarts),
    ("metrics", metrics),
    ("companion server, rolled under load", companion::roll),
    ("rollback", undo::rollback),
    ("removal", removal),
    ("kustomize, from installation to removal", undo::kustomize),
];

/// Run the scenarios in order;
/// `only` skips those whose names have none of these parts, except the first.
pub fn run(stage: &mut Stage, only: &[String]) -> Result<()> {
    for (at, (name, scenario)) in SCENARIOS.into_iter().enumerate() {
        if at > 0 && !only.is_empty() && !only.iter().any(|part| name.contains(part)) {
            continue;
        }
        stage.say(&format!("# {name}"));
        scenario(stage).with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn install(stage: &mut Stage) -> Result<()> {
    stage.apply(&include_str!("workload.yaml").replace("@NODE@", stage.cluster.node()))?;
    let echo = stage.service("demo", "echo")?;
    let config = nginx::appending(([0, 0, 0, 0], 8000).into(), (echo, 8080).into());
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "ingress", "namespace": "demo"},
        "data": {"nginx.conf": config},
    });
    stage.apply(&config.to_string())?;
    for workload in ["deployment/echo", "deployment/ingress", "deployment/callers"] {
        stage.rolled_out("demo", workload)?;
    }
    stage.apply(&stage.chart(Place::Pods, &[])?)?;
    let guard = stage.rolled_out("ws-guard", "daemonset/ws-guard")?;
    let server = stage.rolled_out("ws-guard", "deployment/ws-guard-server")?;
    stage.say(&format!(
        "chart applied; DaemonSet ready after {:.0} s, companion server {:.0} s later",
        guard.as_secs_f64(),
        server.as_secs_f64()
    ));
    Ok(())
}

/// Connect honest clients, and a flooder by its number, to a port of the node.
pub fn crowd(
    cluster: &Cluster,
    port: u16,
    honest: u8,
    flooder: u8,
) -> Result<(Clients, Vec<IpAddr>, IpAddr)> {
    let honest: Vec<IpAddr> = (0..honest).map(|n| cluster.client(n)).collect();
    let flooder = cluster.client(flooder);
    let clients = flood_clients(cluster.outside(), cluster.port(port), &honest, flooder)?;
    Ok((clients, honest, flooder))
}

/// Run honest clients and a flooder over one of the paths into the cluster.
pub fn attack(stage: &mut Stage, port: u16, honest: u8, flooder: u8, limit: u64) -> Result<()> {
    let (clients, honest, flooder) = crowd(&stage.cluster, port, honest, flooder)?;
    repelled(stage, clients, &honest, flooder, limit)
}

/// Check that the flooder got the limit's share of answers.
/// Honest clients on its address use some of it up.
fn held(cluster: &Cluster, answered: u64, limit: u64) -> Result<()> {
    let held = if cluster.shares_address() { answered <= limit } else { answered == limit };
    ensure!(held, "{answered} pings were answered, and the limit is {limit}");
    Ok(())
}

/// Check that honest clients notice nothing, and the flooder is limited.
/// Its own address is throttled, and it gets the limit's share of answers.
fn repelled(
    stage: &mut Stage,
    clients: Clients,
    honest: &[IpAddr],
    flooder: IpAddr,
    limit: u64,
) -> Result<()> {
    let (served, flooded) = mixed(clients, FLOOD)?;
    let throttled = stage.throttled()?;
    stage.say(&served.to_string());
    stage.say(&format!(
        "flooder {flooder}: {} of {} pings answered",
        flooded.answered, flooded.pings
    ));
    stage.say(&format!("kubectl ws-guard throttled: {}", throttled.join(", ")));
    ensure!(flooded.pings > 10 * limit, "that was no flood");
    ensure!(served.all_served(), "an honest client noticed the flood");
    held(&stage.cluster, flooded.answered, limit)?;
    let own = flooder.to_string();
    ensure!(throttled.contains(&own), "{own} is not throttled");
    let others = honest.iter().filter(|address| **address != flooder);
    let honest: Vec<String> = others.map(IpAddr::to_string).collect();
    let wrong: Vec<_> = throttled.iter().filter(|source| honest.contains(source)).collect();
    ensure!(wrong.is_empty(), "honest clients are throttled: {wrong:?}");
    Ok(())
}

fn ingress(stage: &mut Stage) -> Result<()> {
    attack(stage, INGRESS, 100, 120, LIMIT)?;
    let table = stage.plugin(&["throttled"])?;
    for line in table.lines() {
        stage.say(line);
    }
    ensure!(table.starts_with("NODE"), "the table has no column NODE");
    Ok(())
}

/// Flood from two pods of the node to a third:
/// the honest clients through the service, the flooder to the server's own address.
fn pods(stage: &mut Stage) -> Result<()> {
    let [honest, flooder] = stage.addresses("callers")?[..] else { bail!("not two callers") };
    let [server] = stage.addresses("echo")?[..] else { bail!("not one server") };
    let service = (stage.service("demo", "echo")?, 8080).into();
    let Some(node) = stage.cluster.own() else {
        stage.say("left out: clients in pods are only made on a node of the test's own");
        return Ok(());
    };
    let (calls, floods) = (node.pod(honest)?, node.pod(flooder)?);
    let clients = pod_clients((&calls, 20), &floods, [service, (server, 8080).into()])?;
    stage.say(&format!("from {honest} to the service, flooder from {flooder} to the pod {server}"));
    repelled(stage, clients, &[honest], flooder, LIMIT)
}

fn local(stage: &mut Stage) -> Result<()> {
    stage.apply(&stage.chart(Place::Uplink, &[])?)?;
    stage.kubectl(&["-n", "ws-guard", "rollout", "restart", "daemonset/ws-guard"])?;
    let time = stage.rolled_out("ws-guard", "daemonset/ws-guard")?;
    stage.say(&format!("guard moved from the pods to the uplink: {:.0} s", time.as_secs_f64()));
    attack(stage, LOCAL, 40, 121, LIMIT)
}

fn cluster(stage: &mut Stage) -> Result<()> {
    attack(stage, CLUSTER, 40, 122, LIMIT)
}

/// Return the limit in force on the node.
fn limit(stage: &Stage) -> Result<Option<u64>> {
    fn find(value: &Value) -> Option<u64> {
        match value {
            Value::Object(object) => object
                .get("max_ping_rate")
                .and_then(Value::as_u64)
                .or_else(|| object.values().find_map(find)),
            Value::Array(array) => array.iter().find_map(find),
            _ => None,
        }
    }
    Ok(find(&stage.plugin_json(&["policy", "get"])?))
}

fn threshold(stage: &mut Stage) -> Result<()> {
    ensure!(limit(stage)? == Some(LIMIT), "the limit is not {LIMIT} at first");
    stage.apply(&stage.chart(Place::Uplink, &["guard.maxPingRate=40"])?)?;
    let time =
        wait("the changed ConfigMap is in force", KUBELET, || Ok(limit(stage)? == Some(40)))?;
    stage.say(&format!("ConfigMap: 40 pings a window in force after {:.0} s", time.as_secs_f64()));
    attack(stage, LOCAL, 5, 123, 40)?;
    stage.plugin(&["policy", "set", "--max-ping-rate", "20"])?;
    ensure!(limit(stage)? == Some(20), "the command changed nothing");
    stage.say("kubectl ws-guard policy set --max-ping-rate 20: in force at once");
    attack(stage, LOCAL, 5, 124, 20)
}

/// Return the pings that the guard has counted for a source.
pub fn counted(stage: &Stage, source: &str) -> Result<u64> {
    let row = stage.source(source)?.with_context(|| format!("{source} is not listed"))?;
    row["pings_total"].as_u64().context("no pings_total")
}

fn restarts(stage: &mut Stage) -> Result<()> {
    // The limit of the file again.
    stage.apply(&stage.chart(Place::Uplink, &[])?)?;
    stage.plugin(&["policy", "set", "--max-ping-rate", "30"])?;
    let (clients, _, flooder) = crowd(&stage.cluster, LOCAL, 20, 125)?;
    let (lines, served, flooded) = flood_during(clients, || disturb(stage, &flooder.to_string()))?;
    for line in lines {
        stage.say(&line);
    }
    stage.say(&served.to_string());
    stage.say(&format!("flooder: {} of {} pings answered", flooded.answered, flooded.pings));
    ensure!(served.all_served(), "an honest client noticed it");
    // The share of the flooder's connection, window after window, where others use up the source's
    // limit.
    if stage.cluster.shares_address() {
        ensure!(flooded.pings > 10 * flooded.answered, "the flood was not held");
        return Ok(());
    }
    held(&stage.cluster, flooded.answered, LIMIT)
}

/// Do everything that replaces or ends the daemon.
/// After each step, the source's counter has grown.
fn disturb(stage: &mut Stage, source: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    wait("the flood is throttled", Duration::from_secs(30), || {
        Ok(stage.throttled()?.iter().any(|throttled| throttled == source))
    })?;
    let mut before = counted(stage, source)?;
    let mut after = |stage: &Stage, what: &str, time: Duration| -> Result<()> {
        let now = counted(stage, source)?;
        lines.push(format!(
            "{what}: daemon back after {:.0} s; counted {before}, then {now}",
            time.as_secs_f64()
        ));
        ensure!(now >= before, "{what}: the counter fell from {before} to {now}");
        before = now;
        Ok(())
    };
    stage.kubectl(&["-n", "ws-guard", "rollout", "restart", "daemonset/ws-guard"])?;
    let time = stage.rolled_out("ws-guard", "daemonset/ws-guard")? + stage.answers()?;
    after(stage, "DaemonSet rolled", time)?;

    let (pod, _) = stage.guard()?;
    stage.kubectl(&["-n", "ws-guard", "delete", "pod", &pod])?;
    let time = stage.rolled_out("ws-guard", "daemonset/ws-guard")? + stage.answers()?;
    after(stage, "pod deleted", time)?;

    let (_, container) = stage.guard()?;
    if let Some(node) = stage.cluster.own() {
        node.kill(&container)?;
        let time = wait("another container is there", Duration::from_secs(120), || {
            Ok(stage.guard()?.1 != container)
        })?;
        let time = time + stage.answers()?;
        after(stage, "daemon killed", time)?;
    }
    if stage.cluster.restart_kubelet()? {
        let time = stage.answers()?;
        after(stage, "kubelet restarted", time)?;
    }
    if stage.cluster.shares_address() {
        lines.push("left out: the daemon is only killed on a node of the test's own".to_owned());
    }
    Ok(lines)
}

fn metrics(stage: &mut Stage) -> Result<()> {
    let url = format!("http://{}/metrics", stage.cluster.port(9464));
    let output = stage.cluster.outside().command("curl").args(["-s", &url]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    for wanted in ["wsguard_ready 1", "wsguard_config_valid 1"] {
        ensure!(text.lines().any(|line| line == wanted), "{url} says no `{wanted}`");
    }
    let names = text.lines().filter(|line| line.starts_with("# TYPE wsguard_")).count();
    stage.say(&format!("{names} metrics scraped; wsguard_ready 1, wsguard_config_valid 1"));
    Ok(())
}

fn removal(stage: &mut Stage) -> Result<()> {
    let before = stage.cluster.own().map(|node| node.leftovers()).transpose()?;
    ensure!(before.as_ref().is_none_or(|before| !before.is_empty()), "nothing was attached");
    unload(stage)?;
    match (before, stage.cluster.own().map(|node| node.leftovers()).transpose()?) {
        (Some(before), Some(after)) => {
            stage.say(&format!("{} {FIGURES} before, {} after", before.len(), after.len()));
            ensure!(after.is_empty(), "left on the node: {after:?}");
        }
        _ => stage.say("the removal's pods are ready: each has unloaded its node"),
    }
    let (clients, ..) = crowd(&stage.cluster, LOCAL, 5, 126)?;
    let served = mixed(clients, Duration::from_secs(3))?;
    ensure!(served.0.all_served(), "the server is not reached any more");
    Ok(())
}

/// Unload the guard on all nodes, and delete its namespace.
fn unload(stage: &Stage) -> Result<()> {
    stage.apply(&stage.chart(Place::Uplink, &["unload=true"])?)?;
    stage.rolled_out("ws-guard", "daemonset/ws-guard")?;
    stage.kubectl(&["delete", "namespace", "ws-guard", "--timeout=120s"]).map(drop)
}

/// Restore a given cluster, whatever has happened.
pub fn clean(stage: &Stage) -> Result<()> {
    let there = |namespace: &str| stage.kubectl(&["get", "namespace", namespace]).is_ok();
    let unloaded = if there("ws-guard") { unload(stage) } else { Ok(()) };
    let deleted = match there("demo") {
        true => stage.kubectl(&["delete", "namespace", "demo", "--timeout=120s"]).map(drop),
        false => Ok(()),
    };
    unloaded.and(deleted)
}
