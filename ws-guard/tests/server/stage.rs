//! A server in this process, and a client that writes arbitrary bytes.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prometheus::{Encoder, Registry, TextEncoder};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use ws_guard_server::{
    Config, PingPolicy, PingRates, Pings, Server,
    access_log::{AccessLog, Flush},
    topics::{bus::Bus, exchange::Exchange, local_bus::LocalBus},
};
use ws_guard_testkit::frame::{Decoder, Frame, encode, opcode};
pub use ws_guard_testkit::wait::wait_for;

/// Time limit for anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n";

/// The access log so far.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A server with a readable log.
pub struct Stage {
    server: Option<Server>,
    pub address: SocketAddr,
    registry: Registry,
    lines: Lines,
    _flush: Flush,
}

impl Stage {
    /// Start a server on a free port, with one thread and the changes of `configure`.
    pub fn start(configure: impl FnOnce(&mut Config)) -> Stage {
        Stage::start_on(LocalBus::connect, configure)
    }

    /// Start the same with another bus for topics.
    pub fn start_on(
        connect: impl FnOnce(Arc<Exchange>) -> Arc<dyn Bus>,
        configure: impl FnOnce(&mut Config),
    ) -> Stage {
        let mut config = Config::new((Ipv4Addr::LOCALHOST, 0).into());
        config.shards = 1;
        // The test machine may be busy.
        config.stalls.refuse = Duration::from_secs(3600);
        config.stalls.shed = Duration::from_secs(3600);
        configure(&mut config);
        let (registry, lines) = (Registry::new(), Lines::default());
        let (access_log, flush) = AccessLog::to(lines.clone());
        let server = Server::start_on(connect, config, access_log, &registry);
        let server = server.expect("the server starts");
        let address = server.address();
        Stage { server: Some(server), address, registry, lines, _flush: flush }
    }

    /// Stop it; return the time it took.
    pub fn stop(&mut self) -> Duration {
        let start = Instant::now();
        self.server.take().expect("it is still there").stop();
        start.elapsed()
    }

    pub fn config(&self) -> &Config {
        &self.server.as_ref().expect("it is still there").service().config
    }

    fn lines(&self) -> Vec<Value> {
        let bytes = self.lines.0.lock().unwrap();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).expect("a line of JSON")).collect()
    }

    /// Wait for the access log's line about `peer` with this event, and return it.
    pub fn logged(&self, event: &str, peer: SocketAddr) -> Value {
        let peer = peer.to_string();
        let wanted = |line: &Value| line["event"] == event && line["peer"] == peer;
        let line = wait_for(PATIENCE, || self.lines().into_iter().find(wanted));
        line.unwrap_or_else(|| panic!("no {event} of {peer} in {:?}", self.lines()))
    }

    /// Return cause and status code of the end of `client`'s connection.
    pub fn closed(&self, client: &Client) -> (String, u64) {
        let line = self.logged("close", client.local);
        (line["cause"].as_str().unwrap().to_owned(), line["code"].as_u64().unwrap())
    }

    /// Return a sample, named as `name{label="value"}`; 0 where there is none.
    pub fn metric(&self, sample: &str) -> f64 {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// A client past its handshake, which does nothing on its own.
pub struct Client {
    pub stream: TcpStream,
    pub local: SocketAddr,
    /// Head of the server's answer.
    pub answer: String,
    decoder: Decoder,
}

impl Client {
    pub fn connect(server: SocketAddr) -> Client {
        Client::request(connect(server), "", &[])
    }

    /// Upgrade with additional header fields, and frames right behind them.
    /// Each field ends in a line break.
    pub fn request(stream: TcpStream, fields: &str, early: &[Frame]) -> Client {
        Client::ask(stream, &format!("{REQUEST}{fields}"), early)
    }

    /// Do the same with a given request, without the empty line at its end.
    pub fn ask(mut stream: TcpStream, request: &str, early: &[Frame]) -> Client {
        let mut bytes = format!("{request}\r\n").into_bytes();
        bytes.extend(encode(early));
        stream.write_all(&bytes).unwrap();
        Client::upgraded(stream)
    }

    /// Read the answer to a request already sent.
    pub fn upgraded(stream: TcpStream) -> Client {
        let mut client = Client {
            local: stream.local_addr().unwrap(),
            stream,
            answer: String::new(),
            decoder: Decoder::default(),
        };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(client.stream.read(&mut byte).unwrap(), 1, "{head:?}");
            head.push(byte[0]);
        }
        client.answer = String::from_utf8(head).unwrap();
        assert!(client.answer.starts_with("HTTP/1.1 101"), "{}", client.answer);
        client
    }

    pub fn send(&mut self, frames: &[Frame]) {
        self.stream.write_all(&encode(frames)).unwrap();
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Read the next frame; `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Frame> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.decoder.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error} reading as {}", self.local),
            }
        }
    }

    /// Read the next message; skip other frames.
    pub fn message(&mut self) -> Vec<u8> {
        loop {
            let frame = self.next().expect("a message");
            if frame.opcode < 8 {
                return frame.payload;
            }
        }
    }

    /// Read to the close frame; return its status code, or `None` without one.
    pub fn close_code(&mut self) -> Option<u16> {
        loop {
            let frame = self.next()?;
            if frame.opcode == opcode::CLOSE {
                let code = frame.payload.first_chunk().copied();
                return Some(code.map_or(1005, u16::from_be_bytes));
            }
        }
    }
}

/// Open a TCP connection from 127.0.0.1.
pub fn connect(server: SocketAddr) -> TcpStream {
    connect_from(Ipv4Addr::LOCALHOST, server, None)
}

/// Return limits by which this number of each client's pings are answered.
pub fn limited(rates: PingRates) -> Arc<Pings> {
    Arc::new(Pings::new(PingPolicy::new(rates)))
}

/// Return limits by which all pings are answered.
pub fn unlimited() -> Arc<Pings> {
    limited(PingRates::default())
}

/// Open a TCP connection from a loopback address, with this receive buffer size.
pub fn connect_from(
    source: Ipv4Addr,
    server: SocketAddr,
    receive_buffer: Option<usize>,
) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect_timeout(&server.into(), PATIENCE).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// End the connection with a RST.
pub fn reset(client: Client) {
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Return the whole answer to a request that is not upgraded.
pub fn refused(mut stream: TcpStream, request: &[u8]) -> String {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A reset may follow an answer given before everything was read.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Return a port that is free for now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
