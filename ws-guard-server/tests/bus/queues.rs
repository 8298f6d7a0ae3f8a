//! Queue topics: each entry to one client, until it is acknowledged.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    redis::{Ask, Line, Redis},
    stage::{Stage, wait_for},
};

const STREAM: &str = "cluster:test:ws:topic:{jobs}";
const GROUP: &str = "cluster:test:ws:topic:jobs";

#[test]
fn each_entry_goes_to_one_client_and_none_holds_too_many() {
    let redis = Redis::start(&[]);
    let (here, there) = (Stage::start(redis.port), Stage::start(redis.port));
    let mut workers = [here.client(), there.client()];
    workers.iter_mut().for_each(|worker| drop(worker.subscribe("jobs")));
    let mut writer = here.client();
    for number in 0..10 {
        assert_eq!(writer.publish("jobs", json!(number))["type"], "published");
    }
    let mut seen = BTreeSet::new();
    let mut turns = 0;
    while seen.len() < 10 {
        let worker = &mut workers[turns % 2];
        turns += 1;
        let Some(message) = worker.within(Duration::from_millis(300)) else { continue };
        assert_eq!(message["deliveries"], 1);
        assert!(seen.insert(message["data"].as_u64().unwrap()), "{message} came twice");
        assert_eq!(worker.ack(&message)["type"], "acked");
        assert_eq!(worker.ack(&message)["status"], 409);
    }
    assert_eq!(redis.ask::<usize>(&["XLEN", STREAM]), 0);
    // Two are out with each at most; more wait in Redis, and a full queue takes no more.
    let mut refused = 0;
    for number in 0..22 {
        let answer = writer.publish("jobs", json!(number));
        refused += u64::from(answer["status"] == 503);
    }
    assert_eq!(refused, 2);
    let pending = || {
        let pending: (usize, Value3, Value3, Value3) = redis.ask(&["XPENDING", STREAM, GROUP]);
        (pending.0 == 4).then_some(())
    };
    assert!(wait_for(pending).is_some());
}

type Value3 = redis::Value;

#[test]
fn what_a_client_leaves_behind_goes_to_another() {
    let redis = Redis::start(&[]);
    let (here, there) = (Stage::start(redis.port), Stage::start(redis.port));
    let mut one = here.client();
    one.subscribe("jobs");
    here.client().publish("jobs", json!("work"));
    let first = one.expect(json!("work"));
    let mut two = there.client();
    two.subscribe("jobs");
    drop(one);
    let left = Instant::now();
    let again = two.expect(json!("work"));
    println!("taken over after {:?}", left.elapsed());
    assert_eq!((&again["deliveries"], &again["entry"]), (&2.into(), &first["entry"]));
    assert_eq!(two.ack(&again)["type"], "acked");
    assert_eq!(there.metric("wsguard_server_queue_claimed_total"), 1.0);
}

#[test]
fn what_is_delivered_too_often_is_a_dead_letter() {
    let redis = Redis::start(&[]);
    let stage = Stage::start(redis.port);
    let mut worker = stage.client();
    worker.subscribe("jobs");
    stage.client().publish("jobs", json!("poison"));
    for deliveries in 1..=2 {
        assert_eq!(worker.expect(json!("poison"))["deliveries"], deliveries);
    }
    let dead = || (stage.metric("wsguard_server_queue_dead_letters_total") == 1.0).then_some(());
    assert!(wait_for(dead).is_some());
    assert_eq!(redis.ask::<usize>(&["XLEN", "cluster:test:ws:dead:{jobs}"]), 1);
    assert_eq!(redis.ask::<usize>(&["XLEN", STREAM]), 0);
}

#[test]
fn a_group_that_is_gone_is_made_again_and_entries_that_are_gone_are_counted() {
    let redis = Redis::start(&[]);
    let stage = Stage::start(redis.port);
    let mut worker = stage.client();
    worker.subscribe("jobs");
    let mut writer = stage.client();
    writer.publish("jobs", json!(1));
    let first = worker.expect(json!(1));
    assert_eq!(redis.ask::<usize>(&["XGROUP", "DESTROY", STREAM, GROUP]), 1);
    writer.publish("jobs", json!(2));
    // The group begins anew, so the first comes again: at least once.
    let mut both = [worker.next(), worker.next()].map(|message| message["data"].clone());
    both.sort_by_key(Value::as_u64);
    assert_eq!(both, [1, 2]);
    assert_eq!(worker.ack(&first)["type"], "acked");
    assert_eq!(redis.ask::<usize>(&["XTRIM", STREAM, "MAXLEN", "0"]), 1);
    let lost = || (stage.metric("wsguard_server_queue_lost_total") == 1.0).then_some(());
    assert!(wait_for(lost).is_some());
    writer.publish("jobs", json!(3));
    let third = worker.expect(json!(3));
    assert_eq!(worker.ack(&third)["type"], "acked");
}

