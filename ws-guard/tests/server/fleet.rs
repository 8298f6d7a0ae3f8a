//! A fleet of three servers on one Redis, one of which is killed under load.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    redis::Redis,
};

use super::{
    served::Served,
    stage::{Client, PATIENCE, REQUEST, connect, wait_for},
};

const PUBLISHERS: usize = 6;
const EACH: usize = 80;
const READERS: usize = 12;
const JOBS: usize = 24;

fn start(folder: &Path, redis: &Redis, name: &str) -> Served {
    let [config, secret] = ["topics.toml", "secret"].map(|name| folder.join(name));
    let url = format!("redis://127.0.0.1:{}", redis.port);
    Served::start(
        &[
            &["--handler", "topic", "--bus", &url, "--bus-server", name][..],
            &["--config", config.to_str().unwrap(), "--resume-secret", secret.to_str().unwrap()],
            &["--queue-messages", "2000"],
        ]
        .concat(),
    )
}

/// A connection that may end at any time.
struct Talk(Client);

impl Talk {
    fn to(served: &Served, query: &str) -> Talk {
        let request = REQUEST.replacen("GET / ", &format!("GET /{query} "), 1);
        Talk(Client::ask(connect(served.address), &request, &[]))
    }

    /// Send a request; `None` where the connection has ended.
    fn send(&mut self, request: &Value) -> Option<()> {
        self.0.stream.write_all(&encode(&[Frame::text(&request.to_string())])).ok()
    }

    fn next(&mut self) -> Option<Value> {
        loop {
            let frame = self.0.next()?;
            if frame.opcode == opcode::TEXT {
                return Some(serde_json::from_slice(&frame.payload).unwrap());
            }
        }
    }

    fn publish(&mut self, topic: &str, data: &Value, key: &str) -> Option<Value> {
        let request = json!({"type": "publish", "topic": topic, "data": data, "key": key, "id": 1});
        self.send(&request)?;
        self.next()
    }
}

/// Publish until it is acknowledged, here or at another server; return its offset.
fn insist(talk: &mut Talk, other: &Served, topic: &str, data: &Value, key: &str) -> Value {
    wait_for(PATIENCE, || {
        let answer = talk.publish(topic, data, key);
        if answer.is_none() {
            *talk = Talk::to(other, "");
        }
        answer.filter(|answer| answer["type"] == "published")
    })
    .expect("it is stored in the end")
}

/// Messages that a reader has seen, and its reconnection.
#[derive(Default)]
struct Seen {
    /// Data by offsets.
    data: BTreeMap<u64, Value>,
    last: Value,
    repeated: usize,
    came_back: Option<Duration>,
}

impl Seen {
    /// Take a message. Only a token, which is older than the end, may bring some again.
    fn take(&mut self, message: Value, may_repeat: bool) {
        let offset = message["offset"].as_u64().unwrap();
        let before = self.data.last_key_value().map(|(offset, _)| *offset);
        match before {
            Some(before) if offset <= before => {
                assert!(may_repeat, "{message} came twice");
                assert_eq!(self.data[&offset], message["data"], "another under the same offset");
                self.repeated += 1;
            }
            _ => {
                assert!(before.is_none_or(|before| offset == before + 1), "a gap before {message}");
                self.data.insert(offset, message["data"].clone());
                self.last = message;
            }
        }
    }
}

/// Follow `chat` to its end, reconnecting to another server where needed.
fn read(first: &Served, other: &Served, with_token: bool, killed: &Mutex<Option<Instant>>) -> Seen {
    let mut seen = Seen::default();
    let mut talk = Talk::to(first, "");
    talk.send(&json!({"type": "subscribe", "topic": "chat"})).unwrap();
    seen.last = talk.next().unwrap();
    let mut token = Value::Null;
    loop {
        if with_token && seen.data.len() % 20 == 0 {
            talk.send(&json!({"type": "heartbeat", "resume": true}));
        }
        let Some(said) = talk.next() else {
            talk = come_back(other, &seen.last, &token);
            let killed = killed.lock().unwrap().expect("only the one that is killed ends");
            seen.came_back = Some(killed.elapsed());
            continue;
        };
        match said["type"].as_str() {
            Some("message") if said["data"] == "end" => return seen,
            Some("message") => seen.take(said, with_token && seen.came_back.is_some()),
            Some("heartbeat") => token = said["resume"].clone(),
            _ => panic!("{said}"),
        }
    }
}

/// Reconnect with a token, or with the last position; everything missed follows.
fn come_back(other: &Served, last: &Value, token: &Value) -> Talk {
    let mut talk;
    if let Some(token) = token.as_str() {
        talk = Talk::to(other, &format!("?resume={token}"));
        assert_eq!(talk.next().unwrap()["ok"], true);
    } else {
        talk = Talk::to(other, "");
        let since = json!({"epoch": last["epoch"], "offset": last["offset"]});
        talk.send(&json!({"type": "subscribe", "topic": "chat", "since": since})).unwrap();
    }
    assert_eq!(talk.next().unwrap()["recovered"], true);
    talk
}

