//! What a server sees of its sockets when they are in a map of sockets, beside what it sees otherwise.
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::Path as File,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    fcntl::{SpliceFFlags, splice},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use socket2::SockRef;
use ws_guard_testkit::{
    netns::{Family, Pair, PairOptions},
    raw_tcp::{self, Opening, RawTcp},
};

use super::{
    PORT,
    line::{Line, Verdict},
};

/// For what crosses a pair of interfaces.
const MOMENT: Duration = Duration::from_millis(200);
/// How long a client sends that sends as much as is taken.
const STUFFING: Duration = Duration::from_secs(10);

nix::ioctl_read_bad!(
    /// FIONREAD, SIOCINQ: bytes that may be read at once (tcp(7)).
    readable_bytes,
    libc::FIONREAD,
    libc::c_int
);

nix::ioctl_read_bad!(
    /// SIOCOUTQNSD: bytes in the socket's queue that were not sent yet (linux/sockios.h).
    unsent_bytes,
    0x894B,
    libc::c_int
);

/// A connection, the server's end of which is ours.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    line: Option<Line>,
}

type Observe = fn(Connection) -> Result<String>;

/// What is looked at, by name.
const OBSERVATIONS: [(&str, Observe); 13] = [
    ("FIONREAD after 1,000 bytes", fionread),
    ("MSG_PEEK, then read", peek),
    ("SO_RCVLOWAT 1,000: readable at 500, at 1,000", low_water),
    ("splice of 1,000 bytes", splices),
    ("client ends its stream: read, then write", half_close),
    ("client resets: 10 bytes read, then", reset),
    ("programs go, 10 bytes unread, 10 to come: read", unload),
    ("programs go, all read, 10 to come: read", unload_read),
    ("program replaced by one that drops: read", replaced),
    ("8 MB in writes of 500 bytes, read as they come", stream),
    ("bytes taken in 10 s, server does not read", backlog),
    ("the same, and they are read: intact", backlog_read),
    ("segments of 1 byte taken in 10 s, unread", crumbs),
];

/// Each observation on a socket in no map, and in one without and with a parser.
pub fn observe(object: &File) -> Result<Vec<[String; 4]>> {
    let mut rows = Vec::new();
    for (name, observation) in OBSERVATIONS {
        let seen = |line| {
            let pair = Pair::new(PairOptions::default())?;
            connect(&pair, line).and_then(observation)
        };
        rows.push(row(object, name, seen)?);
    }
    rows.push(row(object, "segments 0..10 and 5..15: bytes read", overlap)?);
    Ok(rows)
}

fn row(
    object: &File,
    name: &str,
    seen: impl Fn(Option<Line>) -> Result<String>,
) -> Result<[String; 4]> {
    let line = |parser| Line::new(object, Verdict::Pass, parser).map(Some);
    let lines = [None, line(false)?, line(true)?];
    let [plain, map, parser] =
        lines.map(|line| seen(line).unwrap_or_else(|error| format!("{error:#}")));
    Ok([name.to_owned(), plain, map, parser])
}

/// A listener in the server's namespace, in the group that the line watches.
fn listen(pair: &Pair, line: Option<&Line>) -> Result<TcpListener> {
    let bind = || {
        let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
        pair.server.run(|| TcpListener::bind(at))?.context("listening")
    };
    match line {
        Some(line) => line.inside(bind),
        None => bind(),
    }
}

fn connect(pair: &Pair, line: Option<Line>) -> Result<Connection> {
    let listener = listen(pair, line.as_ref())?;
    let at = SocketAddr::new(Family::V4.server(), PORT);
    let client = pair.client.run(|| TcpStream::connect(at))?.context("connecting")?;
    client.set_nodelay(true)?;
    let (server, _) = listener.accept()?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(Connection { client, server, line })
}

fn readable(stream: &TcpStream) -> Result<i32> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the request writes one int.
    unsafe { readable_bytes(stream.as_raw_fd(), &mut bytes) }.context("FIONREAD")?;
    Ok(bytes)
}

fn unsent(stream: &TcpStream) -> Result<i32> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the request writes one int.
    unsafe { unsent_bytes(stream.as_raw_fd(), &mut bytes) }.context("SIOCOUTQNSD")?;
    Ok(bytes)
}

