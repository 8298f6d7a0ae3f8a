//! The bus over TLS: one Redis, Sentinels and a cluster.
//! Their certificate is one that the server trusts by `SSL_CERT_FILE`, or does not trust.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use ws_guard_testkit::{
    frame::Frame,
    redis::{Redis, Tls, free_port},
};

use super::{
    served::Served,
    stage::{Client, PATIENCE, wait_for},
};

/// Write a certificate for these names, below this folder.
fn certify(folder: &Path, names: &[&str]) -> Tls {
    let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let tls = Tls { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    fs::write(&tls.certificate, made.cert.pem()).unwrap();
    fs::write(&tls.key, made.signing_key.serialize_pem()).unwrap();
    tls
}

/// Start a server whose topics `chat*` have a history, on this bus.
fn serve(folder: &Path, url: &str, trusted: Option<&Tls>) -> Served {
    let topics = folder.join("topics.toml");
    fs::write(&topics, "[[server.topic]]\nmatch = \"chat*\"\nhistory = 10\n").unwrap();
    let flags = ["--handler", "topic", "--config", topics.to_str().unwrap()];
    let trusted = trusted.map(|tls| ("SSL_CERT_FILE", tls.certificate.to_str().unwrap()));
    let variables: Vec<_> = [("RUST_LOG", "debug"), ("WS_GUARD_BUS", url)].into();
    Served::with(&flags, &[variables, trusted.into_iter().collect()].concat())
}

fn ask(client: &mut Client, request: &Value) -> Value {
    client.send(&[Frame::text(&request.to_string())]);
    loop {
        let said: Value = serde_json::from_slice(&client.message()).unwrap();
        if said["type"] != "message" {
            return said;
        }
    }
}

/// Publish until it is stored; return the offset.
fn publish(served: &Served, topic: &str, key: &str) -> u64 {
    let mut client = Client::connect(served.address);
    let request = json!({"type": "publish", "topic": topic, "data": key, "key": key});
    wait_for(PATIENCE, || ask(&mut client, &request)["offset"].as_u64()).expect("it is stored")
}

/// Connect a client that follows a topic.
fn follow(served: &Served, topic: &str) -> Client {
    let mut client = Client::connect(served.address);
    let request = json!({"type": "subscribe", "topic": topic});
    let subscribed = wait_for(PATIENCE, || {
        Some(ask(&mut client, &request)).filter(|said| said["type"] == "subscribed")
    });
    subscribed.expect("it subscribes");
    client
}

fn expect(client: &mut Client, data: &str) {
    let said: Value = serde_json::from_slice(&client.message()).unwrap();
    assert_eq!((&said["type"], &said["data"]), (&"message".into(), &data.into()), "{said}");
}

fn options(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

#[test]
fn a_redis_is_reached_by_tls_alone_and_only_with_a_trusted_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let tls = certify(folder.path(), &["localhost"]);
    let port = free_port();
    let _redis = Redis::start(&options(&tls.options(port)));
    let url = format!("rediss://localhost:{port}");
    let distrustful = serve(folder.path(), &url, None);
    assert!(distrustful.says("the bus is not there") > 0, "{:?}", distrustful.process.lines());
    let lines = distrustful.process.lines();
    let why = lines.iter().find(|line| line.contains("the bus is not there")).unwrap();
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    // The certificate names another host.
    let elsewhere = serve(folder.path(), &format!("rediss://127.0.0.1:{port}"), Some(&tls));
    assert!(elsewhere.says("not valid for") > 0, "{:?}", elsewhere.process.lines());
    let served = serve(folder.path(), &url, Some(&tls));
    let mut reader = follow(&served, "chat");
    assert_eq!(publish(&served, "chat", "a"), 1);
    expect(&mut reader, "a");
    for other in [&distrustful, &elsewhere] {
        assert_eq!(other.says("the bus is connected"), 0);
    }
}

#[test]
fn sentinels_are_asked_by_tls_and_name_a_primary_that_is_reached_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let tls = certify(folder.path(), &["127.0.0.1"]);
    let [first, second, third] = [(); 3].map(|()| free_port());
    let mut primary = Redis::start(&options(&tls.options(first)));
    let at = ["--replicaof".to_owned(), "127.0.0.1".into(), first.to_string()];
    let replica = Redis::start(&options(&[tls.options(second), at.into()].concat()));
    said_by(replica.port, &["info", "replication"], "master_link_status:up");
    let sentinel = Redis::sentinel("main", first, Some((&tls, third)));
    said_by(sentinel.port, &["sentinel", "replicas", "main"], &second.to_string());
    let url = format!("rediss+sentinel://127.0.0.1:{third}/main");
    let served = serve(folder.path(), &url, Some(&tls));
    let mut reader = follow(&served, "chat");
    assert_eq!(publish(&served, "chat", "a"), 1);
    expect(&mut reader, "a");
    // The earlier messages are there, too.
    said_by(replica.port, &["xlen", "cluster:default:ws:topic:{chat}"], "2");
    primary.kill();
    assert_eq!(publish(&served, "chat", "b"), 2);
    expect(&mut reader, "b");
    let plain = serve(folder.path(), &url.replace("rediss", "redis"), Some(&tls));
    assert!(plain.says("the bus is not there") > 0);
}

