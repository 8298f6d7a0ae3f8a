//! WebSocket client with its own counts, and control of each TCP segment's end.
use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use crate::{
    frame::{Decoder, Frame, encode, opcode},
    netns::Namespace,
    wire::Wire,
};

/// Time-out of connecting, of the handshake, and of each write.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of an answer to an upgrade request.
const MAX_ANSWER: usize = 16 * 1024;

nix::ioctl_read_bad!(
    /// SIOCOUTQNSD: bytes in the socket's queue that were not sent (linux/sockios.h).
    unsent_bytes,
    0x894B,
    i32
);
nix::ioctl_read_bad!(
    /// SIOCOUTQ: bytes in the socket's queue that were not acknowledged yet (tcp(7)).
    unacknowledged_bytes,
    nix::libc::TIOCOUTQ,
    i32
);

/// Segmentation of writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// One write; TCP cuts at the MSS.
    Whole,
    /// Length of a segment in bytes, from 1.
    Every(usize),
    /// A segment ends at each of these ascending offsets.
    At(Vec<usize>),
}

impl Cut {
    fn parts<'a>(&self, bytes: &'a [u8]) -> Vec<&'a [u8]> {
        match self {
            Cut::Whole => vec![bytes],
            Cut::Every(size) => bytes.chunks((*size).max(1)).collect(),
            Cut::At(offsets) => {
                let ends = offsets.iter().copied().chain([bytes.len()]);
                let mut from = 0;
                ends.filter_map(|end| {
                    let part = bytes.get(from..end)?;
                    from = end;
                    (!part.is_empty()).then_some(part)
                })
                .collect()
            }
        }
    }
}

/// Frames and messages sent, counted before encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub frames: u64,
    pub pings: u64,
    pub pongs: u64,
    /// Messages ended: text, binary and continuation frames with FIN.
    pub messages: u64,
    pub bytes: u64,
}

/// Frames and messages received.
#[derive(Debug, Default)]
pub struct Received {
    pub frames: u64,
    pub pings: u64,
    pub pongs: u64,
    /// Whole messages.
    pub messages: u64,
    pub bytes: u64,
    /// Messages not taken yet, with the time of their completion.
    pub kept: VecDeque<(Instant, Vec<u8>)>,
    /// Payloads of the last 1,000 pongs.
    pub pong_payloads: VecDeque<Vec<u8>>,
    /// Payload of the latest ping.
    pub asked: Option<Vec<u8>>,
    /// Status code of the server's close frame, 1005 for none in it (RFC 6455, 7.1.5).
    pub close: Option<u16>,
    /// `true` after the end of the stream.
    pub ended: bool,
    partial: Vec<u8>,
}

/// Options of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Address to connect from, one of the namespace's.
    pub source: Option<IpAddr>,
    /// `true` to read from the server; a flooder does not.
    pub reads: bool,
    /// Receive buffer in bytes, or the kernel's default.
    pub receive_buffer: Option<usize>,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions { source: None, reads: true, receive_buffer: None }
    }
}

type Shared = Arc<(Mutex<Received>, Condvar)>;

/// Connected client, after its handshake.
pub struct Client {
    stream: Wire,
    sent: Sent,
    received: Shared,
    local: SocketAddr,
    /// Rest of a frame that a flood left unsent: it is sent before all else.
    unsent: Vec<u8>,
}

impl Client {
    /// Connect from inside `namespace` and upgrade.
    pub fn connect(
        namespace: &Namespace,
        server: SocketAddr,
        options: ConnectOptions,
    ) -> Result<Client> {
        Client::connect_with(namespace, server, options, "", &Cut::Whole)
    }

    /// Connect as [`Client::connect`], with further header lines and a segmentation.
    /// Each line has its line end.
    pub fn connect_with(
        namespace: &Namespace,
        server: SocketAddr,
        options: ConnectOptions,
        lines: &str,
        cut: &Cut,
    ) -> Result<Client> {
        let stream = open(namespace, server, options)?;
        Client::over(Wire::plain(stream), server, options, lines, cut)
    }

    /// Connect as [`Client::connect`], inside TLS, with any server certificate.
    pub fn connect_tls(
        namespace: &Namespace,
        server: SocketAddr,
        options: ConnectOptions,
    ) -> Result<Client> {
        let stream = open(namespace, server, options)?;
        let wire = Wire::tls(stream).with_context(|| format!("TLS handshake with {server}"))?;
        Client::over(wire, server, options, "", &Cut::Whole)
    }

    fn over(
        stream: Wire,
        server: SocketAddr,
        options: ConnectOptions,
        lines: &str,
        cut: &Cut,
    ) -> Result<Client> {
        let local = stream.tcp().local_addr()?;
        let received = Shared::default();
        let mut client =
            Client { stream, sent: Sent::default(), received, local, unsent: Vec::new() };
        let rest = client.upgrade(server, lines, cut)?;
        if options.reads {
            receive(client.stream.try_clone()?, rest, client.received.clone());
        }
        Ok(client)
    }