/// Readable within this time.
fn polls(stream: &TcpStream, time: Duration) -> Result<bool> {
    let mut waiting = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut waiting, PollTimeout::try_from(time)?)? > 0)
}

fn fionread(mut at: Connection) -> Result<String> {
    at.client.write_all(&[b'x'; 1000])?;
    thread::sleep(MOMENT);
    Ok(readable(&at.server)?.to_string())
}

fn peek(mut at: Connection) -> Result<String> {
    at.client.write_all(&[b'x'; 1000])?;
    thread::sleep(MOMENT);
    let mut bytes = [0; 2000];
    let peeked = at.server.peek(&mut bytes)?;
    Ok(format!("{peeked}, {}", at.server.read(&mut bytes)?))
}

fn low_water(mut at: Connection) -> Result<String> {
    let bytes: libc::c_int = 1000;
    // SAFETY: the option takes an int, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            at.server.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    Errno::result(set).context("SO_RCVLOWAT")?;
    let mut seen = [false; 2];
    for seen in &mut seen {
        at.client.write_all(&[b'x'; 500])?;
        *seen = polls(&at.server, MOMENT)?;
    }
    Ok(seen.map(|seen| if seen { "yes" } else { "no" }).join(", "))
}

fn splices(mut at: Connection) -> Result<String> {
    at.client.write_all(&[b'x'; 1000])?;
    thread::sleep(MOMENT);
    let (_out, to) = nix::unistd::pipe()?;
    let moved = splice(&at.server, None, &to, None, 1000, SpliceFFlags::SPLICE_F_NONBLOCK);
    Ok(moved.map_or_else(|error| error.to_string(), |bytes| bytes.to_string()))
}

