//! What clients see when Redis fails.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    redis::{Ask, Line, Redis},
    stage::{Client, Stage, wait_for},
};

/// Publish until it is stored; what was said before.
pub fn insist(client: &mut Client, topic: &str, data: Value, key: &str) -> (Value, Vec<Value>) {
    let request = json!({"type": "publish", "topic": topic, "data": data, "key": key});
    let mut refusals = Vec::new();
    let stored = wait_for(|| {
        let answer = client.ask(request.clone());
        let stored = answer["type"] == "published";
        if !stored {
            refusals.push(answer.clone());
        }
        stored.then_some(answer)
    });
    (stored.expect("it is stored in the end"), refusals)
}

#[test]
fn killed_and_restarted_with_all_it_had() {
    let mut redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let stage = Stage::start(redis.port);
    let mut client = stage.client();
    let begun = client.subscribe("chat");
    client.publish("chat", json!(1));
    let first = client.expect(json!(1));
    redis.kill();
    stage.away();
    redis.again();
    let (second, _) = insist(&mut client, "chat", json!(2), "k");
    // The epoch is another, as it may have lost something; the offset goes on, and so do positions.
    assert_eq!(second["offset"], 2);
    assert_ne!(second["epoch"], begun["epoch"]);
    let message = client.expect(json!(2));
    assert_eq!(message["epoch"], second["epoch"]);
    let mut back = stage.client();
    assert_eq!(back.since("chat", &first)["recovered"], true);
    back.expect(json!(2));
    let lost = json!({"epoch": begun["epoch"], "offset": 2});
    assert_eq!(back.since("chat", &lost)["recovered"], false);
}

#[test]
fn killed_and_restarted_with_nothing() {
    let mut redis = Redis::start(&[]);
    let stage = Stage::start(redis.port);
    let mut client = stage.client();
    client.subscribe("chat");
    client.publish("chat", json!(1));
    let first = client.expect(json!(1));
    redis.kill();
    redis.again();
    let told = client.next();
    assert_eq!((&told["type"], &told["recovered"]), (&"subscribed".into(), &false.into()));
    assert_ne!(told["epoch"], first["epoch"]);
    let (again, _) = insist(&mut client, "chat", json!(2), "k");
    assert_eq!(again["offset"], 1);
    client.expect(json!(2));
    let mut back = stage.client();
    assert_eq!(back.since("chat", &first)["recovered"], false);
    assert_eq!(back.since("chat", &told)["recovered"], true);
    back.expect(json!(2));
}

#[test]
fn restored_from_an_older_state() {
    let mut redis = Redis::start(&["--dbfilename", "old.rdb"]);
    let stage = Stage::start(redis.port);
    let mut client = stage.client();
    client.subscribe("chat");
    let mut messages = Vec::new();
    for number in 1..=4 {
        client.publish("chat", json!(number));
        messages.push(client.expect(json!(number)));
        if number == 2 {
            redis.ask::<()>(&["SAVE"]);
        }
    }
    redis.kill();
    redis.again();
    let told = client.next();
    assert_eq!((&told["recovered"], &told["offset"]), (&false.into(), &2.into()));
    // Others are stored under the offsets that are lost, and are not taken for them.
    for number in 13..=16 {
        let (stored, _) = insist(&mut client, "chat", json!(number), &number.to_string());
        assert_eq!(stored["offset"], number - 10);
    }
    let mut back = stage.client();
    assert_eq!(back.since("chat", &messages[3])["recovered"], false);
    assert_eq!(back.since("chat", &messages[2])["recovered"], false);
    assert_eq!(back.since("chat", &messages[1])["recovered"], true);
    (13..=16).for_each(|number| drop(back.expect(json!(number))));
}

#[test]
fn away_for_a_while() {
    let mut redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let line = Line::to(redis.port);
    let stage = Stage::start(line.address.port());
    let mut client = stage.client();
    client.subscribe("chat");
    let (mut acknowledged, mut uncertain) = (Vec::new(), 0);
    let (mut since, mut made) = (Instant::now(), 0);
    for number in 0..60 {
        if number == 20 {
            redis.kill();
            (since, made) = (Instant::now(), line.made());
        }
        let answer = client.publish("chat", json!(number));
        match answer["type"].as_str() {
            Some("published") => acknowledged.push(number),
            _ => {
                assert_eq!(
                    (&answer["status"], &answer["retry_after_ms"]),
                    (&503.into(), &1000.into())
                );
                uncertain += 1;
            }
        }
    }
    assert!(uncertain >= 39, "{uncertain} were refused");
    assert_eq!(client.ask(json!({"type": "heartbeat"}))["type"], "heartbeat");
    // It tries now and then, and not all the time.
    std::thread::sleep(Duration::from_secs(10).saturating_sub(since.elapsed()));
    let tries = (line.made() - made) as f64;
    let away = since.elapsed().as_secs_f64();
    println!("{tries} tries in {away:.1} s");
    assert!((3.0..=10.0 + 2.0 * away).contains(&tries), "{tries} tries in {away} s");
    let start = Instant::now();
    redis.again();
    let (_, _) = insist(&mut client, "chat", json!("after"), "k");
    println!("published again after {:?}", start.elapsed());
    assert_eq!(stage.metric("wsguard_server_bus_connects_total"), 2.0);
    let mut got = BTreeSet::new();
    loop {
        let message = client.next();
        assert_ne!(message["recovered"], false, "{message}");
        match message["data"].as_u64() {
            Some(number) => drop(got.insert(number)),
            None if message["data"] == "after" => break,
            None => {}
        }
    }
    assert!(acknowledged.iter().all(|number| got.contains(number)), "{acknowledged:?}, {got:?}");
}

