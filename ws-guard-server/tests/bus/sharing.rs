//! Topics of several servers.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use ws_guard_server::topics::rules::{Kind, Pattern, Rule, Rules, RulesError};

use super::{
    redis::{Ask, Line, Redis},
    stage::{Stage, rules, wait_for},
};

#[test]
fn what_is_published_on_one_server_reaches_all_in_one_order() {
    let redis = Redis::start(&[]);
    let (here, there) = (Stage::start(redis.port), Stage::start(redis.port));
    let mut readers = [here.client(), there.client()];
    for reader in &mut readers {
        assert_eq!(reader.subscribe("chat")["offset"], 0);
        assert_eq!(
            reader.subscribe("live"),
            json!({"type": "subscribed", "topic": "live", "id": 2})
        );
    }
    let mut writers = [here.client(), there.client()];
    for number in 0..40 {
        let published = writers[number % 2].publish("chat", json!(number));
        assert_eq!(published["offset"], number + 1, "{published}");
    }
    for reader in &mut readers {
        for number in 0..40 {
            assert_eq!(reader.expect(json!(number))["offset"], number + 1);
        }
    }
    let live = writers[0].publish("live", json!("x"));
    assert_eq!((&live["type"], &live["offset"]), (&"published".into(), &Value::Null));
    readers.iter_mut().for_each(|reader| drop(reader.expect(json!("x"))));
    // A position is saved by each server.
    let saved = || {
        let saved: Vec<(String, String)> =
            redis.ask(&["HGETALL", "cluster:test:ws:delivered:{chat}"]);
        let all = saved.len() == 2 && saved.iter().all(|(_, id)| id.ends_with("-40"));
        all.then_some(())
    };
    assert!(wait_for(saved).is_some());
}

#[test]
fn a_client_goes_on_at_another_server() {
    let redis = Redis::start(&[]);
    let (here, there) = (Stage::start(redis.port), Stage::start(redis.port));
    let mut reader = here.client();
    reader.subscribe("chat");
    let mut writer = there.client();
    writer.publish("chat", json!(1));
    let last = reader.expect(json!(1));
    let beat = reader.ask(json!({"type": "heartbeat", "resume": true}));
    here.stop();
    for number in 2..=5 {
        writer.publish("chat", json!(number));
    }
    let mut back = there.client();
    assert_eq!(back.since("chat", &last)["recovered"], true);
    (2..=5).for_each(|number| drop(back.expect(json!(number))));
    let mut resumed = there.open(&format!("?resume={}", beat["resume"].as_str().unwrap()));
    assert_eq!(resumed.next()["ok"], true);
    assert_eq!(resumed.next()["recovered"], true);
    (2..=5).for_each(|number| drop(resumed.expect(json!(number))));
    writer.publish("chat", json!(6));
    for client in [&mut back, &mut resumed] {
        client.expect(json!(6));
    }
}

#[test]
fn histories_are_bounded_and_repetitions_stored_once() {
    let redis = Redis::start(&[]);
    let stage = Stage::start(redis.port);
    let mut client = stage.client();
    let begun = client.subscribe("chat");
    let keyed = json!({"type": "publish", "topic": "chat", "data": 1, "key": "k"});
    let (first, again) = (client.ask(keyed.clone()), client.ask(keyed));
    assert_eq!((&again["repeated"], &again["offset"]), (&true.into(), &first["offset"]));
    for number in 2..=102 {
        client.publish("chat", json!(number));
    }
    assert_eq!(redis.ask::<usize>(&["XLEN", "cluster:test:ws:topic:{chat}"]), 101);
    let fresh = Stage::start(redis.port);
    let mut other = fresh.client();
    assert_eq!(other.since("chat", &begun)["recovered"], false);
    let reached = json!({"epoch": begun["epoch"], "offset": 2});
    assert_eq!(other.since("chat", &reached)["recovered"], true);
    (3..=102).for_each(|number| drop(other.expect(json!(number))));
    assert_eq!(other.within(Duration::from_millis(50)), None);
}

