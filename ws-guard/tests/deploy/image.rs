//! The image's own binary, in the containers that the manifests describe.
use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    leftovers,
    netns::{Family, INTERFACE, Namespace, Pair, PairOptions},
    servers::{Library, Server},
};

use crate::{
    container::{Container, archive},
    files::{self, find, objects},
    http,
    node::Node,
    stage::eventually,
};

/// The port that the shipped configuration protects.
const PORT: u16 = 8080;
const METRICS: u16 = 9464;
/// Capabilities NET_ADMIN, PERFMON and BPF, as in /proc (linux/capability.h).
const GUARD: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// Skip, loudly, without an image.
macro_rules! needs_image {
    () => {
        if let Err(reason) = archive() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

/// Return a pod's specification from a rendered folder.
fn pod(folder: &str, kind: &str, name: &str) -> Result<Value> {
    Ok(find(&objects(folder)?, kind, name)?["spec"]["template"]["spec"].clone())
}

/// Return the shipped configuration, with the test's interface for a node's.
fn configuration(action: &str) -> Result<String> {
    let text = files::read("deploy/kubernetes/base/guard.toml")?;
    let changed = text.replace("\"eth0\"", &format!("\"{INTERFACE}\""));
    ensure!(changed != text, "the configuration names no eth0");
    Ok(changed.replace("\"observe\"", &format!("\"{action}\"")))
}

/// Run the container `hand-over` to its end, then `guard`, as the kubelet does.
fn start_guard(node: &Node, network: &Namespace) -> Result<Container> {
    let (pod, ip) = (pod("base", "DaemonSet", "ws-guard")?, Family::V4.server().to_string());
    Container::start(&pod, "hand-over", node, network, &ip)?.finish()?;
    ensure!(fs::metadata(&node.pins)?.uid() == 65532, "{} was not given", node.pins.display());
    let guard = Container::start(&pod, "guard", node, network, &ip)?;
    let ready = || Ok(ask(network, "/readyz").is_ok_and(|(status, _)| status == 200));
    match eventually("the guard is ready", ready) {
        Ok(()) => Ok(guard),
        Err(error) => Err(error.context(guard.said())),
    }
}

fn ask(network: &Namespace, path: &str) -> Result<(u16, String)> {
    http::get(network, (Family::V4.server(), METRICS).into(), path)
}

/// Send 50 pings from client number `n`; return the number of pongs.
fn pongs(pair: &Pair, server: &Server, n: u8) -> Result<u64> {
    let options = ConnectOptions { source: Some(Family::V4.client(n)), ..Default::default() };
    let mut client = Client::connect(&pair.client, server.at(Family::V4.server()), options)?;
    let pings: Vec<Frame> = (0..50u8).map(|n| Frame::ping([n])).collect();
    client.send(&pings, &Cut::Whole)?;
    client.send_one(Frame::text("done"))?;
    ensure!(client.wait(Duration::from_secs(10), |received| received.messages == 1), "no echo");
    let pongs = client.received().pongs;
    client.close()?;
    Ok(pongs)
}

#[test]
fn the_guards_pod_protects_reloads_is_replaced_and_removed() -> Result<()> {
    needs_root!();
    needs_image!();
    let pair = Pair::new(PairOptions { clients: 4, ..PairOptions::default() })?;
    let before = leftovers::hooks(&pair.server, INTERFACE)?;
    let node = Node::new()?;
    let unload = Removal { node: &node, network: &pair.server };
    node.config_map("config", "guard.toml", &configuration("observe")?)?;
    let guard = start_guard(&node, &pair.server)?;
    let capabilities = u64::from_str_radix(&guard.status("CapEff")?, 16)?;
    ensure!(capabilities == GUARD, "{capabilities:x}");
    assert_eq!(guard.status("Uid")?, "65532\t65532\t65532\t65532");
    assert_eq!(guard.status("NoNewPrivs")?, "1");
    println!("guard: {}", guard.memory()?);

    let server = Server::start(&pair.server, Library::Python, PORT, None)?;
    assert_eq!(pongs(&pair, &server, 0)?, 50, "it only observes");
    node.config_map("config", "guard.toml", &configuration("defuse")?)?;
    guard.process().wait_for(Duration::from_secs(10), |line| {
        line.contains("reloaded: action: observe → defuse").then_some(())
    })?;
    assert_eq!(pongs(&pair, &server, 1)?, 30, "the limit holds");

    let throttled = guard.exec(&["/ws-guard", "throttled"])?;
    ensure!(throttled.contains(&Family::V4.client(1).to_string()), "{throttled}");
    let doctor = guard.exec(&["/ws-guard", "--pin-dir=/bpf", "doctor"])?;
    ensure!(doctor.contains(" 0 failed"), "{doctor}");

    // Without a daemon, while the pod is replaced, the node stays guarded.
    guard.stop()?;
    assert_eq!(pongs(&pair, &server, 2)?, 30, "the kernel goes on");
    let guard = start_guard(&node, &pair.server)?;
    let (_, metrics) = ask(&pair.server, "/metrics")?;
    ensure!(metrics.contains("wsguard_pings_total 150"), "the counters began anew");
    assert_eq!(pongs(&pair, &server, 3)?, 30);
    guard.stop()?;
    server.stop()?;

    let said = unload.run()?;
    ensure!(said.contains("xdp-native on ingress") || said.contains("removed"), "{said}");
    assert_eq!(leftovers::hooks(&pair.server, INTERFACE)?, before);
    ensure!(fs::read_dir(&node.pins)?.next().is_none(), "pins are left");
    // A second pod for it, as after a restart of the node.
    assert!(unload.run()?.contains("0 objects removed"));
    Ok(())
}

/// Return the process that a daemon in `container` has started.
fn child(container: &Container) -> Result<u32> {
    let mut children = String::new();
    for task in fs::read_dir(format!("/proc/{}/task", container.pid()?))? {
        children += &fs::read_to_string(task?.path().join("children")).unwrap_or_default();
    }
    children.trim().parse().with_context(|| format!("not one child: {children:?}"))
}

/// A guard's pod that also serves.
/// Its server's process has none of the container's capabilities.
#[test]
fn a_guards_pod_that_serves_has_a_process_without_capabilities() -> Result<()> {
    needs_root!();
    needs_image!();
    let pair = Pair::new(PairOptions::default())?;
    let node = Node::new()?;
    let unload = Removal { node: &node, network: &pair.server };
    node.config_map("config", "guard.toml", &configuration("observe")?)?;
    let (mut pod, ip) = (pod("base", "DaemonSet", "ws-guard")?, Family::V4.server().to_string());
    let containers = pod["containers"].as_array_mut().context("no containers")?;
    let guard = containers.iter_mut().find(|container| container["name"] == "guard");
    let args = guard.and_then(|guard| guard["args"].as_array_mut()).context("no args")?;
    args.push(format!("--listen=:{PORT}").into());
    Container::start(&pod, "hand-over", &node, &pair.server, &ip)?.finish()?;
    let guard = Container::start(&pod, "guard", &node, &pair.server, &ip)?;
    let ready = || Ok(ask(&pair.server, "/readyz").is_ok_and(|(status, _)| status == 200));
    eventually("the guard is ready", ready).map_err(|error| error.context(guard.said()))?;

    let at = (Family::V4.server(), PORT).into();
    let mut client = Client::connect(&pair.client, at, ConnectOptions::default())?;
    client.send_one(Frame::text("hello"))?;
    ensure!(client.wait(Duration::from_secs(10), |received| received.messages == 1), "no echo");
    let capabilities = u64::from_str_radix(&guard.status("CapEff")?, 16)?;
    ensure!(capabilities == GUARD, "{capabilities:x}");
    for task in fs::read_dir(format!("/proc/{}/task", child(&guard)?))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Uid:\t65532\t65532\t65532\t65532",
        ] {
            ensure!(status.lines().any(|found| found == line), "{line} is not in {status}");
        }
    }
    client.close()?;
    guard.stop()?;
    unload.run().map(drop)
}

