//! Servers on one Redis, and their clients.

use std::{
    net::{Ipv4Addr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use prometheus::{Encoder, Registry, TextEncoder};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};
use ws_guard_server::{
    Config, HandlerKind, Server,
    access_log::AccessLog,
    topics::{
        TopicLimits,
        redis::Settings,
        resume::ResumeKey,
        rules::{History, InForce, Kind, Pattern, Queueing, Rule, Rules},
    },
};
use ws_guard_testkit::wait;

/// How long anything may take that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// [`wait::wait_for`] with that.
pub fn wait_for<T>(ask: impl FnMut() -> Option<T>) -> Option<T> {
    wait::wait_for(PATIENCE, ask)
}

pub struct Stage {
    pub server: Option<Server>,
    registry: Registry,
    /// Which may be changed.
    pub rules: Arc<InForce>,
}

pub fn rules() -> Rules {
    with_history(100)
}

/// For topics whose readers may be far behind.
pub fn long_history() -> Rules {
    with_history(10_000)
}

fn with_history(messages: usize) -> Rules {
    let age = Duration::from_secs(60);
    let history = Kind::History(History { messages, bytes: 16 << 20, age });
    let ack_timeout = Duration::from_millis(1500);
    let queue = Kind::Queue(Queueing { entries: 20, prefetch: 2, ack_timeout, max_deliveries: 2 });
    let rule = |pattern, kind| {
        let pattern = Pattern::new(pattern).unwrap();
        Arc::new(Rule { pattern, kind, restricted: false })
    };
    Rules(vec![rule("chat*", history), rule("jobs*", queue)])
}

impl Stage {
    /// A server on the Redis at this port.
    pub fn start(port: u16) -> Stage {
        static SERVERS: AtomicU32 = AtomicU32::new(1);
        let name = format!("server-{}", SERVERS.fetch_add(1, Ordering::Relaxed));
        Stage::start_as(&name, port, 0)
    }

    pub fn start_as(name: &str, port: u16, wait_replicas: usize) -> Stage {
        Stage::start_at(name, &format!("redis://127.0.0.1:{port}"), wait_replicas)
    }

    /// A server on what this URL names.
    pub fn start_at(name: &str, url: &str, wait_replicas: usize) -> Stage {
        let bus = Some(Settings::new(url, "test", name, wait_replicas).unwrap());
        let resume = Some(ResumeKey::new(b"a secret that servers share", ResumeKey::LIFETIME));
        let rules = InForce::new(rules());
        let limits = TopicLimits { rules: rules.clone(), bus, resume, ..TopicLimits::default() };
        let mut config = Config::new((Ipv4Addr::LOCALHOST, 0).into());
        config.shards = 1;
        config.stalls.refuse = Duration::from_secs(3600);
        config.stalls.shed = Duration::from_secs(3600);
        config.handler = HandlerKind::Topic(Box::new(limits));
        let registry = Registry::new();
        let server = Server::start(config, AccessLog::none(), &registry).unwrap();
        let stage = Stage { server: Some(server), registry, rules };
        stage.connected();
        stage
    }

    /// Wait until it is connected to Redis.
    pub fn connected(&self) {
        let up = || (self.metric("wsguard_server_bus_connected") == 1.0).then_some(());
        assert!(wait_for(up).is_some(), "the bus does not connect");
    }

    /// Wait until it is not.
    pub fn away(&self) {
        let down = || (self.metric("wsguard_server_bus_connected") == 0.0).then_some(());
        assert!(wait_for(down).is_some(), "the bus does not notice");
    }

    pub fn stop(mut self) {
        self.server.take().unwrap().stop();
    }

    pub fn client(&self) -> Client {
        self.open("")
    }

    pub fn open(&self, query: &str) -> Client {
        let address = self.server.as_ref().unwrap().address();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(format!("ws://{address}/{query}"), stream).unwrap();
        Client { socket, number: 0, early: Vec::new() }
    }

    /// The value of a sample; 0 where there is none.
    pub fn metric(&self, sample: &str) -> f64 {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

pub struct Client {
    socket: WebSocket<TcpStream>,
    number: u64,
    /// What came before an answer.
    early: Vec<Value>,
}

impl Client {
    fn read(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.socket.read().expect("a message") {
                return serde_json::from_str(text.as_str()).unwrap();
            }
        }
    }

    pub fn send(&mut self, request: &Value) {
        self.socket.send(Message::text(request.to_string())).unwrap();
    }

    /// Ask, and wait for the answer; what comes before it is kept.
    pub fn ask(&mut self, mut request: Value) -> Value {
        self.number += 1;
        request["id"] = self.number.into();
        self.send(&request);
        loop {
            let said = self.read();
            if said["id"] == self.number {
                return said;
            }
            self.early.push(said);
        }
    }

    /// The next thing that is no answer.
    pub fn next(&mut self) -> Value {
        if self.early.is_empty() { self.read() } else { self.early.remove(0) }
    }

    /// What is there of such things within this time.
    pub fn within(&mut self, time: Duration) -> Option<Value> {
        if !self.early.is_empty() {
            return Some(self.next());
        }
        self.socket.get_ref().set_read_timeout(Some(time)).unwrap();
        let read = self.socket.read();
        self.socket.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        match read {
            Ok(Message::Text(text)) => Some(serde_json::from_str(text.as_str()).unwrap()),
            _ => None,
        }
    }

    pub fn subscribe(&mut self, topic: &str) -> Value {
        self.ask(json!({"type": "subscribe", "topic": topic}))
    }

    pub fn since(&mut self, topic: &str, at: &Value) -> Value {
        let since = json!({"epoch": at["epoch"], "offset": at["offset"]});
        self.ask(json!({"type": "subscribe", "topic": topic, "since": since}))
    }

    pub fn publish(&mut self, topic: &str, data: Value) -> Value {
        self.ask(json!({"type": "publish", "topic": topic, "data": data}))
    }

    pub fn ack(&mut self, message: &Value) -> Value {
        let (topic, entry) = (&message["topic"], &message["entry"]);
        self.ask(json!({"type": "ack", "topic": topic, "entry": entry}))
    }

    /// The next message, whose data has to be this.
    pub fn expect(&mut self, data: Value) -> Value {
        let message = self.next();
        assert_eq!((&message["type"], &message["data"]), (&"message".into(), &data), "{message}");
        message
    }
}