#[test]
fn nodes_of_a_cluster_are_reached_by_tls_by_their_addresses_and_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    for (name, announce) in [("127.0.0.1", false), ("localhost", true)] {
        let tls = certify(folder.path(), &[name]);
        let ports = [(); 3].map(|()| free_port());
        let nodes = ports.map(|port| {
            let mut all = tls.options(port);
            if announce {
                let names = ["--cluster-announce-hostname", name];
                let preferred = ["--cluster-preferred-endpoint-type", "hostname"];
                all.extend([names, preferred].concat().into_iter().map(str::to_owned));
            }
            Redis::node(&options(&all))
        });
        for (index, node) in nodes.iter().enumerate() {
            let [begin, end] = [index, index + 1].map(|index| index * 16_384 / 3);
            let [begin, end] = [begin.to_string(), (end - 1).to_string()];
            said_by(node.port, &["cluster", "addslotsrange", &begin, &end], "OK");
        }
        let bus = said_by(nodes[0].port, &["config", "get", "cluster-port"], "cluster-port");
        let bus = bus.lines().nth(1).unwrap().trim();
        for node in &nodes[1..] {
            let meet = ["cluster", "meet", "127.0.0.1", &ports[0].to_string(), bus];
            said_by(node.port, &meet, "OK");
        }
        for node in &nodes {
            said_by(node.port, &["cluster", "info"], "cluster_state:ok");
            if announce {
                said_by(node.port, &["cluster", "slots"], &format!("{name}\n"));
            }
        }
        let url = format!("rediss+cluster://{name}:{}", ports[0]);
        let served = serve(folder.path(), &url, Some(&tls));
        // Topics of all nodes.
        for number in 0..12 {
            let topic = format!("chat{number}");
            let mut reader = follow(&served, &topic);
            assert_eq!(publish(&served, &topic, "a"), 1);
            expect(&mut reader, "a");
        }
        for node in &nodes {
            let keys = said_by(node.port, &["dbsize"], "");
            assert_ne!(keys.trim(), "0", "each node has some of the topics");
        }
    }
}

/// Return a Redis' answer to a command, once it contains this part.
fn said_by(port: u16, words: &[&str], part: &str) -> String {
    let ask = || {
        let mut ask = Command::new("redis-cli");
        let said = ask.args(["-p", &port.to_string()]).args(words).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        said.contains(part).then_some(said)
    };
    wait_for(PATIENCE, ask).unwrap_or_else(|| panic!("{words:?} never says {part:?}"))
}
