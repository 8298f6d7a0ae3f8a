//! Topics with a history: positions, replay, resumption, permissions.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use ws_guard_server::{
    Config, HandlerKind,
    identity::Access,
    token::{TokenKey, key},
    topics::{
        TopicLimits,
        mailbox::{Bounds, WhenFull},
        rules::{History, InForce, Kind, Pattern, Rule, Rules},
    },
};
use ws_guard_testkit::frame::Frame;

use super::{
    served::Served,
    stage::{Client, PATIENCE, Stage, connect, refused, wait_for},
};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

fn rule(pattern: &str, messages: usize, restricted: bool) -> Arc<Rule> {
    let history = History { messages, bytes: 1 << 20, age: Duration::from_secs(60) };
    let pattern = Pattern::new(pattern).unwrap();
    Arc::new(Rule { pattern, kind: Kind::History(history), restricted })
}

fn configure(config: &mut Config, change: impl FnOnce(&mut TopicLimits)) {
    let mut limits = TopicLimits {
        rules: InForce::new(Rules(vec![rule("user:*", 50, true), rule("chat:*", 50, false)])),
        ..TopicLimits::default()
    };
    change(&mut limits);
    config.handler = HandlerKind::Topic(Box::new(limits));
}

fn start() -> Stage {
    Stage::start(|config| configure(config, |_| ()))
}

fn next(client: &mut Client) -> Value {
    serde_json::from_slice(&client.message()).unwrap()
}

fn ask(client: &mut Client, request: Value) -> Value {
    client.send(&[Frame::text(&request.to_string())]);
    next(client)
}

fn subscribe(client: &mut Client, topic: &str, since: Option<&Value>) -> Value {
    let mut request = json!({"type": "subscribe", "topic": topic});
    if let Some(at) = since {
        request["since"] = json!({"epoch": at["epoch"], "offset": at["offset"]});
    }
    ask(client, request)
}

fn publish(client: &mut Client, topic: &str, data: Value) -> Value {
    ask(client, json!({"type": "publish", "topic": topic, "data": data}))
}

/// Send a request for this path, with a token where one is given.
fn open(stage: &Stage, path: &str) -> Client {
    Client::ask(connect(stage.address), &request(path), &[])
}

fn request(path: &str) -> String {
    super::stage::REQUEST.replacen("GET / ", &format!("GET {path} "), 1)
}

#[test]
fn a_client_that_comes_back_gets_what_it_missed_and_goes_on() {
    let stage = start();
    let mut writer = Client::connect(stage.address);
    let mut reader = Client::connect(stage.address);
    let begun = subscribe(&mut reader, "chat:1", None);
    assert_eq!((&begun["type"], &begun["offset"]), (&"subscribed".into(), &0.into()));
    assert_eq!(publish(&mut writer, "chat:1", json!("a"))["offset"], 1);
    let first = next(&mut reader);
    assert_eq!((&first["offset"], &first["data"]), (&1.into(), &"a".into()));
    drop(reader);
    for data in ["b", "c"] {
        publish(&mut writer, "chat:1", json!(data));
    }
    let mut reader = Client::connect(stage.address);
    let back = subscribe(&mut reader, "chat:1", Some(&first));
    assert_eq!((&back["recovered"], &back["offset"]), (&true.into(), &3.into()));
    publish(&mut writer, "chat:1", json!("d"));
    for (offset, data) in [(2, "b"), (3, "c"), (4, "d")] {
        let message = next(&mut reader);
        assert_eq!((&message["offset"], &message["data"]), (&offset.into(), &data.into()));
        assert_eq!(message["epoch"], begun["epoch"]);
    }
    // The same connection may ask again.
    assert_eq!(subscribe(&mut reader, "chat:1", Some(&first))["recovered"], true);
    assert_eq!(next(&mut reader)["data"], "b");
    assert_eq!(stage.metric("wsguard_server_recoveries_total{recovered=\"yes\"}"), 2.0);
}

