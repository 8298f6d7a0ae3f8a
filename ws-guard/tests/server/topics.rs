//! Publish and subscribe.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use ws_guard_server::{
    HandlerKind,
    topics::{
        TopicLimits,
        bus::{Bus, BusError, Promise, Publication, Stored},
        exchange::Exchange,
        mailbox::{Bounds, WhenFull},
    },
};
use ws_guard_testkit::frame::{Frame, opcode};

use super::{
    served::Served,
    stage::{Client, PATIENCE, Stage, connect_from, wait_for},
};

fn limits(messages: usize, when_full: WhenFull) -> HandlerKind {
    HandlerKind::Topic(Box::new(TopicLimits {
        mailbox: Bounds { messages, bytes: 1 << 20, when_full },
        topics: 2,
        ..TopicLimits::default()
    }))
}

fn start(messages: usize, when_full: WhenFull) -> Stage {
    Stage::start(|config| config.handler = limits(messages, when_full))
}

/// Ask, and take the answer, which has to be the next message.
fn ask(client: &mut Client, request: Value) -> Value {
    client.send(&[Frame::text(&request.to_string())]);
    next(client)
}

fn next(client: &mut Client) -> Value {
    serde_json::from_slice(&client.message()).unwrap()
}

fn subscribe(client: &mut Client, topic: &str) {
    let answer = ask(client, json!({"type": "subscribe", "topic": topic}));
    assert_eq!(answer, json!({"type": "subscribed", "topic": topic}));
}

fn publish(client: &mut Client, topic: &str, data: Value) -> Value {
    ask(client, json!({"type": "publish", "topic": topic, "data": data}))["subscribers"].clone()
}

#[test]
fn publications_reach_the_subscribers_of_their_topic_on_every_thread() {
    let stage = Stage::start(|config| {
        config.handler = limits(8, WhenFull::DropOldest);
        config.shards = 2;
    });
    let mut readers: Vec<Client> = (0..8).map(|_| Client::connect(stage.address)).collect();
    let mut other = Client::connect(stage.address);
    let mut writer = Client::connect(stage.address);
    readers.iter_mut().for_each(|reader| subscribe(reader, "chat"));
    subscribe(&mut other, "else");
    let answer = ask(
        &mut writer,
        json!({"type": "publish", "topic": "chat", "data": {"text": "hi", "n": 1}, "id": 7}),
    );
    let wanted = json!({"type": "published", "topic": "chat", "subscribers": 8, "id": 7});
    assert_eq!(answer, wanted);
    let message = json!({"type": "message", "topic": "chat", "data": {"text": "hi", "n": 1}});
    readers.iter_mut().for_each(|reader| assert_eq!(next(reader), message));
    // A client that unsubscribes or leaves gets no more.
    let answer = ask(&mut readers[0], json!({"type": "unsubscribe", "topic": "chat"}));
    assert_eq!(answer["type"], "unsubscribed");
    drop(readers.split_off(4));
    let left = wait_for(PATIENCE, || (publish(&mut writer, "chat", json!(2)) == 3).then_some(()));
    assert!(left.is_some());
    assert_eq!(publish(&mut writer, "nobody's", json!(3)), 0);
    assert_eq!(publish(&mut writer, "else", json!("yes")), 1);
    assert_eq!(next(&mut other)["data"], "yes");
    assert_eq!(stage.metric("wsguard_server_topics"), 2.0);
    assert_eq!(stage.metric("wsguard_server_subscriptions"), 4.0);
}

