//! Redis that is more than one server: Sentinels that name another primary, and a cluster.

use std::time::Instant;

use serde_json::json;

use super::{
    faults::insist,
    redis::{Ask, Line, Redis},
    stage::{Stage, wait_for},
};

/// Wait until a replica has found its primary.
fn linked(replica: &Redis) {
    let up = || (info(replica, "master_link_status") == "up").then_some(());
    assert!(wait_for(up).is_some());
}

/// Wait until a replica has all that its primary has.
fn copied(primary: &Redis, replica: &Redis) {
    let has = || {
        let offset = info(primary, "master_repl_offset");
        let same = offset == info(replica, "slave_repl_offset");
        (same && !offset.is_empty()).then_some(())
    };
    assert!(wait_for(has).is_some());
}

/// A field of what a Redis says about replication; nothing where Sentinels cut the connection, as they
/// do when they change a server's role.
fn info(redis: &Redis, field: &str) -> String {
    let info: String = redis.try_ask(&["INFO", "replication"]).unwrap_or_default();
    let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_default().to_owned()
}

#[test]
fn sentinels_name_another_primary_and_clients_go_on_there() {
    let mut primary = Redis::start(&[]);
    let port = primary.port.to_string();
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &port]);
    linked(&replica);
    let sentinel = Redis::sentinel("main", primary.port, None);
    let knows = || {
        let replicas: Vec<redis::Value> = sentinel.ask(&["SENTINEL", "REPLICAS", "main"]);
        (!replicas.is_empty()).then_some(())
    };
    assert!(wait_for(knows).is_some());
    // One that is not there is passed over.
    let url = format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{}/main", sentinel.port);
    let stage = Stage::start_at("server-sentinel", &url, 0);
    let mut client = stage.client();
    client.subscribe("chat");
    client.publish("chat", json!(1));
    let first = client.expect(json!(1));
    copied(&primary, &replica);
    primary.kill();
    let killed = Instant::now();
    let (second, refusals) = insist(&mut client, "chat", json!(2), "k");
    println!("published again {:?} after the primary was killed", killed.elapsed());
    assert!(refusals.iter().all(|refusal| refusal["status"] == 503), "{refusals:?}");
    // Offsets go on, in another epoch; the client has both without being told to begin anew.
    assert_eq!(second["offset"], 2);
    assert_ne!(second["epoch"], first["epoch"]);
    client.expect(json!(2));
    assert_eq!(stage.client().since("chat", &first)["recovered"], true);
    // The former primary comes back as a replica, and is not taken for the primary.
    primary.again();
    let demoted = || (info(&primary, "role") == "slave").then_some(());
    assert!(wait_for(demoted).is_some());
    assert_eq!(client.publish("chat", json!(3))["offset"], 3);
    client.expect(json!(3));
}

/// It pushes what its primary sends it: late, and nothing where it lacks one.
#[test]
fn a_primary_that_becomes_a_replica_is_left_at_once() {
    let (first, second) = (Redis::start(&[]), Redis::start(&[]));
    let line = Line::to(first.port);
    let stage = Stage::start(line.address.port());
    let mut client = stage.client();
    client.subscribe("chat");
    client.publish("chat", json!(0));
    client.expect(json!(0));
    // Nothing is left to be saved, which would be refused.
    let saved = || {
        let saved: Vec<String> = first.ask(&["HVALS", "cluster:test:ws:delivered:{chat}"]);
        saved.first()?.ends_with("-1").then_some(())
    };
    assert!(wait_for(saved).is_some());
    first.ask::<()>(&["REPLICAOF", "127.0.0.1", &second.port.to_string()]);
    stage.away();
    line.turn(Some(second.port));
    let told = client.next();
    assert_eq!((&told["type"], &told["recovered"]), (&"subscribed".into(), &false.into()));
    insist(&mut client, "chat", json!(1), "k");
    client.expect(json!(1));
}

/// Nodes without replicas, of which each has its share of the slots.
pub fn cluster(size: usize) -> Vec<Redis> {
    let nodes: Vec<Redis> = (0..size).map(|_| Redis::node(&[])).collect();
    for (index, node) in nodes.iter().enumerate() {
        let [first, next] = [index, index + 1].map(|index| index * 16_384 / size);
        let [first, last] = [first, next - 1].map(|slot| slot.to_string());
        node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
        meet(node, &nodes[0]);
    }
    nodes.iter().for_each(is_whole);
    nodes
}

