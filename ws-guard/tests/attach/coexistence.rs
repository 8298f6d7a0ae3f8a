//! Coexistence with other programs, on every hook that we share with them.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::programs::{LinkOrder, TcAttachType};
use aya_obj::generated::bpf_prog_type;
use serde_json::Value;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    frame::{Frame, encode},
    netns::{Family, INTERFACE, PairOptions},
    node::Node,
    servers::{Library, Server},
};

use crate::{
    foreign::{OnTcx, Small},
    guard::{Guard, PORT, eventually},
    inspection::NOTICE,
};

/// Address of the guard's metrics, in the node's namespace.
const METRICS: &str = "127.0.0.1:9464";

const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;
const TCX_NEXT: i32 = -1;
const XDP_PASS: i32 = 2;
const HOOKS: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];
/// The interface, and its attachment with TCX on both sides.
const PLACES: [(&str, &str); 2] =
    [("cali0", "--pod-interface cali*"), (INTERFACE, "--interface veth0 --attach tcx")];

/// Set up a node with one pod, and a server in it.
fn node() -> Result<(Node, Server)> {
    let node = Node::new(1, PairOptions { clients: 3, ..PairOptions::default() })?;
    let server = Server::start(&node.pods[0].namespace, Library::TokioTungstenite, PORT, None)?;
    Ok((node, server))
}

fn connect(node: &Node, client: u8) -> Result<Client> {
    let at = SocketAddr::new(node.pods[0].address(Family::V4), PORT);
    let source = Some(Family::V4.client(client));
    Client::connect(&node.pair.client, at, ConnectOptions { source, ..ConnectOptions::default() })
}

/// Send 40 pings on a new connection; return its row in `flows`.
fn pings(node: &Node, guard: &Guard, client: u8) -> Result<Value> {
    let (row, taken) = try_pings(node, guard, client, Duration::from_secs(20))?;
    ensure!(taken, "the server has not taken all: {row}");
    Ok(row)
}

/// Send [`pings`]; the row is null where the guard has not seen the connection.
/// Also return whether the server has taken them in time.
fn try_pings(node: &Node, guard: &Guard, client: u8, time: Duration) -> Result<(Value, bool)> {
    let mut client = connect(node, client)?;
    client.write_segment(&encode(&vec![Frame::ping(""); 40]))?;
    let taken = client.drain(time);
    let name = client.local().to_string();
    let flows = guard.ask("flows")?;
    let found = flows.as_array().and_then(|rows| rows.iter().find(|row| row["client"] == name));
    Ok((found.cloned().unwrap_or_default(), taken))
}

/// Check that 30 of 40 pings passed, which is the limit.
fn is_guarded(flow: &Value) -> bool {
    flow["frames_in"] == 40 && flow["defused"] == 10 && flow["unsynced_total"] == 0
}

/// Programs attached first with TC_ACT_OK, which ends the chain, come after us.
#[test]
fn others_that_were_first_are_passed() -> Result<()> {
    needs_root!();
    let (node, server) = node()?;
    for (interface, words) in PLACES {
        let on = |hook, verdict| {
            OnTcx::attach(node.namespace(), interface, hook, LinkOrder::first(), verdict)
        };
        let theirs = [on(HOOKS[0], TC_ACT_OK)?, on(HOOKS[1], TC_ACT_OK)?];
        let guard = Guard::start(node.namespace(), words)?;
        let flow = pings(&node, &guard, 0)?;
        ensure!(is_guarded(&flow), "{words}: {flow}");
        ensure!(!guard.log().contains("comes before"), "{}", guard.log());
        drop(theirs);
        guard.finish()?;
    }
    server.stop().map(drop)
}

/// Packets that we pass go on to the next program, which may drop them.
#[test]
fn the_next_program_decides() -> Result<()> {
    needs_root!();
    let (node, server) = node()?;
    for (interface, words) in PLACES {
        let guard = Guard::start(node.namespace(), words)?;
        for hook in HOOKS {
            let on = |verdict| {
                OnTcx::attach(node.namespace(), interface, hook, LinkOrder::last(), verdict)
            };
            let accepts = on(TC_ACT_OK)?;
            let flow = pings(&node, &guard, 0)?;
            ensure!(flow["frames_in"] == 40, "{words}, {hook:?}: {flow}");
            drop(accepts);
            let mut there = connect(&node, 1)?;
            let drops = on(TC_ACT_SHOT)?;
            there.send_one(Frame::text("lost, until it may pass"))?;
            ensure!(
                !there.wait(Duration::from_millis(600), |got| got.messages > 0),
                "{words}, {hook:?}: it was not asked"
            );
            drop(drops);
            ensure!(there.wait(Duration::from_secs(10), |got| got.messages == 1), "not sent again");
        }
        guard.finish()?;
    }
    server.stop().map(drop)
}

