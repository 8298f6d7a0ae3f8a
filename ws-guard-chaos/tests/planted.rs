//! A server that forgets one publication in 5,000, planted in front of real ones: one run finds it.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use prometheus::Registry;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    accept_hdr_async, client_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
    },
};
use ws_guard_server::{
    Config, HandlerKind, Server,
    access_log::AccessLog,
    topics::{
        TopicLimits,
        redis::Settings,
        resume::ResumeKey,
        rules::{History, InForce, Kind, Pattern, Rule, Rules},
    },
};
use ws_guard_testkit::{process::Process, redis::Redis, wait::wait_for};

const PATIENCE: Duration = Duration::from_secs(120);
/// Which publications are forgotten: one in so many.
const FORGETS: u64 = 5_000;
/// Publications of a run.
const RUN: u64 = 5_500;
const PROGRAM: &str = env!("CARGO_BIN_EXE_ws-guard-chaos");

/// A server with topics on this Redis.
fn server(name: &str, redis: &Redis) -> Server {
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let bus = Some(Settings::new(&url, "test", name, 0).unwrap());
    let history = History { messages: 1000, bytes: 1 << 22, age: Duration::from_secs(60) };
    let (pattern, kind) = (Pattern::new("chaos*").unwrap(), Kind::History(history));
    let rules = InForce::new(Rules(vec![Arc::new(Rule { pattern, kind, restricted: false })]));
    let resume = Some(ResumeKey::new(b"a secret that servers share", ResumeKey::LIFETIME));
    let limits = TopicLimits { rules, bus, resume, ..TopicLimits::default() };
    let mut config = Config::new((Ipv4Addr::LOCALHOST, 0).into());
    config.shards = 1;
    // The machine that tests run on may be a busy one.
    config.stalls.refuse = Duration::from_secs(3600);
    config.stalls.shed = Duration::from_secs(3600);
    config.handler = HandlerKind::Topic(Box::new(limits));
    Server::start(config, AccessLog::none(), &Registry::new()).unwrap()
}

/// What relays have in common.
struct Seen {
    forgets: bool,
    publications: AtomicU64,
    /// The last position of each topic.
    positions: Mutex<HashMap<String, (Value, u64)>>,
}

/// A relay to this server, on a thread that ends with the test.
fn relay(server: SocketAddr, seen: &Arc<Seen>) -> SocketAddr {
    let (address, told) = std::sync::mpsc::channel();
    let seen = seen.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            address.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A connection that fails is one that the clients come back from.
                tokio::spawn(pass(stream, server, seen.clone()));
            }
        })
    });
    told.recv().unwrap()
}

async fn pass(stream: TcpStream, server: SocketAddr, seen: Arc<Seen>) -> Option<()> {
    let mut path = String::new();
    // The type is the library's.
    #[allow(clippy::result_large_err)]
    let look = |request: &Request, answer: Response| -> Result<Response, ErrorResponse> {
        path = request.uri().to_string();
        Ok(answer)
    };
    let mut client = accept_hdr_async(stream, look).await.ok()?;
    let stream = TcpStream::connect(server).await.ok()?;
    let (mut server, _) = client_async(format!("ws://{server}{path}"), stream).await.ok()?;
    loop {
        tokio::select! {
            said = client.next() => {
                let said = said?.ok()?;
                match forget(&said, &seen) {
                    Some(answer) => client.send(answer).await.ok()?,
                    None => server.send(said).await.ok()?,
                }
            }
            said = server.next() => {
                let said = said?.ok()?;
                remember(&said, &seen);
                client.send(said).await.ok()?;
            }
        }
    }
}

fn json(message: &Message, kind: &str) -> Option<Value> {
    let Message::Text(text) = message else { return None };
    let value: Value = serde_json::from_str(text.as_str()).ok()?;
    (value["type"] == kind).then_some(value)
}

/// The answer to a publication that is forgotten: as if it were stored.
fn forget(message: &Message, seen: &Seen) -> Option<Message> {
    let request = json(message, "publish")?;
    let number = seen.publications.fetch_add(1, Ordering::Relaxed) + 1;
    if !seen.forgets || !number.is_multiple_of(FORGETS) {
        return None;
    }
    let topic = request["topic"].as_str()?;
    let (epoch, offset) = seen.positions.lock().unwrap().get(topic)?.clone();
    let answer = serde_json::json!({
        "type": "published", "topic": topic, "epoch": epoch, "offset": offset + 1, "id": request["id"],
    });
    Some(Message::text(answer.to_string()))
}

fn remember(message: &Message, seen: &Seen) -> Option<()> {
    let said = json(message, "published")?;
    let at = (said["epoch"].clone(), said["offset"].as_u64()?);
    seen.positions.lock().unwrap().insert(said["topic"].as_str()?.to_owned(), at);
    Some(())
}

/// A run over such servers: whether the checker passes it, and what it says.
fn run(forgets: bool, folder: &Path) -> (bool, String) {
    let redis = Redis::start(&[]);
    let servers = ["one", "two"].map(|name| server(name, &redis));
    let seen =
        Arc::new(Seen { forgets, publications: AtomicU64::new(0), positions: Mutex::default() });
    let relays: Vec<String> =
        servers.iter().map(|server| relay(server.address(), &seen).to_string()).collect();
    let mut command = Command::new(PROGRAM);
    command.args(["clients", "--server", &relays.join(","), "--clients", "40", "--topics", "10"]);
    command.args(["--rate", "500", "--log"]).arg(folder.join("rust.clients.jsonl"));
    let mut clients = Process::spawn("the clients", command).unwrap();
    let says = |word: &str| clients.wait_for(PATIENCE, |line| (line == word).then_some(()));
    says("ready").unwrap();
    let enough = || (seen.publications.load(Ordering::Relaxed) >= RUN).then_some(());
    wait_for(PATIENCE, enough).expect("publications");
    clients.signal(Signal::SIGUSR2).unwrap();
    says("quiet").unwrap();
    assert!(clients.terminate().unwrap().success(), "{}", clients.lines().join("\n"));
    let output = Command::new(PROGRAM).arg("check").arg(folder).output().unwrap();
    servers.into_iter().for_each(Server::stop);
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_server_that_forgets_one_in_5_000_is_caught_within_one_run() {
    let [bad, good] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (passed, said) = run(true, bad.path());
    assert!(!passed && said.contains("lost in silence"), "{said}");
    assert!(fs::metadata(bad.path().join("rust.clients.jsonl")).unwrap().len() > 0);
    // The same run without it passes, so it is what was caught.
    let (passed, said) = run(false, good.path());
    assert!(passed, "{said}");
}