/// Its client still has the entry, and cannot acknowledge it.
#[test]
fn what_a_server_had_that_is_gone_is_taken_over() {
    let redis = Redis::start(&[]);
    let line = Line::to(redis.port);
    let (gone, other) = (Stage::start(line.address.port()), Stage::start(redis.port));
    let (mut one, mut two) = (gone.client(), other.client());
    one.subscribe("jobs");
    other.client().publish("jobs", json!("work"));
    let first = one.expect(json!("work"));
    two.subscribe("jobs");
    // As long as the first server lives, nothing is taken from it.
    assert_eq!(two.within(Duration::from_millis(1300)), None);
    line.turn(None);
    let cut = Instant::now();
    let again = two.expect(json!("work"));
    println!("taken over after {:?}", cut.elapsed());
    assert_eq!(again["deliveries"], 2);
    assert_eq!(one.ack(&first)["status"], 503);
    assert_eq!(two.ack(&again)["type"], "acked");
}

/// Its lease may have long to go.
#[test]
fn what_a_server_had_that_is_not_connected_is_anyones_at_once() {
    let redis = Redis::start(&[]);
    redis.ask::<()>(&["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]);
    for number in ["1", "2"] {
        redis.ask::<String>(&["XADD", "s", "*", "d", number]);
    }
    for server in ["there", "gone"] {
        let read = ["XREADGROUP", "GROUP", "g", server, "COUNT", "1", "STREAMS", "s", ">"];
        redis.ask::<redis::Value>(&read);
    }
    let mut there = TcpStream::connect(("127.0.0.1", redis.port)).unwrap();
    there.write_all(b"SSUBSCRIBE present:there\r\n").unwrap();
    there.read_exact(&mut [0]).unwrap();
    let claim = include_str!("../../src/topics/redis/claim.lua");
    type Claimed = (Vec<(String, String, u64)>, u64, u64, String);
    let data = |idle: &str| -> Vec<(String, u64)> {
        let keys = ["EVAL", claim, "2", "s", "dead", "g", "me", idle, "16", "9", "0-0", "present:"];
        let (taken, ..): Claimed = redis.ask(&keys);
        taken.into_iter().map(|(_, data, deliveries)| (data, deliveries)).collect()
    };
    assert_eq!(data("3600000"), [("2".into(), 2)]);
    assert_eq!(data("3600000"), []);
    // One that is there and does not renew its lease loses what it has, too.
    assert_eq!(data("0")[..1], [("1".into(), 2)]);
}

#[test]
fn consumers_are_removed_that_are_gone_and_have_nothing() {
    let redis = Redis::start(&[]);
    let group = |consumer: &str| {
        redis.ask::<redis::Value>(&[
            "XREADGROUP",
            "GROUP",
            "g",
            consumer,
            "COUNT",
            "1",
            "STREAMS",
            "s",
            ">",
        ])
    };
    redis.ask::<()>(&["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]);
    redis.ask::<String>(&["XADD", "s", "*", "d", "1"]);
    redis.ask::<u64>(&["XGROUP", "CREATECONSUMER", "s", "g", "none"]);
    for consumer in ["has", "me"] {
        group(consumer);
    }
    std::thread::sleep(Duration::from_millis(20));
    let tidy = include_str!("../../src/topics/redis/tidy.lua");
    assert_eq!(redis.ask::<u64>(&["EVAL", tidy, "1", "s", "g", "me", "1000"]), 0);
    assert_eq!(redis.ask::<u64>(&["EVAL", tidy, "1", "s", "g", "me", "5"]), 1);
    let left: Vec<std::collections::HashMap<String, redis::Value>> =
        redis.ask(&["XINFO", "CONSUMERS", "s", "g"]);
    assert_eq!(left.len(), 1, "the one that has something; `me` never had");
}