/// Programs attached at the head later come before us.
/// With TCX_NEXT that does no harm; packets that such a program accepts by itself we cannot see,
/// and say so.
#[test]
fn programs_before_the_guard_are_named() -> Result<()> {
    needs_root!();
    let (node, server) = node()?;
    for (interface, words) in PLACES {
        for hook in HOOKS {
            let words = &format!("{words} --metrics-listen {METRICS}");
            let guard = Guard::start(node.namespace(), words)?;
            let on = |verdict| {
                OnTcx::attach(node.namespace(), interface, hook, LinkOrder::first(), verdict)
            };
            ensure!(before(&node)? == 0, "{words}, {hook:?}: a program before the guard");
            let passes = on(TCX_NEXT)?;
            let flow = pings(&node, &guard, 0)?;
            ensure!(is_guarded(&flow), "{words}, {hook:?}: {flow}");
            drop(passes);
            eventually("it is gone", || Ok(before(&node)? == 0))?;
            // The earlier program may have been named too.
            let named = || {
                guard.log().matches(&format!("of {interface}: what it accepts by itself")).count()
            };
            let earlier = named();
            let (accepts, attached) = (on(TC_ACT_OK)?, Instant::now());
            eventually("it is named", || Ok(named() > earlier))?;
            let noticed = attached.elapsed();
            ensure!(noticed < NOTICE, "{words}, {hook:?}: named after {noticed:?}");
            ensure!(before(&node)? == 1, "{words}, {hook:?}: no metric of it");
            let doctor = guard.ask("doctor")?;
            let precedence = check(&doctor, "precedence")?;
            ensure!(precedence["verdict"] == "warn", "{words}, {hook:?}: {precedence}");
            let (flow, _) = try_pings(&node, &guard, 1, Duration::from_secs(1))?;
            ensure!(!is_guarded(&flow), "{words}, {hook:?}: then the warning is wrong: {flow}");
            drop(accepts);
            eventually("it is gone", || Ok(before(&node)? == 0))?;
            guard.finish()?;
        }
    }
    server.stop().map(drop)
}

/// Return the number of hooks with a program before the guard's, from the metrics.
fn before(node: &Node) -> Result<usize> {
    let url = format!("http://{METRICS}/metrics");
    let output = node.namespace().command("curl").args(["-s", &url]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let of = |line: &&str| line.starts_with("wsguard_programs_before{");
    ensure!(text.lines().any(|line| of(&line)), "no such metric:\n{text}");
    Ok(text.lines().filter(of).filter(|line| line.ends_with(" 1")).count())
}

/// Return one check of `doctor`.
fn check<'a>(doctor: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = doctor.as_array().context("no checks")?;
    checks
        .iter()
        .find(|check| check["check"] == name)
        .with_context(|| format!("no {name}: {doctor}"))
}

/// Other XDP programs stay; on a pod's interface we do not want the place anyway.
#[test]
fn next_to_xdp_programs() -> Result<()> {
    needs_root!();
    let (node, server) = node()?;
    let theirs = Small::constant(bpf_prog_type::BPF_PROG_TYPE_XDP, XDP_PASS)?;
    for interface in ["cali0", INTERFACE] {
        let mut command = node.namespace().command("ip");
        command.args(["link", "set", "dev", interface, "xdp", "pinned", theirs.path()]);
        ensure!(command.status()?.success(), "{interface} takes no XDP program");
    }
    let xdp = || -> Result<usize> {
        let output = node.namespace().command("ip").args(["-d", "link", "show"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).matches("prog/xdp").count())
    };
    ensure!(xdp()? == 2, "they are not shown");
    for words in ["--interface veth0 --pod-interface cali*", "--interface veth0"] {
        let guard = Guard::start(node.namespace(), words)?;
        let uplink = guard.interface(INTERFACE)?.unwrap_or_default();
        ensure!(
            (&uplink["ingress"], &uplink["role"]) == (&"tcx".into(), &"uplink".into()),
            "{uplink}"
        );
        let flow = pings(&node, &guard, 0)?;
        ensure!(is_guarded(&flow), "{words}: {flow}");
        guard.finish()?;
        ensure!(xdp()? == 2, "they were removed");
    }
    server.stop().map(drop)
}