#[test]
fn stopped_full_and_evicted() {
    let redis = Redis::start(&[]);
    let stage = Stage::start(redis.port);
    let mut client = stage.client();
    client.subscribe("chat");
    redis.signal(Signal::SIGSTOP);
    let answer = client.publish("chat", json!(1));
    assert_eq!(answer["status"], 503, "it may be stored or not");
    redis.signal(Signal::SIGCONT);
    let (stored, _) = insist(&mut client, "chat", json!(2), "k");
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = client.publish("chat", json!(3));
    assert_eq!((&full["status"], &full["retry_after_ms"]), (&503.into(), &1000.into()));
    // What is there can be read nevertheless.
    assert_eq!(stage.client().since("chat", &stored)["recovered"], true);
    assert_eq!(Stage::start(redis.port).client().since("chat", &stored)["recovered"], true);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    redis.ask::<usize>(&["DEL", "cluster:test:ws:topic:{chat}"]);
    let anew = client.publish("chat", json!(4));
    assert_eq!(anew["offset"], 1);
    assert_ne!(anew["epoch"], stored["epoch"]);
    let told = wait_for(|| Some(client.next()).filter(|said| said["recovered"] == false));
    assert!(told.is_some(), "clients are told that the topic begins anew");
    client.publish("chat", json!(5));
    client.expect(json!(5));
}

#[test]
fn a_full_redis_ends_no_connection() {
    let redis = Redis::start(&[]);
    let stage = Stage::start(redis.port);
    let mut client = stage.client();
    client.subscribe("chat");
    let limit = |bytes| redis.ask::<()>(&["CONFIG", "SET", "maxmemory", bytes]);
    let mut stored = 0;
    // The next position to be saved is refused, unless it was saved before.
    let refused = wait_for(|| {
        let saved: Vec<String> = redis.ask(&["HVALS", "cluster:test:ws:delivered:{chat}"]);
        if saved.iter().any(|id| id.ends_with(&format!("-{stored}"))) {
            limit("0");
            stored = client.publish("chat", json!("more"))["offset"].as_u64().unwrap();
            limit("1");
        }
        redis.ask::<String>(&["INFO", "errorstats"]).contains("errorstat_OOM").then_some(())
    });
    assert!(refused.is_some(), "Redis took every position");
    assert_eq!(client.publish("chat", json!("no"))["status"], 503);
    limit("0");
    assert_eq!(client.publish("chat", json!("again"))["offset"], stored + 1);
    assert_eq!(stage.metric("wsguard_server_bus_connects_total"), 1.0);
}

#[test]
fn cut_off_one_server_catches_up() {
    let redis = Redis::start(&[]);
    let line = Line::to(redis.port);
    let (cut, other) = (Stage::start(line.address.port()), Stage::start(redis.port));
    let mut reader = cut.client();
    reader.subscribe("chat");
    let mut writer = other.client();
    writer.publish("chat", json!(1));
    reader.expect(json!(1));
    line.turn(None);
    cut.away();
    for number in 2..=10 {
        writer.publish("chat", json!(number));
    }
    assert_eq!(reader.publish("chat", json!("no"))["status"], 503);
    line.turn(Some(redis.port));
    (2..=10).for_each(|number| assert_eq!(reader.expect(json!(number))["offset"], number));
}

#[test]
fn a_replica_that_lacks_the_latest_takes_over() {
    let first = Redis::start(&[]);
    let replication = Line::to(first.port);
    let port = replication.address.port().to_string();
    let second = Redis::start(&["--replicaof", "127.0.0.1", &port]);
    let linked = || {
        let info: String = second.ask(&["INFO", "replication"]);
        info.contains("master_link_status:up").then_some(())
    };
    assert!(wait_for(linked).is_some());
    let line = Line::to(first.port);
    let stage = Stage::start_as("server-replicated", line.address.port(), 1);
    let mut client = stage.client();
    client.subscribe("chat");
    let (stored, _) = insist(&mut client, "chat", json!(1), "k-1");
    assert_eq!(stored["offset"], 1);
    client.expect(json!(1));
    replication.turn(None);
    let lacking = client.publish("chat", json!(2));
    assert_eq!(lacking["status"], 503, "no replica has it: {lacking}");
    let seen = client.expect(json!(2));
    drop(first);
    second.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    line.turn(Some(second.port));
    let told = client.next();
    assert_eq!((&told["recovered"], &told["offset"]), (&false.into(), &1.into()));
    // There is no replica left to wait for, so it is stored and not acknowledged.
    let lonely = || {
        let answer = client.publish("chat", json!(3));
        answer["error"].as_str()?.contains("replicas").then_some(())
    };
    assert!(wait_for(lonely).is_some());
    let message = client.expect(json!(3));
    assert_eq!(message["offset"], 2);
    assert_ne!(message["epoch"], seen["epoch"]);
}
