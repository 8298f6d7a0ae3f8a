//! Hundreds of clients in one thread: flooders, and honest ones that count pongs.
//!
//! Each connects from its own address. An honest client sends its pings at a steady pace, each
//! with a unique payload, and occasionally a text; it counts every pong, and is done once all are
//! answered, or once the last one has waited for too long. The connections stay open until the
//! caller has checked what the guard reports about them.
use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::Builder,
    sync::Semaphore,
    task::{JoinHandle, LocalSet},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    flood::PAYLOAD,
    frame::{Decoder, Frame, encode, opcode},
    netns::Namespace,
};

/// Time-out of connecting and of the handshake.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum wait for the last answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of concurrent handshakes.
const AT_ONCE: usize = 32;
/// Number of pings that a blind flooder writes at once.
const BATCH: usize = 200;
/// Frequency of texts: after one in this number of pings.
const TEXT_EVERY: u32 = 2;

/// Behaviour of a flooder, from the first honest ping until after the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Pings of 125 bytes as fast as they go; reads nothing.
    Blind,
    /// A small ping as often as this; reads the answers.
    Steady(Duration),
}

/// Clients, and the task of each.
#[derive(Clone, Debug)]
pub struct Plan {
    pub server: SocketAddr,
    /// Addresses of honest clients.
    pub honest: Vec<IpAddr>,
    /// Interval of an honest client's pings; the first one is sent at random within it.
    pub every: Duration,
    /// Number of pings of each honest client.
    pub pings: u32,
    pub flooders: Vec<(IpAddr, Flood)>,
}

/// Activity and observations of a client.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Client's end of the connection, before any proxy.
    pub local: SocketAddr,
    /// Frames and pings that the socket took; a blind flooder's last may be incomplete.
    pub frames: u64,
    pub pings: u64,
    /// Time of each ping's answer, since the first ping was due.
    pub answered: Vec<Duration>,
    pub texts: u64,
    pub echoes: u64,
    /// Number of frames from the server that answer nothing.
    pub unasked: u64,
    /// Reason of a premature end of the connection.
    pub lost: Option<String>,
}

impl Seen {
    /// Return the number of unanswered pings.
    pub fn unanswered(&self) -> u64 {
        self.pings - self.answered.len() as u64
    }

    /// Return the maximum number of answers in any such window from `from` on.
    pub fn answered_within(&self, window: Duration, from: Duration) -> usize {
        let times: Vec<Duration> = self.answered.iter().copied().filter(|t| *t >= from).collect();
        let counts = times.iter().enumerate().map(|(first, start)| {
            times[first..].iter().take_while(|time| **time < *start + window).count()
        });
        counts.max().unwrap_or(0)
    }
}

/// Results of all clients, in the plan's order.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub honest: Vec<Seen>,
    pub flooders: Vec<Seen>,
}

impl Outcome {
    pub fn honest_pings(&self) -> u64 {
        self.honest.iter().map(|seen| seen.pings).sum()
    }

    pub fn unanswered(&self) -> u64 {
        self.honest.iter().map(Seen::unanswered).sum()
    }

    /// Return honest clients whose connection ended early, and the reasons.
    pub fn lost(&self) -> Vec<(SocketAddr, &str)> {
        let lost = self.honest.iter().filter_map(|seen| Some((seen.local, seen.lost.as_deref()?)));
        lost.collect()
    }
}

/// Run `plan` inside `namespace`, and call `look` before any connection is closed.
pub fn run<T: Send>(
    namespace: &Namespace,
    plan: &Plan,
    look: impl FnOnce(&Outcome) -> Result<T> + Send,
) -> Result<(Outcome, T)> {
    namespace.run(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, carry_out(plan, look))
    })?
}