#[test]
fn a_server_that_starts_again_tells_how_far_it_had_read() {
    let redis = Redis::start(&[]);
    let line = Line::to(redis.port);
    let writer_stage = Stage::start(redis.port);
    let mut writer = writer_stage.client();
    let died = Stage::start_as("server-again", line.address.port(), 0);
    let mut reader = died.client();
    reader.subscribe("chat");
    reader.subscribe("chat-left");
    writer.publish("chat", json!(1));
    writer.publish("chat-left", json!(1));
    reader.expect(json!(1));
    reader.expect(json!(1));
    let saved = |topic: &str| -> Option<String> {
        redis.ask(&["HGET", &format!("cluster:test:ws:delivered:{{{topic}}}"), "server-again"])
    };
    for topic in ["chat", "chat-left"] {
        assert!(wait_for(|| saved(topic)?.ends_with("-1").then_some(())).is_some());
    }
    // What is left by all its clients is not missed.
    reader.ask(json!({"type": "unsubscribe", "topic": "chat-left"}));
    assert!(wait_for(|| saved("chat-left").is_none().then_some(())).is_some());
    // It dies before it can say that its clients have left.
    line.turn(None);
    died.stop();
    for number in 2..=4 {
        writer.publish("chat", json!(number));
        writer.publish("chat-left", json!(number));
    }
    let caught_up = "wsguard_server_bus_caught_up_total";
    let missed = "wsguard_server_bus_missed_total";
    line.turn(Some(redis.port));
    let again = Stage::start_as("server-again", line.address.port(), 0);
    let mut reader = again.client();
    for topic in ["chat", "chat-left"] {
        assert_eq!(reader.subscribe(topic)["offset"], 4);
    }
    assert_eq!((again.metric(caught_up), again.metric(missed)), (3.0, 0.0));
    assert!(wait_for(|| saved("chat")?.ends_with("-4").then_some(())).is_some());
    line.turn(None);
    again.stop();
    // The history has 100, and the position before them.
    for number in 5..=106 {
        writer.publish("chat", json!(number));
    }
    let again = Stage::start_as("server-again", redis.port, 0);
    again.client().subscribe("chat");
    assert_eq!((again.metric(caught_up), again.metric(missed)), (100.0, 2.0));
}

#[test]
fn rules_change_while_topics_are_shared() {
    let redis = Redis::start(&[]);
    let (here, there) = (Stage::start(redis.port), Stage::start(redis.port));
    let (mut reader, mut writer) = (here.client(), there.client());
    assert_eq!(reader.subscribe("news")["offset"], Value::Null);
    writer.publish("news", json!(1));
    reader.expect(json!(1));
    // It gets a history: its subscribers are told where they are.
    let mut more = rules();
    let kind = more.0[0].kind;
    more.0.push(Arc::new(Rule { pattern: Pattern::new("news").unwrap(), kind, restricted: false }));
    for stage in [&here, &there] {
        stage.rules.set(more.clone()).unwrap();
    }
    let told = reader.next();
    assert_eq!((&told["type"], &told["recovered"]), (&"subscribed".into(), &false.into()));
    let stored = writer.publish("news", json!(2));
    assert_eq!(stored["offset"], told["offset"].as_u64().unwrap() + 1);
    assert_eq!(reader.expect(json!(2))["offset"], stored["offset"]);
    assert_eq!(there.client().since("news", &told)["recovered"], true);
    // A queue that is in use keeps its kind, and may get other numbers.
    let mut worker = here.client();
    worker.subscribe("jobs");
    let without = Rules(vec![more.0[0].clone()]);
    assert_eq!(here.rules.set(without), Err(RulesError::OtherKind("jobs".into())));
    let Kind::Queue(mut queue) = more.0[1].kind else { panic!("no queue") };
    queue.prefetch = 5;
    more.0[1] = Arc::new(Rule { kind: Kind::Queue(queue), ..(*more.0[1]).clone() });
    here.rules.set(more).unwrap();
    // The bus has them a little later.
    let bounded = (0..20).any(|_| {
        for number in 0..6 {
            writer.publish("jobs", json!(number));
        }
        let jobs: Vec<Value> = (0..5).map(|_| worker.next()).collect();
        let sixth = worker.within(Duration::from_millis(300));
        for job in jobs.iter().chain(&sixth) {
            assert_eq!(worker.ack(job)["type"], "acked");
        }
        sixth.is_none()
    });
    assert!(bounded, "it has more than it may");
    worker.expect(json!(5));
}