    /// Request an upgrade, and return the bytes after the answer.
    fn upgrade(&mut self, server: SocketAddr, lines: &str, cut: &Cut) -> Result<Vec<u8>> {
        let key = generate_key();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {server}\r\n{lines}Upgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        for part in cut.parts(request.as_bytes()) {
            self.write_segment(part).context("sending the upgrade request")?;
        }
        read_answer(&mut self.stream, &key)
    }

    /// Return the client's end of the connection, as the guard names it.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Return the connection, for direct writes.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.stream
    }

    /// Return the socket.
    pub fn tcp(&self) -> &TcpStream {
        self.stream.tcp()
    }

    /// Send frames with the given segmentation.
    pub fn send(&mut self, frames: &[Frame], cut: &Cut) -> Result<()> {
        self.count(frames);
        for part in cut.parts(&encode(frames)) {
            self.write_segment(part)?;
        }
        Ok(())
    }

    /// Send one frame in its own segment, if it fits.
    pub fn send_one(&mut self, frame: Frame) -> Result<()> {
        self.send(&[frame], &Cut::Whole)
    }

    /// Write bytes unchanged and uncounted, and wait until all have left the socket.
    /// So the next write starts a new segment.
    pub fn write_segment(&mut self, bytes: &[u8]) -> Result<()> {
        let bytes = [&std::mem::take(&mut self.unsent), bytes].concat();
        self.stream.write_all(&bytes).with_context(|| format!("{} sending", self.local))?;
        let deadline = Instant::now() + TIMEOUT;
        while self.unsent()? > 0 {
            if Instant::now() > deadline {
                bail!("{}: the server takes no more bytes", self.local);
            }
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// Queue the rest of a frame, whose beginning the socket took, before all else.
    pub fn send_first(&mut self, rest: &[u8]) {
        self.unsent = rest.to_vec();
    }

    /// Send the rest of a flood's last frame; `false` if there is none.
    pub fn send_rest(&mut self) -> Result<bool> {
        let left = !self.unsent.is_empty();
        if left {
            self.write_segment(&[])?;
        }
        Ok(left)
    }

    /// Write as much of `bytes` as the socket takes at once, uncounted.
    /// Returns `Ok(0)` if it takes none within the given time.
    pub fn write_some(&mut self, bytes: &[u8], timeout: Duration) -> Result<usize> {
        self.stream.tcp().set_write_timeout(Some(timeout))?;
        let result = self.stream.write(bytes);
        self.stream.tcp().set_write_timeout(Some(TIMEOUT))?;
        match result {
            Ok(n) => Ok(n),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error).with_context(|| format!("{} sending", self.local)),
        }
    }

    /// Wait until everything written is acknowledged; `false` when the time is up.
    pub fn drain(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            match self.unacknowledged() {
                Ok(0) => return true,
                Ok(_) if Instant::now() <= deadline => thread::sleep(Duration::from_millis(1)),
                _ => return false,
            }
        }
    }

    /// Return the number of bytes written that the server has not acknowledged.
    pub fn unacknowledged(&self) -> Result<u64> {
        let mut bytes = 0;
        // SAFETY: the descriptor is open as long as `self.stream`; the request writes one int.
        unsafe { unacknowledged_bytes(self.stream.tcp().as_raw_fd(), &mut bytes) }
            .context("SIOCOUTQ")?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    fn unsent(&self) -> Result<i32> {
        let mut bytes = 0;
        // SAFETY: the descriptor is open as long as `self.stream`, and the request writes one int.
        unsafe { unsent_bytes(self.stream.tcp().as_raw_fd(), &mut bytes) }
            .context("SIOCOUTQNSD")?;
        Ok(bytes)
    }

    /// Send a message and wait for its echo; return the time that took.
    /// It is from before the first byte was sent to after the last one came. For a client that does
    /// not read in the background, and on one thread, so that only the network has to wake it.
    pub fn echo(&mut self, text: &str) -> Result<Duration> {
        let frame = encode(&[Frame::text(text)]);
        let echo = encode(&[Frame { mask: None, ..Frame::text(text) }]);
        let mut answer = vec![0; echo.len()];
        let start = Instant::now();
        self.stream.write_all(&frame)?;
        self.stream.read_exact(&mut answer)?;
        let took = start.elapsed();
        ensure!(answer == echo, "{answer:?} came back for {text:?}");
        Ok(took)
    }

    /// Return the data received so far.
    /// Reading continues in the background; hold the guard briefly.
    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.received.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until received data satisfies `wanted`; `false` when the time is up.
    pub fn wait(&self, timeout: Duration, mut wanted: impl FnMut(&Received) -> bool) -> bool {
        let received = self.received();
        let waited =
            self.received.1.wait_timeout_while(received, timeout, |received| !wanted(received));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Send a close frame (status 1000) and wait for the end of the stream.
    ///
    /// # Errors
    /// When the server does not close within 10 s.
    pub fn close(mut self) -> Result<Sent> {
        self.send_one(Frame::new(opcode::CLOSE, 1000u16.to_be_bytes()))?;
        ensure!(self.wait(TIMEOUT, |r| r.ended), "{}: the server did not close", self.local);
        Ok(self.sent)
    }

    /// Reset the connection, like a client that is killed with unread data.
    pub fn reset(self) -> Result<()> {
        socket2::SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    fn count(&mut self, frames: &[Frame]) {
        for frame in frames {
            self.sent.frames += 1;
            self.sent.bytes += frame.payload.len() as u64;
            match frame.opcode {
                opcode::PING => self.sent.pings += 1,
                opcode::PONG => self.sent.pongs += 1,
                opcode::CONTINUATION | opcode::TEXT | opcode::BINARY if frame.fin => {
                    self.sent.messages += 1;
                }
                _ => {}
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the reading thread, which holds a clone of the socket.
        let _ = self.stream.tcp().shutdown(Shutdown::Both);
    }
}

fn open(namespace: &Namespace, server: SocketAddr, options: ConnectOptions) -> Result<TcpStream> {
    namespace
        .run(|| connect(server, options))?
        .with_context(|| format!("connecting to {server} from {}", namespace.name()))
}

fn connect(server: SocketAddr, options: ConnectOptions) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(source) = options.source {
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    }
    socket.connect_timeout(&server.into(), TIMEOUT)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket.into())
}

/// Read the answer to an upgrade request, and return the bytes after it.
fn read_answer(stream: &mut Wire, key: &str) -> Result<Vec<u8>> {
    stream.tcp().set_read_timeout(Some(TIMEOUT))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        let n = stream.read(&mut buffer).context("reading the answer to the upgrade request")?;
        ensure!(n > 0, "the server closed during the handshake");
        answer.extend_from_slice(&buffer[..n]);
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(answer.len() < MAX_ANSWER, "the server's answer has no end");
    };
    stream.tcp().set_read_timeout(None)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let accept = derive_accept_key(key.as_bytes());
    let accepted = head.lines().any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == accept
        })
    });
    ensure!(
        head.starts_with("HTTP/1.1 101 ") && accepted,
        "the server refused to upgrade:\n{head}"
    );
    Ok(answer.split_off(end))
}