#[test]
fn what_cannot_be_done_is_answered_and_the_connection_goes_on() {
    let stage = start(8, WhenFull::DropOldest);
    let mut client = Client::connect(stage.address);
    client.send(&[Frame::text("no json")]);
    let answer = next(&mut client);
    assert_eq!(answer["type"], "error");
    assert!(answer["remedy"].as_str().unwrap().contains("subscribe"), "{answer}");
    client.send(&[Frame::new(opcode::BINARY, [1, 2, 3])]);
    assert_eq!(next(&mut client)["error"], "this is a binary message");
    subscribe(&mut client, "a");
    subscribe(&mut client, "a");
    subscribe(&mut client, "b");
    let third = ask(&mut client, json!({"type": "subscribe", "topic": "c", "id": 3}));
    assert_eq!((&third["type"], &third["id"]), (&"error".into(), &3.into()));
    let empty = ask(&mut client, json!({"type": "publish", "topic": "a"}));
    assert_eq!(empty["error"], "there is nothing to publish");
    let long = "x".repeat(129);
    let bad = ask(&mut client, json!({"type": "subscribe", "topic": long}));
    assert_eq!(bad["error"], "this is no name of a topic");
    assert_eq!(publish(&mut client, "a", json!([])), 1);
}

/// Connect a subscriber that does not read, with small buffers on its path.
fn sleeper(stage: &Stage) -> Client {
    let stream = connect_from([127, 0, 0, 1].into(), stage.address, Some(4096));
    let mut client = Client::request(stream, "", &[]);
    subscribe(&mut client, "news");
    client
}

#[test]
fn a_full_queue_loses_its_oldest_and_says_how_many() {
    let stage = start(4, WhenFull::DropOldest);
    let mut sleeper = sleeper(&stage);
    let mut writer = Client::connect(stage.address);
    const SENT: u64 = 1500;
    let filler = "x".repeat(8000);
    for number in 0..SENT {
        // Whether or not others must be dropped for it.
        assert_eq!(publish(&mut writer, "news", json!([number, filler])), 1);
    }
    let dropped = stage.metric("wsguard_server_deliveries_total{result=\"dropped\"}");
    assert!(dropped > 100.0, "{dropped} dropped");
    let (mut expected, mut missed) = (0, 0);
    while expected < SENT {
        let said = next(&mut sleeper);
        if said["type"] == "missed" {
            missed += said["count"].as_u64().unwrap();
            expected += said["count"].as_u64().unwrap();
        } else {
            assert_eq!(said["data"][0].as_u64().unwrap(), expected);
            expected += 1;
        }
    }
    assert_eq!((expected, missed as f64), (SENT, dropped));
}

#[test]
fn what_waits_for_many_is_held_once() {
    let stage = start(1024, WhenFull::DropOldest);
    let sleepers: Vec<Client> = (0..10).map(|_| sleeper(&stage)).collect();
    let mut writer = Client::connect(stage.address);
    let dropped = || stage.metric("wsguard_server_deliveries_total{result=\"dropped\"}");
    let filler = "x".repeat(32_000);
    // Until each mailbox has been full.
    while dropped() < 10.0 * 100.0 {
        publish(&mut writer, "news", json!(filler));
    }
    let held = || stage.metric("wsguard_server_buffered_bytes");
    let most = (1 << 20) + sleepers.len() * 64 * 1024;
    assert!(held() > 500_000.0 && held() < most as f64, "{} bytes", held());
    drop((sleepers, writer));
    assert!(wait_for(PATIENCE, || (held() == 0.0).then_some(())).is_some(), "{} bytes", held());
}

#[test]
fn or_its_connection_is_closed_as_a_slow_reader() {
    let stage = Stage::start(|config| {
        config.handler = limits(4, WhenFull::Close);
        config.write_timeout = Duration::from_millis(300);
    });
    let sleeper = sleeper(&stage);
    let mut writer = Client::connect(stage.address);
    let filler = "x".repeat(8000);
    let gone =
        wait_for(PATIENCE, || (publish(&mut writer, "news", json!(filler)) == 0).then_some(()));
    assert!(gone.is_some());
    assert_eq!(stage.closed(&sleeper).0, "slow_reader");
    assert_eq!(publish(&mut writer, "news", json!(1)), 0);
}

