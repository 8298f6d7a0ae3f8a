//! Commands to a redis-server of a test's own, and a line to it that can be cut or moved.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

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
        let counted = made.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                counted.fetch_add(1, Ordering::Relaxed);
                let mut state = shared.lock().unwrap();
                let Some(target) = state.target else { continue };
                let Ok(other) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else {
                    continue;
                };
                for (from, to) in [(&stream, &other), (&other, &stream)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || pass(from, to));
                }
                state.open.extend([stream, other]);
            }
        });
        Line { address, made, state }
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

fn pass(mut from: TcpStream, mut to: TcpStream) -> Option<io::Error> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.shutdown(Shutdown::Both).err(),
            Ok(n) => to.write_all(&buffer[..n]).ok()?,
            Err(error) => return Some(error),
        }
    }
}