pub fn meet(node: &Redis, other: &Redis) {
    let bus: Vec<String> = other.ask(&["CONFIG", "GET", "cluster-port"]);
    node.ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), &bus[1]]);
}

/// Wait until a node knows of a node for each slot.
pub fn is_whole(node: &Redis) {
    let whole = || {
        let info: String = node.ask(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok").then_some(())
    };
    assert!(wait_for(whole).is_some());
}

#[test]
fn topics_are_spread_over_a_cluster_and_survive_one_of_its_nodes() {
    let mut nodes = cluster(3);
    // A replica of the node that has `chat0`.
    let slot: u16 = nodes[0].ask(&["CLUSTER", "KEYSLOT", "{chat0}"]);
    let victim = usize::from(slot) * 3 / 16_384;
    let id: String = nodes[victim].ask(&["CLUSTER", "MYID"]);
    let replica = Redis::node(&[]);
    meet(&replica, &nodes[victim]);
    is_whole(&replica);
    replica.ask::<()>(&["CLUSTER", "REPLICATE", &id]);
    linked(&replica);

    // Each server knows another node.
    let url = |node: &Redis| format!("redis+cluster://127.0.0.1:{}", node.port);
    let (left, right) = (&nodes[(victim + 1) % 3], &nodes[(victim + 2) % 3]);
    let here = Stage::start_at("server-left", &url(left), 0);
    let there = Stage::start_at("server-right", &url(right), 0);
    let topics: Vec<String> = (0..12).map(|number| format!("chat{number}")).collect();
    let (mut reader, mut writer) = (here.client(), there.client());
    for topic in &topics {
        assert_eq!(reader.subscribe(topic)["offset"], 0);
    }
    for (number, topic) in topics.iter().cycle().take(60).enumerate() {
        let stored = writer.publish(topic, json!(number));
        assert_eq!(stored["offset"], number / 12 + 1, "{stored}");
    }
    let mut last = vec![json!(null); topics.len()];
    for number in 0..60 {
        // In each topic's order.
        let message = reader.next();
        let topic = topics.iter().position(|topic| message["topic"] == **topic).unwrap();
        let before = last[topic]["offset"].as_u64().unwrap_or(0);
        assert_eq!(message["offset"], before + 1, "message {number}");
        assert_eq!(message["data"], before * 12 + topic as u64);
        last[topic] = message;
    }
    let keys = |node: &Redis| node.ask::<usize>(&["DBSIZE"]);
    assert!(nodes.iter().all(|node| keys(node) > 0), "each node has some of the topics");
    // A queue, too.
    let mut workers = [here.client(), there.client()];
    workers.iter_mut().for_each(|worker| drop(worker.subscribe("jobs")));
    for number in 0..4 {
        writer.publish("jobs", json!(number));
    }
    // Two are out with each at most.
    let jobs: Vec<_> = [0, 1, 0, 1].map(|worker| (worker, workers[worker].next())).into();
    for (worker, job) in &jobs {
        assert_eq!(workers[*worker].ack(job)["type"], "acked");
    }
    assert_eq!(jobs.iter().filter_map(|(_, job)| job["data"].as_u64()).sum::<u64>(), 6);

    copied(&nodes[victim], &replica);
    // A node is gone: its replica takes over, and all go on.
    nodes[victim].kill();
    let killed = Instant::now();
    let (next, refusals) = insist(&mut writer, "chat0", json!("after"), "k");
    println!("published again {:?} after the node was killed", killed.elapsed());
    assert!(refusals.iter().all(|refusal| refusal["status"] == 503), "{refusals:?}");
    assert_eq!(next["offset"], 6);
    reader.expect(json!("after"));
    for topic in &topics[1..] {
        let (stored, _) = insist(&mut writer, topic, json!("after"), "k");
        assert_eq!(stored["offset"], 6);
        reader.expect(json!("after"));
    }
    assert_eq!(here.client().since("chat0", &last[0])["recovered"], true);
}
