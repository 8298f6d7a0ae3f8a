//! Slots of a Redis Cluster that move from node to node while servers publish and read.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    failover::{cluster, is_whole, meet},
    faults::insist,
    redis::{Ask, Redis},
    stage::{Client, Stage, long_history, wait_for},
};

/// A slot on its way.
struct Move<'a> {
    slot: String,
    from: &'a Redis,
    to: &'a Redis,
}

impl Move<'_> {
    /// Of the slot that this topic is in. From now on, keys that are at neither are made at the new node.
    fn begin<'a>(topic: &str, from: &'a Redis, to: &'a Redis) -> Move<'a> {
        let slot: u16 = from.ask(&["CLUSTER", "KEYSLOT", &format!("{{{topic}}}")]);
        let slot = slot.to_string();
        let [here, there] = [from, to].map(|node| node.ask::<String>(&["CLUSTER", "MYID"]));
        to.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &here]);
        from.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &there]);
        Move { slot, from, to }
    }

    /// Keys that are still at the old node.
    fn left(&self) -> Vec<String> {
        self.from.ask(&["CLUSTER", "GETKEYSINSLOT", &self.slot, "1000"])
    }

    fn take(&self, key: &str) {
        let port = self.to.port.to_string();
        self.from.ask::<()>(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    }

    /// Take the rest, and give the slot to the new node.
    fn end(self) {
        self.left().iter().for_each(|key| self.take(key));
        let there: String = self.to.ask(&["CLUSTER", "MYID"]);
        for node in [self.to, self.from] {
            node.ask::<()>(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &there]);
        }
    }
}

/// How often a node has answered with an error of this name.
fn errors(node: &Redis, name: &str) -> u64 {
    let info: String = node.ask(&["INFO", "errorstats"]);
    let count = |line: &str| {
        line.strip_prefix("errorstat_")?.strip_prefix(name)?.strip_prefix(":count=")?.parse().ok()
    };
    info.lines().find_map(|line| count(line.trim())).unwrap_or_default()
}

fn url(node: &Redis) -> String {
    format!("redis+cluster://127.0.0.1:{}", node.port)
}

/// The node of three that has this topic.
fn owner(nodes: &[Redis], topic: &str) -> usize {
    let slot: u16 = nodes[0].ask(&["CLUSTER", "KEYSLOT", &format!("{{{topic}}}")]);
    usize::from(slot) * 3 / 16_384
}

/// By topic and offset, what was published.
type Stored = Mutex<BTreeMap<(String, u64), Value>>;

/// Publish on topics in turn, with a key of its own each time or with none, until it is enough; what
/// was refused.
fn write(
    client: &mut Client,
    topics: &[&str],
    keys: Option<&str>,
    stored: &Stored,
    enough: &AtomicBool,
) -> Vec<Value> {
    let mut refused = Vec::new();
    for number in 0.. {
        if enough.load(Ordering::Relaxed) {
            break;
        }
        let topic = topics[number % topics.len()];
        let data = json!(format!("{} {number}", keys.unwrap_or("none")));
        let answer = match keys {
            Some(prefix) => {
                let key = format!("{prefix}-{number}");
                let (answer, refusals) = insist(client, topic, data.clone(), &key);
                refused.extend(refusals);
                answer
            }
            None => client.publish(topic, data.clone()),
        };
        match answer["offset"].as_u64() {
            Some(offset) => drop(stored.lock().unwrap().insert((topic.into(), offset), data)),
            None => refused.push(answer),
        }
        // The reader has to keep up on a busy machine.
        thread::sleep(Duration::from_millis(2));
    }
    refused
}

/// Take messages until all that was stored is there: in order, once, and without a new beginning.
fn read(reader: &mut Client, topics: &[&str], stored: &Stored, written: &AtomicBool) {
    let mut last: BTreeMap<String, u64> = topics.iter().map(|topic| ((*topic).into(), 0)).collect();
    let is_all = |last: &BTreeMap<String, u64>| {
        let ends = topics.iter().map(|topic| {
            let stored = stored.lock().unwrap();
            let all = stored.range(((*topic).into(), 0)..=((*topic).into(), u64::MAX));
            all.last().map_or(0, |((_, offset), _)| *offset)
        });
        ends.zip(topics).all(|(end, topic)| last[*topic] >= end)
    };
    while !(written.load(Ordering::Relaxed) && is_all(&last)) {
        let Some(message) = reader.within(Duration::from_millis(200)) else { continue };
        assert_eq!(message["type"], "message", "{message}");
        let topic = message["topic"].as_str().unwrap();
        let before = last.insert(topic.into(), message["offset"].as_u64().unwrap()).unwrap();
        assert_eq!(message["offset"], before + 1, "{message}");
        let key = (topic.to_owned(), before + 1);
        // It may be here before its answer is there.
        let data = wait_for(|| stored.lock().unwrap().get(&key).cloned());
        assert_eq!(data.expect("only what is acknowledged arrives"), message["data"]);
    }
}