async fn carry_out<T>(
    plan: &Plan,
    look: impl FnOnce(&Outcome) -> Result<T>,
) -> Result<(Outcome, T)> {
    let start = connect_all(plan).await?;
    let schedule = Schedule {
        start: Instant::now() + Duration::from_millis(100),
        every: plan.every,
        pings: plan.pings,
    };
    let end = schedule.end();
    let (mut honest, mut flooders) = (Vec::new(), Vec::new());
    let mut connections = start.into_iter();
    for (n, connection) in connections.by_ref().take(plan.honest.len()).enumerate() {
        honest.push(tokio::task::spawn_local(connection.honest(n, schedule)));
    }
    for (connection, (_, flood)) in connections.zip(&plan.flooders) {
        let flood = *flood;
        flooders.push(tokio::task::spawn_local(async move {
            match flood {
                Flood::Blind => connection.blind(schedule.start, end).await,
                Flood::Steady(pause) => connection.steady(schedule.start, pause, end).await,
            }
        }));
    }
    let (mut honest, flooders) = (all(honest).await?, all(flooders).await?);
    honest.iter_mut().for_each(Connection::look_for_end);
    let seen = |connections: &[Connection]| connections.iter().map(|c| c.seen.clone()).collect();
    let outcome = Outcome { honest: seen(&honest), flooders: seen(&flooders) };
    let looked = look(&outcome)?;
    Ok((outcome, looked))
}

async fn all<T>(tasks: Vec<JoinHandle<T>>) -> Result<Vec<T>> {
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.map_err(|error| anyhow!("a client panicked: {error}"))?);
    }
    Ok(results)
}

/// Open all connections of the plan, the honest ones first.
async fn connect_all(plan: &Plan) -> Result<Vec<Connection>> {
    let gate = Rc::new(Semaphore::new(AT_ONCE));
    let addresses = plan.honest.iter().chain(plan.flooders.iter().map(|(address, _)| address));
    let tasks = addresses.map(|address| {
        let (gate, address, server) = (gate.clone(), *address, plan.server);
        tokio::task::spawn_local(async move {
            let _permit = gate.acquire().await?;
            let open = timeout(TIMEOUT, Connection::open(address, server)).await;
            open.context("it takes too long")?
                .with_context(|| format!("connecting from {address} to {server}"))
        })
    });
    all(tasks.collect()).await?.into_iter().collect()
}

/// Schedule of an honest client's pings.
#[derive(Clone, Copy)]
struct Schedule {
    start: Instant,
    every: Duration,
    pings: u32,
}

impl Schedule {
    fn due(&self, phase: Duration, ping: u32) -> Instant {
        self.start + phase + self.every * ping
    }

    /// Return the latest time of the last honest ping.
    fn end(&self) -> Instant {
        self.due(Duration::ZERO, self.pings)
    }
}

/// Client after its handshake.
struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    seen: Seen,
    /// Payloads of unanswered pings and texts.
    outstanding: HashSet<Vec<u8>>,
}