#[test]
fn what_cannot_be_had_again_is_said_so() {
    let stage = start();
    let mut client = Client::connect(stage.address);
    let begun = subscribe(&mut client, "chat:1", None);
    for number in 1..=60 {
        assert_eq!(publish(&mut client, "chat:1", json!(number))["offset"], number);
        assert_eq!(next(&mut client)["offset"], number);
    }
    let trimmed = subscribe(&mut client, "chat:1", Some(&begun));
    assert_eq!((&trimmed["recovered"], &trimmed["offset"]), (&false.into(), &60.into()));
    let other = json!({"epoch": "77", "offset": 59});
    assert_eq!(subscribe(&mut client, "chat:1", Some(&other))["recovered"], false);
    let ahead = json!({"epoch": begun["epoch"], "offset": 61});
    assert_eq!(subscribe(&mut client, "chat:1", Some(&ahead))["recovered"], false);
    let live = subscribe(&mut client, "live", Some(&begun));
    assert_eq!(live, json!({"type": "subscribed", "topic": "live", "recovered": false}));
    let none = json!({"epoch": "no number", "offset": 1});
    assert_eq!(subscribe(&mut client, "chat:1", Some(&none))["recovered"], false);
    publish(&mut client, "chat:1", json!(61));
    assert_eq!(next(&mut client)["offset"], 61);
}

/// A replay that exceeds the limit of pending output is refused.
#[test]
fn no_replay_is_partial() {
    let stage = Stage::start(|config| {
        configure(config, |limits| {
            limits.mailbox =
                Bounds { messages: 10, bytes: 1 << 20, when_full: WhenFull::DropOldest };
        });
    });
    let mut writer = Client::connect(stage.address);
    let begun = subscribe(&mut writer, "chat:1", None);
    let epoch = &begun["epoch"];
    assert!(
        ask(&mut writer, json!({"type": "unsubscribe", "topic": "chat:1"}))["type"]
            == "unsubscribed"
    );
    for number in 1..=12 {
        publish(&mut writer, "chat:1", json!(number));
    }
    let mut reader = Client::connect(stage.address);
    let since = |offset: u64| json!({"epoch": epoch, "offset": offset});
    assert_eq!(subscribe(&mut reader, "chat:1", Some(&since(1)))["recovered"], false);
    assert_eq!(subscribe(&mut reader, "chat:1", Some(&since(2)))["recovered"], true);
    assert_eq!(next(&mut reader)["offset"], 3);
}

#[test]
fn a_repeated_publication_is_stored_once() {
    let stage = start();
    let mut client = Client::connect(stage.address);
    let keyed = json!({"type": "publish", "topic": "chat:1", "data": 1, "key": "k-1"});
    let first = ask(&mut client, keyed.clone());
    let again = ask(&mut client, keyed);
    assert_eq!((&first["offset"], &again["offset"]), (&1.into(), &1.into()));
    assert_eq!((&first["repeated"], &again["repeated"]), (&Value::Null, &true.into()));
    let other = json!({"type": "publish", "topic": "chat:2", "data": 1, "key": "k-1"});
    assert_eq!(ask(&mut client, other)["repeated"], Value::Null);
    let long = json!({"type": "publish", "topic": "chat:2", "data": 1, "key": "k".repeat(65)});
    assert_eq!(ask(&mut client, long)["status"], 400);
}

#[test]
fn a_token_resumes_a_session_in_the_upgrade() {
    let stage = start();
    let (mut writer, mut reader) = (Client::connect(stage.address), Client::connect(stage.address));
    for topic in ["chat:1", "chat:2", "live"] {
        subscribe(&mut reader, topic, None);
    }
    publish(&mut writer, "chat:1", json!("a"));
    assert_eq!(next(&mut reader)["data"], "a");
    let beat = ask(&mut reader, json!({"type": "heartbeat", "resume": true, "id": 9}));
    assert_eq!(
        (&beat["type"], &beat["id"], &beat["expires_in"]),
        (&"heartbeat".into(), &9.into(), &300.into())
    );
    let token = beat["resume"].as_str().unwrap().to_owned();
    drop(reader);
    publish(&mut writer, "chat:1", json!("b"));
    publish(&mut writer, "chat:2", json!("c"));
    let mut reader = open(&stage, &format!("/?resume={token}"));
    assert_eq!(next(&mut reader), json!({"type": "resumed", "ok": true, "topics": 3}));
    let answers = [(); 3].map(|()| next(&mut reader));
    assert_eq!(answers.clone().map(|answer| answer["type"].clone()), ["subscribed"; 3]);
    let recovered = answers.map(|answer| answer["recovered"].clone());
    assert_eq!(recovered, [json!(true), json!(true), Value::Null]);
    assert_eq!([next(&mut reader), next(&mut reader)].map(|m| m["data"].clone()), ["b", "c"]);
    publish(&mut writer, "live", json!("d"));
    assert_eq!(next(&mut reader)["data"], "d");
    let mut other = open(&stage, &format!("/?resume={token}x"));
    assert_eq!(next(&mut other)["ok"], false);
    assert_eq!(ask(&mut other, json!({"type": "heartbeat"})), json!({"type": "heartbeat"}));
    assert_eq!(stage.metric("wsguard_server_resumptions_total{valid=\"no\"}"), 1.0);
}