#[test]
fn slots_move_while_servers_publish_and_nothing_is_refused_or_lost() {
    let nodes = cluster(3);
    let topics = ["chat0", "chat1", "chat2", "chat3"];
    let from = owner(&nodes, "chat0");
    let to = (from + 1) % 3;
    let (here, there) = (
        Stage::start_at("server-slots-1", &url(&nodes[from]), 0),
        Stage::start_at("server-slots-2", &url(&nodes[to]), 0),
    );
    for stage in [&here, &there] {
        stage.rules.set(long_history()).unwrap();
    }
    let mut reader = here.client();
    for topic in topics {
        assert_eq!(reader.subscribe(topic)["offset"], 0);
    }
    let (stored, enough, written) =
        (Stored::default(), AtomicBool::new(false), AtomicBool::new(false));
    let mut clients = [here.client(), there.client(), there.client()];
    let [plain, other, keyed] = &mut clients;
    thread::scope(|scope| {
        let (stored, enough) = (&stored, &enough);
        let writers = [
            scope.spawn(move || write(plain, &topics, None, stored, enough)),
            scope.spawn(move || write(other, &topics, None, stored, enough)),
            scope.spawn(move || write(keyed, &topics, Some("k"), stored, enough)),
        ];
        let reading = scope.spawn(|| read(&mut reader, &topics, stored, &written));
        let topic = "chat0";
        let some = || {
            let before = stored.lock().unwrap().len();
            let more = || (stored.lock().unwrap().len() >= before + 100).then_some(());
            assert!(wait_for(more).is_some(), "publications do not go on");
        };
        for _ in 0..2 {
            some();
            // There, and back again.
            let at = owner_of(&nodes, topic);
            let moving = Move::begin(topic, &nodes[at], &nodes[if at == to { from } else { to }]);
            let before = [errors(moving.from, "ASK"), errors(moving.to, "TRYAGAIN")];
            moving.take(&format!("cluster:test:ws:topic:{{{topic}}}"));
            let met = || {
                let now = [errors(moving.from, "ASK"), errors(moving.to, "TRYAGAIN")];
                (now[0] > before[0] && now[1] > before[1]).then_some(())
            };
            assert!(wait_for(met).is_some(), "publications do not meet the slot on its way");
            let (old, moved) = (moving.from, errors(moving.from, "MOVED"));
            moving.end();
            let met = || (errors(old, "MOVED") > moved).then_some(());
            assert!(wait_for(met).is_some(), "publications do not meet the slot that has moved");
        }
        some();
        enough.store(true, Ordering::Relaxed);
        for writer in writers {
            assert_eq!(writer.join().unwrap(), Vec::<Value>::new());
        }
        written.store(true, Ordering::Relaxed);
        reading.join().unwrap();
    });
    for stage in [&here, &there] {
        assert_eq!(stage.metric("wsguard_server_bus_connects_total"), 1.0);
    }
    println!("{} publications", stored.lock().unwrap().len());
}

/// The node that has this topic now.
fn owner_of(nodes: &[Redis], topic: &str) -> usize {
    let stream = format!("cluster:test:ws:topic:{{{topic}}}");
    let has = |node: &Redis| node.try_ask::<usize>(&["XLEN", &stream]).is_ok();
    nodes.iter().position(has).expect("one has it")
}

#[test]
fn a_slot_of_a_queue_moves_with_what_its_clients_have() {
    let nodes = cluster(3);
    let from = owner(&nodes, "jobs");
    let stage = Stage::start_at("server-slots-3", &url(&nodes[from]), 0);
    let (mut worker, mut writer) = (stage.client(), stage.client());
    worker.subscribe("jobs");
    for number in 0..6 {
        assert_eq!(writer.publish("jobs", json!(number))["type"], "published");
    }
    let held = [worker.expect(json!(0)), worker.expect(json!(1))];
    Move::begin("jobs", &nodes[from], &nodes[(from + 1) % 3]).end();
    for message in &held {
        assert_eq!(worker.ack(message)["type"], "acked");
    }
    for number in 2..6 {
        let message = worker.expect(json!(number));
        assert_eq!(message["deliveries"], 1, "{message}");
        assert_eq!(worker.ack(&message)["type"], "acked");
    }
    assert_eq!(writer.publish("jobs", json!("more"))["type"], "published");
    worker.expect(json!("more"));
    assert_eq!(stage.metric("wsguard_server_bus_connects_total"), 1.0);
}

#[test]
fn a_slot_moves_to_a_node_that_is_new() {
    let mut nodes = cluster(3);
    let from = owner(&nodes, "chat");
    let (here, there) = (
        Stage::start_at("server-slots-4", &url(&nodes[from]), 0),
        Stage::start_at("server-slots-5", &url(&nodes[from]), 0),
    );
    let (mut reader, mut writer) = (here.client(), there.client());
    reader.subscribe("chat");
    writer.publish("chat", json!(1));
    reader.expect(json!(1));
    nodes.push(Redis::node(&[]));
    meet(&nodes[3], &nodes[0]);
    nodes.iter().for_each(is_whole);
    let known = || {
        let all = nodes.iter().map(|node| node.ask::<String>(&["CLUSTER", "NODES"]));
        all.into_iter().all(|nodes| nodes.lines().count() == 4).then_some(())
    };
    assert!(wait_for(known).is_some());
    Move::begin("chat", &nodes[from], &nodes[3]).end();
    for (number, offset) in [(2, 2), (3, 3)] {
        let (stored, refusals) = insist(&mut writer, "chat", json!(number), &number.to_string());
        assert_eq!(stored["offset"], offset);
        assert!(refusals.iter().all(|refusal| refusal["status"] == 503), "{refusals:?}");
        let message = reader.expect(json!(number));
        assert_eq!(message["offset"], offset);
    }
    assert_eq!(there.metric("wsguard_server_bus_connects_total"), 2.0);
}
