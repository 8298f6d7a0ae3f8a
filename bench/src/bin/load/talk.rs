//! Publish and subscribe, as ws-guard and socket.io want it said.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::connect::{frame, tcp, upgrade_at};

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    WsGuard,
    SocketIo,
}

impl Protocol {
    pub fn subscribe(self, topic: &str) -> String {
        match self {
            Protocol::WsGuard => format!(r#"{{"type":"subscribe","topic":"{topic}","id":1}}"#),
            Protocol::SocketIo => format!(r#"420["subscribe","{topic}"]"#),
        }
    }

    pub fn publish(self, topic: &str, data: &str, id: u64) -> String {
        match self {
            Protocol::WsGuard => {
                format!(r#"{{"type":"publish","topic":"{topic}","data":{data},"id":{id}}}"#)
            }
            Protocol::SocketIo => format!(r#"42{id}["publish","{topic}",{data}]"#),
        }
    }

    /// Whether it is a publication that arrives.
    pub fn is_message(self, text: &[u8]) -> bool {
        match self {
            Protocol::WsGuard => text.starts_with(br#"{"type":"message""#),
            Protocol::SocketIo => text.starts_with(b"42[\"message\""),
        }
    }

    /// Whether it says that something was done.
    pub fn is_done(self, text: &[u8]) -> bool {
        match self {
            Protocol::WsGuard => [&br#"{"type":"published""#[..], br#"{"type":"subscribed""#]
                .iter()
                .any(|beginning| text.starts_with(beginning)),
            Protocol::SocketIo => text.starts_with(b"43"),
        }
    }
}

/// What is said.
pub struct Speaker(OwnedWriteHalf);

impl Speaker {
    pub async fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.0.write_all(&frame(TEXT, text.as_bytes())).await?)
    }
}

/// What is heard. Pings are to be answered, so that it has a way to say that.
pub struct Hearer {
    stream: BufReader<OwnedReadHalf>,
    payload: Vec<u8>,
}

/// What comes next.
pub enum Heard<'a> {
    Text(&'a [u8]),
    /// To be answered with this frame.
    Ping(Vec<u8>),
}

impl Hearer {
    pub async fn hear(&mut self) -> Result<Heard<'_>> {
        let mut header = [0; 2];
        self.stream.read_exact(&mut header).await.context("the connection ended")?;
        let len = match header[1] {
            126 => usize::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await? as usize,
            len => usize::from(len),
        };
        self.payload.resize(len, 0);
        self.stream.read_exact(&mut self.payload).await?;
        match header[0] & 0x0f {
            PING => Ok(Heard::Ping(frame(PONG, &self.payload))),
            CLOSE => bail!("the server closed: {}", String::from_utf8_lossy(&self.payload)),
            TEXT if self.payload == b"2" => Ok(Heard::Ping(frame(TEXT, b"3"))),
            _ => Ok(Heard::Text(&self.payload)),
        }
    }
}

/// A connection on which both is done in turn.
pub struct Talk {
    pub speaker: Speaker,
    pub hearer: Hearer,
}

impl Talk {
    /// The connection of this number; `query` begins with a question mark.
    pub async fn open(protocol: Protocol, port: u16, number: usize, query: &str) -> Result<Talk> {
        let mut stream = tcp(port, number).await?;
        match protocol {
            Protocol::WsGuard => upgrade_at(&mut stream, &format!("/{query}"), "").await?,
            Protocol::SocketIo => {
                upgrade_at(&mut stream, "/socket.io/?EIO=4&transport=websocket", "").await?;
            }
        }
        let mut talk = Talk::over(stream);
        if protocol == Protocol::SocketIo {
            ensure!(talk.hear().await?.starts_with(b"0"), "no greeting of socket.io");
            talk.speaker.say("40").await?;
            ensure!(talk.hear().await?.starts_with(b"40"), "socket.io does not connect");
        }
        Ok(talk)
    }

    fn over(stream: TcpStream) -> Talk {
        let (read, write) = stream.into_split();
        let stream = BufReader::with_capacity(4096, read);
        Talk { speaker: Speaker(write), hearer: Hearer { stream, payload: Vec::new() } }
    }

    /// The next text.
    pub async fn hear(&mut self) -> Result<&[u8]> {
        loop {
            // What was heard is borrowed to the end of this function otherwise.
            let pong = match self.hearer.hear().await? {
                Heard::Ping(pong) => pong,
                Heard::Text(_) => break,
            };
            self.speaker.0.write_all(&pong).await?;
        }
        Ok(&self.hearer.payload)
    }

    /// Ask, and wait until it is done.
    pub async fn ask(&mut self, protocol: Protocol, text: &str) -> Result<&[u8]> {
        self.speaker.say(text).await?;
        while !protocol.is_done(self.hear().await?) {}
        Ok(&self.hearer.payload)
    }
}

/// A value at a percentile of what is sorted.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((part * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}