fn token(claims: Value) -> String {
    let mut claims = claims;
    claims["exp"] = (get_current_timestamp() + 600).into();
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

#[test]
fn tokens_say_what_may_be_published_and_users_have_topics_of_their_own() {
    let stage = Stage::start(|config| {
        configure(config, |limits| limits.auto_subscribe = vec!["user:{user_id}".into()]);
        let token = Some(TokenKey::from(key::shared(SECRET).unwrap()));
        config.access = Access { token, ..Access::default() };
    });
    let with = |claims: Value| format!("/?access_token={}", token(claims));
    let mut one = open(&stage, &with(json!({"sub": "1"})));
    let own = next(&mut one);
    assert_eq!((&own["type"], &own["topic"]), (&"subscribed".into(), &"user:1".into()));
    let mut service = open(&stage, &with(json!({"sub": "s", "publish": ["user:*", "chat:1"]})));
    assert_eq!(next(&mut service)["topic"], "user:s");
    assert_eq!(publish(&mut service, "user:1", json!("hi"))["offset"], 1);
    assert_eq!(next(&mut one)["data"], "hi");
    assert_eq!(publish(&mut service, "chat:2", json!("hi"))["status"], 403);
    assert_eq!(publish(&mut one, "user:1", json!("to myself"))["status"], 403);
    assert_eq!(subscribe(&mut one, "user:s", None)["status"], 403);
    assert_eq!(publish(&mut one, "chat:2", json!("hi"))["offset"], 1);
    // A token of one user is not valid for another, and restricted topics stay so.
    let resume = ask(&mut one, json!({"type": "heartbeat", "resume": true}));
    let resume = resume["resume"].as_str().unwrap();
    let mut two = open(&stage, &format!("{}&resume={resume}", with(json!({"sub": "2"}))));
    assert_eq!(next(&mut two)["ok"], false);
    assert_eq!(next(&mut two)["topic"], "user:2");
    let mut back = open(&stage, &format!("{}&resume={resume}", with(json!({"sub": "1"}))));
    assert_eq!(next(&mut back)["ok"], true);
    let own = next(&mut back);
    assert_eq!((&own["topic"], &own["recovered"]), (&"user:1".into(), &true.into()));
    let wrong = with(json!({"sub": "1", "publish": "all"}));
    let answer = refused(connect(stage.address), format!("{}\r\n", request(&wrong)).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[test]
fn histories_together_keep_to_their_bound_and_age() {
    let stage = Stage::start(|config| {
        configure(config, |limits| {
            let history = History { messages: 50, bytes: 1 << 20, age: Duration::from_millis(200) };
            let pattern = Pattern::new("*").unwrap();
            let kind = Kind::History(history);
            let rule = Arc::new(Rule { pattern, kind, restricted: false });
            limits.rules = InForce::new(Rules(vec![rule]));
            limits.history.bytes = 10_000;
        });
    });
    let held = || stage.metric("wsguard_server_history_bytes");
    let mut writer = Client::connect(stage.address);
    let mut most = 0.0_f64;
    for topic in 0..10 {
        for _ in 0..5 {
            publish(&mut writer, &format!("t{topic}"), json!("x".repeat(1000)));
            most = most.max(held());
        }
    }
    assert!(most > 5000.0 && most <= 10_000.0, "{most} bytes");
    let forgotten = || held() == 0.0 && stage.metric("wsguard_server_topics") == 0.0;
    assert!(wait_for(PATIENCE, || forgotten().then_some(())).is_some(), "{} bytes", held());
}

fn in_force(stage: &Stage) -> Arc<InForce> {
    let HandlerKind::Topic(limits) = &stage.config().handler else { panic!("no topics") };
    limits.rules.clone()
}

#[test]
fn rules_change_while_topics_are_in_use() {
    let stage = start();
    let rules = in_force(&stage);
    let mut client = Client::connect(stage.address);
    assert_eq!(subscribe(&mut client, "news", None)["offset"], Value::Null);
    let mut begun = subscribe(&mut client, "chat:1", None);
    for number in 1..=3 {
        publish(&mut client, "chat:1", json!(number));
        next(&mut client);
    }
    assert_eq!(publish(&mut client, "user:1", json!(1))["status"], 403);
    rules.set(Rules(vec![rule("chat:*", 2, false), rule("news", 50, false)])).unwrap();
    let told = next(&mut client);
    assert_eq!((&told["topic"], &told["offset"]), (&"news".into(), &0.into()));
    assert_eq!(told["recovered"], false);
    assert_eq!(publish(&mut client, "news", json!("a"))["epoch"], told["epoch"]);
    assert_eq!(next(&mut client)["offset"], 1);
    assert_eq!(publish(&mut client, "user:1", json!(1))["type"], "published");
    // Messages over the new bound are gone.
    let mut other = Client::connect(stage.address);
    assert_eq!(subscribe(&mut other, "chat:1", Some(&begun))["recovered"], false);
    begun["offset"] = 1.into();
    assert_eq!(subscribe(&mut other, "chat:1", Some(&begun))["recovered"], true);
    assert_eq!(next(&mut other)["data"], 2);
    drop(other);
    rules.set(Rules::default()).unwrap();
    let mut told = [next(&mut client), next(&mut client)].map(|told| {
        assert_eq!((&told["offset"], &told["recovered"]), (&Value::Null, &false.into()));
        told["topic"].as_str().unwrap().to_owned()
    });
    told.sort();
    assert_eq!(told, ["chat:1", "news"]);
    assert_eq!(publish(&mut client, "news", json!("b"))["offset"], Value::Null);
    assert_eq!(next(&mut client)["data"], "b");
    assert_eq!(stage.metric("wsguard_server_history_bytes"), 0.0);
}

#[test]
fn a_changed_file_changes_topics() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("topics.toml");
    std::fs::write(&file, "[server]\n").unwrap();
    let served = Served::start(&["--handler", "topic", "--config", file.to_str().unwrap()]);
    let mut client = Client::connect(served.address);
    assert_eq!(subscribe(&mut client, "news", None)["offset"], Value::Null);
    std::fs::write(&file, "[[server.topic]]\nmatch = \"news\"\nhistory = 5\n").unwrap();
    served.process.signal(Signal::SIGHUP).unwrap();
    assert_eq!(next(&mut client)["offset"], 0);
    std::fs::write(&file, "[[server.topic]]\nmatch = \"news\"\nkind = \"queue\"\n").unwrap();
    served.process.signal(Signal::SIGHUP).unwrap();
    assert!(served.says("stay in force: server.topic: queue topics are in Redis") > 0);
    assert_eq!(publish(&mut client, "news", json!(1))["offset"], 1);
}

#[test]
fn a_token_may_be_among_the_subprotocols() {
    let stage = start();
    let mut client = Client::connect(stage.address);
    subscribe(&mut client, "chat:1", None);
    let beat = ask(&mut client, json!({"type": "heartbeat", "resume": true}));
    let token = beat["resume"].as_str().unwrap();
    publish(&mut client, "chat:1", json!("a"));
    for (offers, answered) in [
        (format!("ws-guard.resume, ws-guard.resume.{token}"), true),
        (format!("ws-guard.resume.{token}"), false),
    ] {
        let fields = format!("Sec-WebSocket-Protocol: {offers}\r\n");
        let mut back = Client::request(connect(stage.address), &fields, &[]);
        let answer = back.answer.to_ascii_lowercase();
        assert_eq!(answer.contains("sec-websocket-protocol: ws-guard.resume\r\n"), answered);
        assert_eq!(next(&mut back)["ok"], true);
        assert_eq!(next(&mut back)["recovered"], true);
        assert_eq!(next(&mut back)["data"], "a");
    }
}
