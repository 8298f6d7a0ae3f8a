//! Real connections on loopback, each showing one phenomenon.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

/// Upgrade request with the key of RFC 6455, 1.3.
const REQUEST: &[u8] =
    b"GET /demo HTTP/1.1\r\nHost: demo\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;
/// Pause between two segments, so that they are not merged.
const APART: Duration = Duration::from_millis(30);
/// Time between two heartbeats.
const BEAT: Duration = Duration::from_millis(120);
/// Pause long enough to be reported: above the minimum, and many times the others.
const PAUSE: Duration = Duration::from_millis(450);
/// Unanswered heartbeats: more than a second, the least silence that is reported.
const UNANSWERED: u8 = 12;

/// A connection of the demonstration.
pub struct Scene {
    pub title: &'static str,
    pub explanation: &'static str,
    play: fn(&mut Talk) -> io::Result<()>,
}

pub const SCENES: [Scene; 5] = [
    Scene {
        title: "Frames that join and split",
        explanation: "The client wrote three messages at once, then one whose header it wrote in two pieces, then one of 200,000 bytes. TCP carries bytes: a reader that takes each read for a frame gets three as one, half a header, and a part.",
        play: framing,
    },
    Scene {
        title: "A heartbeat that died",
        explanation: "The client answered one ping, and then its program stopped reading, while its kernel went on acknowledging. Only the missing pongs tell: the connection looks alive to TCP.",
        play: heartbeat,
    },
    Scene {
        title: "A pause",
        explanation: "The server answered pings at once, and one after 450 ms, as if a collector of garbage or a blocked event loop had held it.",
        play: pause,
    },
    Scene {
        title: "A violation",
        explanation: "The client sent a frame without a mask, and the server closed with 1002, as RFC 6455 has it.",
        play: violation,
    },
    Scene {
        title: "A closed window",
        explanation: "The client sent faster than the server read, until the server's receive window was closed; then the server read again.",
        play: window,
    },
];

impl Scene {
    /// Play the scene; return the client's end point.
    pub fn play(&self) -> io::Result<SocketAddr> {
        let mut talk = Talk::open()?;
        let client = talk.client.local_addr()?;
        (self.play)(&mut talk)?;
        Ok(client)
    }
}

/// Both ends of a connection.
struct Talk {
    client: TcpStream,
    server: TcpStream,
}

impl Talk {
    fn open() -> io::Result<Talk> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        let mut talk = Talk { client, server };
        for end in [&talk.client, &talk.server] {
            end.set_nodelay(true)?;
            // No read or write may block forever.
            end.set_read_timeout(Some(Duration::from_secs(10)))?;
            end.set_write_timeout(Some(Duration::from_secs(10)))?;
        }
        talk.client_sends(REQUEST)?;
        talk.server_sends(ANSWER)?;
        Ok(talk)
    }

    /// Write as the client, and read all of it as the server.
    fn client_sends(&mut self, bytes: &[u8]) -> io::Result<()> {
        carry(&mut self.client, &mut self.server, bytes)
    }

    fn server_sends(&mut self, bytes: &[u8]) -> io::Result<()> {
        carry(&mut self.server, &mut self.client, bytes)
    }

    /// Send a ping as the client, and answer it after `after`.
    fn beat(&mut self, payload: &[u8], after: Duration) -> io::Result<()> {
        self.client_sends(&masked(PING, payload))?;
        thread::sleep(after);
        self.server_sends(&plain(PONG, payload))
    }

    fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let body = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        self.server_sends(&plain(CLOSE, &body))?;
        self.client_sends(&masked(CLOSE, &body))
    }
}

/// Write and read at the same time, so that neither end runs out of buffer.
fn carry(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(bytes));
        let mut space = vec![0; bytes.len()];
        let read = to.read_exact(&mut space);
        writer.join().unwrap_or(Err(io::ErrorKind::Other.into())).and(read)
    })
}

fn plain(first: u8, payload: &[u8]) -> Vec<u8> {
    [&head(first, 0, payload.len())[..], payload].concat()
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = head(first, 0x80, payload.len());
    frame.extend(KEY);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn head(first: u8, mask: u8, length: usize) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..126 => head.push(mask | length as u8),
        126..0x1_0000 => {
            head.push(mask | 126);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(mask | 127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head
}

fn framing(talk: &mut Talk) -> io::Result<()> {
    let together = ["one", "two", "three"].map(|text| masked(TEXT, text.as_bytes())).concat();
    talk.client_sends(&together)?;
    let cut = masked(TEXT, &[b'x'; 300]);
    talk.client_sends(&cut[..3])?;
    thread::sleep(APART);
    talk.client_sends(&cut[3..])?;
    talk.client_sends(&masked(BINARY, &[0; 200_000]))?;
    talk.server_sends(&plain(TEXT, b"got them"))?;
    talk.close(1000, "done")
}

fn heartbeat(talk: &mut Talk) -> io::Result<()> {
    talk.server_sends(&plain(PING, b"0"))?;
    talk.client_sends(&masked(PONG, b"0"))?;
    for number in 1..=UNANSWERED {
        talk.server_sends(&plain(PING, &[b'0' + number]))?;
        thread::sleep(BEAT);
    }
    Ok(())
}

fn pause(talk: &mut Talk) -> io::Result<()> {
    for number in 0..5 {
        talk.beat(&[b'0' + number], Duration::ZERO)?;
        thread::sleep(APART);
    }
    talk.beat(b"late", PAUSE)?;
    talk.beat(b"well", Duration::ZERO)?;
    talk.close(1000, "")
}

fn violation(talk: &mut Talk) -> io::Result<()> {
    talk.client_sends(&masked(TEXT, b"as it should be"))?;
    talk.client_sends(&plain(TEXT, b"without a mask"))?;
    talk.close(1002, "unmasked frame")
}

fn window(talk: &mut Talk) -> io::Result<()> {
    let message = masked(BINARY, &[0; 60_000]);
    talk.client.set_nonblocking(true)?;
    let mut sent = 0;
    // Write until the server's and the client's buffers stay full for some time.
    let mut patience = 5;
    while patience > 0 {
        match talk.client.write(&message[sent % message.len()..]) {
            Ok(written) => sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                patience -= 1;
                thread::sleep(APART);
            }
            Err(error) => return Err(error),
        }
    }
    talk.client.set_nonblocking(false)?;
    let rest = message.len() - sent % message.len();
    let (client, server) = (&mut talk.client, &mut talk.server);
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.write_all(&message[message.len() - rest..]));
        let read = io::copy(&mut Read::take(server, (sent + rest) as u64), &mut io::sink());
        writer.join().unwrap_or(Err(io::ErrorKind::Other.into())).and(read.map(drop))
    })?;
    talk.close(1000, "")
}