/// Call the control API on the socket of `serve`.
fn post(socket: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let head = "POST /v1/publish HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let length = body.len();
    write!(
        stream,
        "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

#[test]
fn the_control_api_publishes() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock").display().to_string();
    let served = Served::start(&["--control-socket", &socket, "--handler", "topic"]);
    let mut client = Client::connect(served.address);
    subscribe(&mut client, "news");
    let (status, answer) = post(&socket, r#"{"topic":"news","data":{"a":[1,2.50]}}"#);
    assert_eq!((status, answer), (200, json!({"topic": "news", "subscribers": 1})));
    let text = client.message();
    assert_eq!(text, br#"{"type":"message","topic":"news","data":{"a":[1,2.50]}}"#);
    assert_eq!(post(&socket, r#"{"topic":"","data":1}"#).0, 400);
    assert_eq!(post(&socket, r#"{"topic":"news"}"#).0, 422);
    let (socket, plain) = (dir.path().join("e.sock"), "--control-socket");
    let socket = socket.display().to_string();
    let _echo = Served::start(&[plain, &socket]);
    let (status, answer) = post(&socket, r#"{"topic":"news","data":1}"#);
    assert_eq!((status, &answer["remedy"]), (409, &"start it with --handler topic".into()));
}

/// A bus of two servers: the work of a distributed one, without a network.
#[derive(Default)]
struct Joined {
    exchanges: Mutex<Vec<Arc<Exchange>>>,
    topics: Mutex<Vec<String>>,
}

struct Line(Arc<Joined>);

impl Bus for Line {
    fn publish(&self, publication: Publication, promise: Promise<Stored>) {
        if &*publication.topic == "down" {
            return promise(Err(BusError::Unavailable("on purpose".into())));
        }
        let exchanges = self.0.exchanges.lock().unwrap();
        let reached = exchanges.iter().map(|exchange| exchange.deliver(&publication)).sum();
        promise(Ok(Stored { reached: Some(reached), ..Stored::default() }));
    }

    fn joined(&self, topic: &Arc<str>) {
        self.0.topics.lock().unwrap().push(format!("+{topic}"));
    }

    fn left(&self, topic: &Arc<str>) {
        self.0.topics.lock().unwrap().push(format!("-{topic}"));
    }
}

#[test]
fn another_bus_joins_servers() {
    let joined = Arc::new(Joined::default());
    let server = || {
        let joined = joined.clone();
        Stage::start_on(
            |exchange| {
                joined.exchanges.lock().unwrap().push(exchange);
                Arc::new(Line(joined.clone()))
            },
            |config| config.handler = limits(8, WhenFull::DropOldest),
        )
    };
    let (here, there) = (server(), server());
    let mut reader = Client::connect(there.address);
    let mut writer = Client::connect(here.address);
    subscribe(&mut reader, "a");
    assert_eq!(publish(&mut writer, "a", json!("over there")), 1);
    assert_eq!(next(&mut reader)["data"], "over there");
    let down = ask(&mut writer, json!({"type": "publish", "topic": "down", "data": 1}));
    assert_eq!(down["error"], "the bus is not available: on purpose");
    drop(reader);
    let told = || joined.topics.lock().unwrap().clone();
    let left = wait_for(PATIENCE, || (told() == ["+a", "-a"]).then_some(()));
    assert!(left.is_some(), "{:?}", told());
}

/// It is not even parsed, as it has no subscriber.
#[test]
fn a_request_with_more_data_than_may_wait_is_refused() {
    let stage = start(8, WhenFull::DropOldest);
    let mut reader = Client::connect(stage.address);
    subscribe(&mut reader, "a");
    let mut writer = Client::connect(stage.address);
    let large = "x".repeat((1 << 20) - 100);
    assert_eq!(publish(&mut writer, "a", json!(large)), 1);
    assert_eq!(next(&mut reader)["data"], large);
    let larger = json!({"type": "publish", "topic": "a", "data": "x".repeat(2 << 20)});
    let answer = ask(&mut writer, larger);
    assert_eq!(answer["error"], "a request of 2097192 bytes is too large");
    assert_eq!(publish(&mut writer, "a", json!(1)), 1);
    assert_eq!(next(&mut reader)["data"], 1);
}