/// What a read comes to.
fn read(stream: &mut TcpStream) -> String {
    match stream.read(&mut [0; 2000]) {
        Ok(bytes) => bytes.to_string(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn half_close(mut at: Connection) -> Result<String> {
    at.client.write_all(&[b'x'; 10])?;
    at.client.shutdown(Shutdown::Write)?;
    thread::sleep(MOMENT);
    let (data, end) = (read(&mut at.server), read(&mut at.server));
    at.server.write_all(b"bye")?;
    Ok(format!("{data}, {end}, then {} written", read(&mut at.client)))
}

fn reset(mut at: Connection) -> Result<String> {
    at.client.write_all(&[b'x'; 10])?;
    thread::sleep(MOMENT);
    SockRef::from(&at.client).set_linger(Some(Duration::ZERO))?;
    drop(at.client);
    thread::sleep(MOMENT);
    Ok(format!("{}, {}", read(&mut at.server), read(&mut at.server)))
}

/// The map and its programs go while the connection is open: a daemon that ends, with nothing pinned.
fn unload(mut at: Connection) -> Result<String> {
    at.client.write_all(b"0123456789")?;
    thread::sleep(MOMENT);
    drop(at.line.take());
    thread::sleep(MOMENT);
    finish(at, b"0123456789abcdefghij")
}

fn unload_read(mut at: Connection) -> Result<String> {
    at.client.write_all(b"0123456789")?;
    at.server.read_exact(&mut [0; 10])?;
    drop(at.line.take());
    thread::sleep(MOMENT);
    finish(at, b"abcdefghij")
}

/// Another program takes the place of the one that is attached, as in an upgrade.
fn replaced(mut at: Connection) -> Result<String> {
    if let Some(line) = &mut at.line {
        line.drop_everything()?;
    }
    finish(at, b"abcdefghij")
}

/// Ten bytes more and the stream's end, and what is read until then.
fn finish(mut at: Connection, expected: &[u8]) -> Result<String> {
    at.client.write_all(b"abcdefghij")?;
    at.client.shutdown(Shutdown::Write)?;
    thread::sleep(MOMENT);
    Ok(compare(&read_all(&mut at.server), expected))
}

/// What comes until the stream ends, or nothing more comes for a second.
fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut found = Vec::new();
    let mut buffer = [0; 4096];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        found.extend_from_slice(&buffer[..n]);
    }
    found
}

fn compare(found: &[u8], sent: &[u8]) -> String {
    let how = if found == sent { "intact" } else { "not what was sent" };
    format!("{} of {}, {how}", found.len(), sent.len())
}

fn stream(at: Connection) -> Result<String> {
    let Connection { mut client, mut server, line } = at;
    let sent: Vec<u8> = (0..8_000_000).map(|n| (n % 251) as u8).collect();
    let found = thread::scope(|scope| {
        scope.spawn(|| {
            // It fails when the reader has given up.
            let _ = sent.chunks(500).try_for_each(|part| client.write_all(part));
            let _ = client.shutdown(Shutdown::Write);
        });
        let found = read_all(&mut server);
        let _ = server.shutdown(Shutdown::Both);
        found
    });
    drop(line);
    Ok(compare(&found, &sent))
}

/// As many bytes as the client can send while nobody reads.
fn stuff(at: &mut Connection) -> Result<usize> {
    at.client.set_nonblocking(true)?;
    let bytes: Vec<u8> = (0..1 << 16).map(|n| (n % 251) as u8).collect();
    let (mut sent, start) = (0, Instant::now());
    while start.elapsed() < STUFFING {
        // The pattern goes on where the last write ended.
        match at.client.write(&bytes[sent % 251..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("sending"),
        }
    }
    at.client.set_nonblocking(false)?;
    Ok(sent)
}

fn backlog(mut at: Connection) -> Result<String> {
    let sent = stuff(&mut at)?;
    Ok(format!("{:.1} MB", sent as f64 / 1e6))
}

/// What comes in segments of one byte each costs the kernel most.
fn crumbs(mut at: Connection) -> Result<String> {
    let (mut taken, start, before) = (0, Instant::now(), slab()?);
    while start.elapsed() < STUFFING {
        at.client.write_all(b"x")?;
        let written = Instant::now();
        // Each for itself, or TCP would put them together.
        while unsent(&at.client)? > 0 {
            if written.elapsed() > MOMENT * 5 {
                let memory = (slab()? - before) / 1e6;
                return Ok(format!("{taken}, no more: {memory:.0} MB"));
            }
            thread::yield_now();
        }
        taken += 1;
    }
    Ok(format!("{taken}: {:.0} MB", (slab()? - before) / 1e6))
}

/// Bytes in the kernel's buffers for packets, and in pieces of 1 KiB, which a `sk_msg` takes; of everybody
/// (slabinfo(5)).
fn slab() -> Result<f64> {
    let text = fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?;
    let mut bytes = 0.0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        if name.starts_with("skbuff_") || name == "kmalloc-1k" {
            let mut number = || words.next().and_then(|word| word.parse::<f64>().ok());
            let (active, _, size) = (number(), number(), number());
            bytes += active.zip(size).map_or(0.0, |(active, size)| active * size);
        }
    }
    Ok(bytes)
}

fn backlog_read(mut at: Connection) -> Result<String> {
    let sent = stuff(&mut at)?;
    at.client.shutdown(Shutdown::Write)?;
    let (mut buffer, mut position) = (vec![0; 1 << 16], 0);
    loop {
        let n = at.server.read(&mut buffer).with_context(|| format!("after {position} bytes"))?;
        let intact = buffer[..n].iter().zip(position..).all(|(byte, n)| *byte == (n % 251) as u8);
        position += n;
        if !intact {
            return Ok(format!("other bytes before {position}"));
        }
        if n == 0 {
            return Ok(if position == sent {
                "yes".into()
            } else {
                format!("{position} of {sent}")
            });
        }
    }
}

/// A segment that comes again with more behind it, as TCP may send it again (RFC 9293, 3.10.7.4).
fn overlap(line: Option<Line>) -> Result<String> {
    let pair = Pair::new(PairOptions { offloads: false, ..PairOptions::default() })?;
    let listener = listen(&pair, line.as_ref())?;
    let client = SocketAddr::new(raw_tcp::address(Family::V4, 1), 4711);
    let server = SocketAddr::new(Family::V4.server(), PORT);
    let mut tcp = RawTcp::connect(&pair, client, server, &Opening::default())?;
    let (mut accepted, _) = listener.accept()?;
    let bytes = b"0123456789abcde";
    tcp.send(&tcp.segment(0, &bytes[..10]))?;
    thread::sleep(MOMENT);
    tcp.send(&tcp.segment(5, &bytes[5..]))?;
    thread::sleep(MOMENT);
    tcp.advance(bytes.len());
    ensure!(tcp.drain()?, "the server did not acknowledge it");
    Ok(compare(&read_all(&mut accepted), bytes))
}