/// Read and count on a thread until the stream ends.
fn receive(mut stream: Wire, first: Vec<u8>, received: Shared) {
    thread::spawn(move || {
        let mut decoder = Decoder::default();
        decoder.push(&first);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            take_frames(&mut decoder, &received);
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => decoder.push(&buffer[..n]),
            }
        }
        received.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        received.1.notify_all();
    });
}

fn take_frames(decoder: &mut Decoder, received: &Shared) {
    let now = Instant::now();
    let mut counts = received.0.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(frame) = decoder.next_frame() {
        counts.take(frame, now);
    }
    drop(counts);
    received.1.notify_all();
}

impl Received {
    fn take(&mut self, frame: Frame, now: Instant) {
        self.frames += 1;
        self.bytes += frame.payload.len() as u64;
        match frame.opcode {
            opcode::PING => {
                self.pings += 1;
                self.asked = Some(frame.payload);
            }
            opcode::PONG => {
                self.pongs += 1;
                if self.pong_payloads.len() == 1000 {
                    self.pong_payloads.pop_front();
                }
                self.pong_payloads.push_back(frame.payload);
            }
            opcode::CLOSE => {
                let code = frame.payload.first_chunk::<2>();
                self.close = Some(code.map_or(1005, |code| u16::from_be_bytes(*code)));
            }
            _ => {
                self.partial.extend(frame.payload);
                if frame.fin {
                    self.messages += 1;
                    self.kept.push_back((now, std::mem::take(&mut self.partial)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cut;

    #[test]
    fn cuts_lose_nothing() {
        let bytes: Vec<u8> = (0..10).collect();
        for cut in
            [Cut::Whole, Cut::Every(1), Cut::Every(3), Cut::At(vec![2, 2, 7]), Cut::At(vec![10])]
        {
            let parts = cut.parts(&bytes);
            assert_eq!(parts.concat(), bytes, "{cut:?}");
            assert!(parts.iter().all(|part| !part.is_empty()), "{cut:?}");
        }
        assert_eq!(Cut::At(vec![2, 7]).parts(&bytes).len(), 3);
    }
}