/// Filters on the clsact qdisc, one that accepts and one that drops:
/// TCX comes before them, our filters come first among filters, and packets that we pass go on to
/// them.
#[test]
fn next_to_clsact_filters() -> Result<()> {
    needs_root!();
    let (node, server) = node()?;
    let theirs = |verdict| Small::constant(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, verdict);
    let (accepts, drops) = (theirs(TC_ACT_OK)?, theirs(TC_ACT_SHOT)?);
    for (interface, words) in PLACES {
        let filter = |verb: &str, hook: &str, program: &Small| {
            let place = format!("dev {interface} {hook} prio 10 handle 1");
            tc(&node, &format!("filter {verb} {place} bpf da pinned {}", program.path()))
        };
        tc(&node, &format!("qdisc add dev {interface} clsact"))?;
        for attach in ["tcx", "clsact"] {
            for hook in ["ingress", "egress"] {
                filter("replace", hook, &accepts)?;
            }
            let words = words.replace(" --attach tcx", "");
            let guard = Guard::start(node.namespace(), &format!("{words} --attach {attach}"))?;
            let flow = pings(&node, &guard, 0)?;
            ensure!(is_guarded(&flow), "{words} {attach}: {flow}");
            for hook in ["ingress", "egress"] {
                let mut there = connect(&node, 1)?;
                filter("replace", hook, &drops)?;
                there.send_one(Frame::text("lost, until it may pass"))?;
                ensure!(
                    !there.wait(Duration::from_millis(600), |got| got.messages > 0),
                    "{words} {attach}, {hook}: it was not asked"
                );
                filter("replace", hook, &accepts)?;
                ensure!(there.wait(Duration::from_secs(10), |got| got.messages == 1), "{hook}");
            }
            guard.finish()?;
            for hook in ["ingress", "egress"] {
                let left = tc(&node, &format!("filter show dev {interface} {hook}"))?;
                ensure!(!left.contains("ws_guard") && left.contains("pref 10"), "{left}");
            }
        }
    }
    server.stop().map(drop)
}

fn tc(node: &Node, words: &str) -> Result<String> {
    let output = node.namespace().command("tc").args(words.split_whitespace()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {words}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A CNI plugin that hands packets from the uplink directly to the pod.
/// It goes past the host's side of its interface (bpf_redirect_peer): our program for clients'
/// packets there sees none of them, and the uplink's has to follow them although the answers pass
/// the pod's interface first.
#[test]
fn a_plugin_goes_past_the_pods_interface() -> Result<()> {
    needs_root!();
    let (node, server) = node()?;
    let (uplink, client) = (node.namespace(), &node.pair.client);
    // Everything is redirected, ARP too.
    for (from, to, address) in
        [(client, uplink, Family::V4.server()), (uplink, client, Family::V4.client(0))]
    {
        let mac = to.mac(INTERFACE)?.map(|byte| format!("{byte:02x}")).join(":");
        from.ip(&format!("neigh replace {address} lladdr {mac} nud permanent dev {INTERFACE}"))?;
    }
    let guard = Guard::start(uplink, "--interface veth0 --pod-interface cali* --attach tcx")?;
    let index = uplink.run(|| nix::net::if_::if_nametoindex("cali0"))??;
    let plugin = Small::redirect_peer(index)?;
    let (hook, last) = (TcAttachType::Ingress, LinkOrder::last());
    let _plugin = OnTcx::attach_program(uplink, INTERFACE, hook, last, plugin)?;
    let flow = pings(&node, &guard, 0)?;
    ensure!(is_guarded(&flow), "{flow}");
    guard.finish()?;
    let totals = server.stop()?;
    ensure!((totals.pings, totals.pongs) == (30, 10), "{totals:?}");
    Ok(())
}