#[test]
fn what_is_not_pushed_is_read_before_the_next() {
    const STREAM: &str = "cluster:test:ws:topic:{chat}";
    let redis = Redis::start(&[]);
    let stage = Stage::start(redis.port);
    let (mut reader, mut writer) = (stage.client(), stage.client());
    let begun = reader.subscribe("chat");
    writer.publish("chat", json!(1));
    reader.expect(json!(1));
    let last: Vec<(String, Vec<String>)> =
        redis.ask(&["XREVRANGE", STREAM, "+", "-", "COUNT", "1"]);
    let (id, fields) = &last[0];
    let next = id.replace("-1", "-2");
    redis.ask::<String>(&["XADD", STREAM, &next, "d", "2", "t", &fields[3], "r", &fields[5]]);
    assert_eq!(writer.publish("chat", json!(3))["offset"], 3);
    for number in 2..=3 {
        assert_eq!(reader.expect(json!(number))["offset"], number);
    }
    // Another stream in its place, which another server has begun.
    redis.ask::<usize>(&["DEL", STREAM]);
    let other = Stage::start(redis.port);
    let anew = other.client().subscribe("chat");
    assert_ne!(anew["epoch"], begun["epoch"]);
    writer.publish("chat", json!(4));
    let told = reader.next();
    assert_eq!((&told["recovered"], &told["epoch"]), (&false.into(), &anew["epoch"]));
    assert_eq!(writer.publish("chat", json!(5))["offset"], 2);
    assert_eq!(wait_for(|| Some(reader.next()["data"] == 5).filter(|is| *is)), Some(true));
    assert_eq!(stage.metric("wsguard_server_bus_loads_total"), 2.0);
}

/// A topic whose clients leave and come while it is loaded is loaded again. What is published between is not
/// read before the second answer, which is older and would take it back.
#[test]
fn a_topic_that_is_loaded_twice_is_not_taken_back() {
    // Both keys of a topic, one after the other, are named by its load alone.
    let load = "ws:topic:{chat}\r\n$32\r\ncluster:test:ws:delivered:{chat}";
    let redis = Redis::start(&[]);
    let line = Line::to(redis.port);
    let (stage, other) = (Stage::start(line.address.port()), Stage::start(redis.port));
    let mut writer = other.client();
    writer.publish("chat", json!(1));
    let (mut reader, mut neighbour) = (stage.client(), stage.client());
    neighbour.subscribe("chat-neighbour");
    writer.subscribe("chat-joined");
    line.hold(load);
    for request in ["subscribe", "unsubscribe", "subscribe"] {
        reader.send(&json!({"type": request, "topic": "chat"}));
    }
    // The bus has done what came before once this is there, though nothing is answered.
    reader.send(&json!({"type": "publish", "topic": "chat-joined", "data": 0}));
    writer.expect(json!(0));
    line.wait_for_held(1);
    line.let_pass(Some(1));
    let begun = wait_for(|| Some(reader.next()).filter(|said| said["type"] == "subscribed"));
    assert_eq!(begun.unwrap()["offset"], 1);
    line.wait_for_held(2);
    writer.publish("chat", json!(2));
    // Whatever is read here was read twice since.
    for number in 0..2 {
        writer.publish("chat-neighbour", json!(number));
        neighbour.expect(json!(number));
    }
    line.let_pass(None);
    writer.publish("chat", json!(3));
    for number in 2..=3 {
        let message = wait_for(|| Some(reader.next()).filter(|said| said["type"] != "published"));
        let message = message.unwrap();
        assert_eq!((&message["type"], &message["offset"]), (&"message".into(), &number.into()));
    }
    assert_eq!(stage.metric("wsguard_server_bus_connects_total"), 1.0);
}