impl Connection {
    async fn open(address: IpAddr, server: SocketAddr) -> Result<Connection> {
        let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(address, 0))?;
        let mut stream = socket.connect(server).await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let mut decoder = Decoder::default();
        decoder.push(&upgrade(&mut stream, server, "").await?);
        let seen = Seen {
            local,
            frames: 0,
            pings: 0,
            answered: Vec::new(),
            texts: 0,
            echoes: 0,
            unasked: 0,
            lost: None,
        };
        Ok(Connection { stream, decoder, seen, outstanding: HashSet::new() })
    }

    /// Send pings on schedule, and read all answers.
    async fn honest(mut self, number: usize, schedule: Schedule) -> Connection {
        let phase = schedule.every.mul_f64(fastrand::f64());
        let mut next = 0;
        let mut last = schedule.start;
        while next < schedule.pings || !self.outstanding.is_empty() {
            let sends = next < schedule.pings;
            let due = if sends { schedule.due(phase, next) } else { last + PATIENCE };
            if self.read_until(due, schedule.start).await.is_some() {
                break;
            }
            if Instant::now() < due {
                continue;
            }
            if !sends {
                break;
            }
            self.ping_and_text(number, next).await;
            last = Instant::now();
            next += 1;
        }
        self
    }

    async fn ping_and_text(&mut self, number: usize, ping: u32) {
        let mut frames = vec![Frame::ping(format!("ping {ping} of {number}"))];
        if ping.is_multiple_of(TEXT_EVERY) {
            frames.push(Frame::text(&format!("text {ping} of {number}")));
        }
        self.outstanding.extend(frames.iter().map(|frame| frame.payload.clone()));
        if let Err(error) = self.stream.write_all(&encode(&frames)).await {
            self.seen.lost = Some(format!("sending: {error}"));
            return;
        }
        self.seen.frames += frames.len() as u64;
        self.seen.pings += 1;
        self.seen.texts += frames.len() as u64 - 1;
    }

    /// Read until `due`, or until a read returned data.
    /// Returns `Some` if the connection has ended, with its reason recorded.
    async fn read_until(&mut self, due: Instant, start: Instant) -> Option<()> {
        let mut buffer = [0; 4096];
        let read = tokio::select! {
            biased;
            () = sleep_until(due) => return None,
            read = self.stream.read(&mut buffer) => read,
        };
        match read {
            Ok(0) => self.seen.lost = Some("the server closed".into()),
            Ok(n) => {
                self.decoder.push(&buffer[..n]);
                self.take(start);
                return None;
            }
            Err(error) => self.seen.lost = Some(format!("receiving: {error}")),
        }
        Some(())
    }

    fn take(&mut self, start: Instant) {
        while let Some(frame) = self.decoder.next_frame() {
            let asked = self.outstanding.remove(&frame.payload);
            match frame.opcode {
                opcode::PONG if asked => self.seen.answered.push(start.elapsed()),
                opcode::TEXT if asked => self.seen.echoes += 1,
                opcode::CLOSE => self.seen.lost = Some("the server sent a close frame".into()),
                _ => self.seen.unasked += 1,
            }
        }
    }

    /// Check whether the connection has ended unnoticed.
    fn look_for_end(&mut self) {
        let mut buffer = [0; 1];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => self.seen.lost = Some("the server closed at the end".into()),
            Ok(_) => self.seen.unasked += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.seen.lost = Some(format!("at the end: {error}")),
        }
    }

    async fn blind(mut self, start: Instant, end: Instant) -> Connection {
        let ping = encode(&[Frame::ping(vec![0x55; PAYLOAD])]);
        let batch = ping.repeat(BATCH);
        let mut bytes = 0;
        sleep_until(start).await;
        loop {
            // The rest of a ping that the last write cut comes first.
            let cut = bytes % ping.len();
            let written = tokio::select! {
                () = sleep_until(end) => break,
                written = self.stream.write(&batch[cut..]) => written,
            };
            match written {
                Ok(n) => bytes += n,
                Err(error) => {
                    self.seen.lost = Some(format!("sending: {error}"));
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        self.seen.pings = bytes.div_ceil(ping.len()) as u64;
        self.seen.frames = self.seen.pings;
        self
    }

    async fn steady(mut self, start: Instant, pause: Duration, end: Instant) -> Connection {
        let mut due = start;
        while due < end {
            if self.read_until(due, start).await.is_some() {
                break;
            }
            if Instant::now() < due {
                continue;
            }
            let frame = Frame::ping(format!("{}", self.seen.pings));
            let bytes = encode(std::slice::from_ref(&frame));
            // Under `drop` the socket fills up; that must not delay the answers.
            match self.stream.try_write(&bytes) {
                Ok(n) if n < bytes.len() => {
                    self.seen.lost = Some("the socket took half a ping".into());
                    break;
                }
                Ok(_) => {
                    self.outstanding.insert(frame.payload);
                    self.seen.pings += 1;
                    self.seen.frames += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.seen.lost = Some(format!("sending: {error}"));
                    break;
                }
            }
            due += pause;
        }
        // The last answers.
        let by = Instant::now() + Duration::from_millis(500);
        while Instant::now() < by && self.read_until(by, start).await.is_none() {}
        self
    }
}

/// Request an upgrade with further header lines; return the bytes after the answer.
pub(crate) async fn upgrade(
    stream: &mut TcpStream,
    server: SocketAddr,
    lines: &str,
) -> Result<Vec<u8>> {
    // Key of RFC 6455, 1.3: whether the answer to it is right does not matter here.
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {server}\r\n{lines}Upgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "closed during the handshake");
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..end]).into_owned();
            ensure!(head.starts_with("HTTP/1.1 101 "), "refused to upgrade:\n{head}");
            return Ok(answer.split_off(end + 4));
        }
    }
}