/// The pod that takes the guard out of the kernel; run when dropped at the latest.
struct Removal<'a> {
    node: &'a Node,
    network: &'a Namespace,
}

impl Removal<'_> {
    fn run(&self) -> Result<String> {
        let pod = pod("unload", "DaemonSet", "ws-guard")?;
        let unload = Container::start(&pod, "unload", self.node, self.network, "")?;
        unload.finish()
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        if self.node.pins.exists() {
            let unloaded = self.run();
            // The folder is the node's, which a cluster would keep.
            if let (Err(error), _) | (_, Err(error)) =
                (unloaded, fs::remove_dir(&self.node.pins).map_err(anyhow::Error::from))
            {
                eprintln!("cleaning up: {error:#}");
            }
        }
    }
}

#[test]
fn the_servers_pod_serves_without_any_privilege() -> Result<()> {
    needs_root!();
    needs_image!();
    let pair = Pair::new(PairOptions::default())?;
    let node = Node::new()?;
    let pod = pod("overlays/companion", "Deployment", "ws-guard-server")?;
    let server = Container::start(&pod, "server", &node, &pair.server, "")?;
    let ready = || Ok(ask(&pair.server, "/readyz").is_ok_and(|(status, _)| status == 200));
    eventually("the server is ready", ready).map_err(|error| error.context(server.said()))?;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(server.status(set)?, "0000000000000000", "{set}");
    }
    assert_eq!(server.status("Uid")?, "65532\t65532\t65532\t65532");
    let at = (Family::V4.server(), PORT).into();
    let mut client = Client::connect(&pair.client, at, ConnectOptions::default())?;
    client.send_one(Frame::text("hello"))?;
    ensure!(client.wait(Duration::from_secs(10), |received| received.messages == 1), "no echo");
    client.close()?;
    println!("server: {}", server.memory()?);
    server.stop().map(drop)
}

#[test]
fn the_placeholder_of_the_removal_goes_on() -> Result<()> {
    needs_root!();
    needs_image!();
    let pair = Pair::new(PairOptions::default())?;
    let node = Node::new()?;
    let pod = pod("unload", "DaemonSet", "ws-guard")?;
    let done = Container::start(&pod, "done", &node, &pair.server, "")?;
    done.process().wait_for(Duration::from_secs(10), |line| {
        line.contains("serving WebSocket connections on 127.0.0.1:").then_some(())
    })?;
    done.stop().map(drop)
}