/// Work on `jobs` until all are done; the first worker only takes them.
fn work(served: &Served, idle: bool, done: &Mutex<BTreeSet<u64>>, taken: &AtomicUsize) {
    let mut talk = Talk::to(served, "");
    talk.send(&json!({"type": "subscribe", "topic": "jobs"})).unwrap();
    talk.next().unwrap();
    taken.fetch_add(1, Ordering::Relaxed);
    while let Some(said) = talk.next() {
        match (said["type"].as_str(), idle) {
            (Some("message"), true) => drop(taken.fetch_add(1, Ordering::Relaxed)),
            (Some("message"), false) if said["data"] == "end" => return,
            (Some("message"), false) => {
                let entry = &said["entry"];
                talk.send(&json!({"type": "ack", "topic": "jobs", "entry": entry})).unwrap();
                done.lock().unwrap().insert(said["data"].as_u64().unwrap());
            }
            _ => assert_eq!(said["type"], "acked", "{said}"),
        }
    }
    assert!(idle, "only the one that is killed ends");
}

#[test]
fn one_of_three_that_is_killed_takes_nothing_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "[[server.topic]]\nmatch = \"chat\"\nhistory = 1000\n\
                 [[server.topic]]\nmatch = \"jobs\"\nkind = \"queue\"\n";
    fs::write(folder.path().join("topics.toml"), rules).unwrap();
    fs::write(folder.path().join("secret"), "x".repeat(32)).unwrap();
    let redis = Redis::start(&[]);
    let servers = ["one", "two", "three"].map(|name| start(folder.path(), &redis, name));
    let (acknowledged, killed) = (AtomicUsize::new(0), Mutex::new(None));
    let (done, taken) = (Mutex::new(BTreeSet::new()), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (acknowledged, killed, done, taken) = (&acknowledged, &killed, &done, &taken);
        let servers = &servers;
        let readers: Vec<_> = (0..READERS)
            .map(|index| {
                let (first, other) = (&servers[index % 3], &servers[1 + index % 2]);
                scope.spawn(move || read(first, other, index % 2 == 0, killed))
            })
            .collect();
        let workers = [0, 1, 2]
            .map(|index| scope.spawn(move || work(&servers[index], index == 0, done, taken)));
        assert!(
            wait_for(PATIENCE, || (taken.load(Ordering::Relaxed) == 3).then_some(())).is_some()
        );
        let mut boss = Talk::to(&servers[1], "");
        for job in 0..JOBS {
            insist(&mut boss, &servers[1], "jobs", &json!(job), &format!("job-{job}"));
        }
        assert!(wait_for(PATIENCE, || (taken.load(Ordering::Relaxed) > 3).then_some(())).is_some());
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|index| {
                scope.spawn(move || {
                    let other = &servers[1 + index % 2];
                    let mut talk = Talk::to(&servers[index % 3], "");
                    let publish = |number| {
                        let data = json!([index, number]);
                        let key = format!("{index}-{number}");
                        let stored = insist(&mut talk, other, "chat", &data, &key);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        (stored["offset"].as_u64().unwrap(), data)
                    };
                    (0..EACH).map(publish).collect::<Vec<_>>()
                })
            })
            .collect();
        let third = PUBLISHERS * EACH / 3;
        let enough = || (acknowledged.load(Ordering::Relaxed) >= third).then_some(());
        assert!(wait_for(PATIENCE, enough).is_some());
        *killed.lock().unwrap() = Some(Instant::now());
        servers[0].process.signal(Signal::SIGKILL).unwrap();
        // Its client's jobs go to others.
        let all = || (done.lock().unwrap().len() == JOBS).then_some(());
        assert!(wait_for(PATIENCE, all).is_some(), "{:?}", done.lock().unwrap());
        let took = killed.lock().unwrap().unwrap().elapsed();
        println!("jobs of the one that was killed were done {took:?} later");
        let stored: BTreeMap<u64, Value> =
            publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect();
        assert_eq!(stored.len(), PUBLISHERS * EACH, "each has an offset of its own");
        insist(&mut boss, &servers[1], "chat", &json!("end"), "end");
        let seen: Vec<Seen> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        for seen in &seen {
            assert_eq!(seen.data, stored, "all that was acknowledged, and each once");
        }
        let back = seen.iter().filter_map(|seen| seen.came_back);
        assert_eq!(back.clone().count(), READERS / 3);
        let repeated: usize = seen.iter().map(|seen| seen.repeated).sum();
        println!("the last reader was back after {:?}; {repeated} came again", back.max());
        for _ in 0..2 {
            // One for each worker.
            insist(&mut boss, &servers[1], "jobs", &json!("end"), &fastrand::u64(..).to_string());
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}
