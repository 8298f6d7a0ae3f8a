//! Commands to a redis-server of a test's own, and a line to it that can be cut or moved.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::stage::PATIENCE;

pub use ws_guard_testkit::redis::Redis;

/// What tests say to Redis themselves.
pub trait Ask {
    /// Run a command that may fail.
    fn try_ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> redis::RedisResult<T>;

    /// Run a command.
    fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        self.try_ask(command).unwrap()
    }
}

impl Ask for Redis {
    fn try_ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> redis::RedisResult<T> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut connection = client.get_connection()?;
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query(&mut connection)
    }
}

/// A TCP proxy with one target at a time.
pub struct Line {
    pub address: SocketAddr,
    /// Connections that were made to it.
    made: Arc<AtomicUsize>,
    state: Arc<Mutex<State>>,
    gate: Arc<Gate>,
}

/// A gate that answers wait at.
#[derive(Default)]
struct Gate {
    held: Mutex<Option<Held>>,
    changed: Condvar,
}

/// Requests whose answers are held.
struct Held {
    text: String,
    /// The number of those whose answers may pass.
    passing: usize,
    seen: usize,
}

struct State {
    target: Option<SocketAddr>,
    open: Vec<TcpStream>,
}

impl Line {
    pub fn to(port: u16) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target = Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let state = Arc::new(Mutex::new(State { target, open: Vec::new() }));
        let (shared, made) = (state.clone(), Arc::new(AtomicUsize::new(0)));
        let (counted, gate) = (made.clone(), Arc::new(Gate::default()));
        let held = gate.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                counted.fetch_add(1, Ordering::Relaxed);
                let mut state = shared.lock().unwrap();
                let Some(target) = state.target else { continue };
                let Ok(other) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else {
                    continue;
                };
                let asked = Arc::new(AtomicUsize::new(0));
                for (from, to, up) in [(&stream, &other, true), (&other, &stream, false)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (gate, asked) = (held.clone(), asked.clone());
                    let each = move |bytes: &[u8]| match up {
                        true => gate.count(bytes, &asked),
                        false => gate.wait(&asked),
                    };
                    std::thread::spawn(move || pass(from, to, each));
                }
                state.open.extend([stream, other]);
            }
        });
        Line { address, made, state, gate }
    }

    /// Hold the answers of a connection from its next request with this text on.
    pub fn hold(&self, text: &str) {
        let held = Held { text: text.to_owned(), passing: 0, seen: 0 };
        *self.gate.held.lock().unwrap() = Some(held);
    }

    /// Let this number of the requests be answered, or all.
    pub fn let_pass(&self, passing: Option<usize>) {
        let mut held = self.gate.held.lock().unwrap();
        match passing {
            Some(passing) => held.as_mut().unwrap().passing = passing,
            None => *held = None,
        }
        self.gate.changed.notify_all();
    }

    /// Wait until this number of the requests was made.
    pub fn wait_for_held(&self, requests: usize) {
        let held = self.gate.held.lock().unwrap();
        let fewer = |held: &mut Option<Held>| held.as_ref().unwrap().seen < requests;
        let (_held, timed) = self.gate.changed.wait_timeout_while(held, PATIENCE, fewer).unwrap();
        assert!(!timed.timed_out(), "{requests} requests are not made");
    }

    /// How many connections were made to it.
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Connect to this port from now on, or to none; connections of before are cut.
    pub fn turn(&self, port: Option<u16>) {
        let mut state = self.state.lock().unwrap();
        state.target = port.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Gate {
    /// Count a request if it is one of those.
    fn count(&self, bytes: &[u8], asked: &AtomicUsize) {
        if let Some(held) = &mut *self.held.lock().unwrap()
            && bytes.windows(held.text.len()).any(|part| part == held.text.as_bytes())
        {
            held.seen += 1;
            asked.store(held.seen, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    /// Wait until an answer may pass.
    fn wait(&self, asked: &AtomicUsize) {
        let held = self.held.lock().unwrap();
        let closed = |held: &mut Option<Held>| {
            held.as_ref().is_some_and(|held| asked.load(Ordering::Relaxed) > held.passing)
        };
        drop(self.changed.wait_while(held, closed).unwrap());
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, each: impl Fn(&[u8])) -> Option<io::Error> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.shutdown(Shutdown::Both).err(),
            Ok(n) => {
                each(&buffer[..n]);
                to.write_all(&buffer[..n]).ok()?;
            }
            Err(error) => return Some(error),
        }
    }
}
