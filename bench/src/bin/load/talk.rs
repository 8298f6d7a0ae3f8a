//! Publish and subscribe, as ws-guard, socket.io and sockudo want it said.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::connect::{answer, ask, frame, tcp};

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    WsGuard,
    SocketIo,
    /// The protocol of Pusher. Only on private channels may clients publish.
    Sockudo,
}

/// The application that sockudo is told of, by `cargo xtask bench messaging`.
const KEY: &str = "bench-key";
const SECRET: &[u8] = b"bench-secret";

impl Protocol {
    fn path(self, query: &str) -> String {
        match self {
            Protocol::WsGuard => format!("/{query}"),
            Protocol::SocketIo => "/socket.io/?EIO=4&transport=websocket".into(),
            Protocol::Sockudo => format!("/app/{KEY}?protocol=7&client=bench&version=1"),
        }
    }

    /// `name` is what the server calls the connection.
    pub fn subscribe(self, topic: &str, name: &str) -> String {
        match self {
            Protocol::WsGuard => format!(r#"{{"type":"subscribe","topic":"{topic}","id":1}}"#),
            Protocol::SocketIo => format!(r#"420["subscribe","{topic}"]"#),
            Protocol::Sockudo => {
                let channel = format!("private-{topic}");
                let auth = format!("{KEY}:{}", signature(&format!("{name}:{channel}")));
                json!({"event": "pusher:subscribe", "data": {"channel": channel, "auth": auth}})
                    .to_string()
            }
        }
    }

    pub fn publish(self, topic: &str, data: &str, id: u64) -> String {
        match self {
            Protocol::WsGuard => {
                format!(r#"{{"type":"publish","topic":"{topic}","data":{data},"id":{id}}}"#)
            }
            Protocol::SocketIo => format!(r#"42{id}["publish","{topic}",{data}]"#),
            Protocol::Sockudo => {
                format!(r#"{{"event":"client-message","channel":"private-{topic}","data":{data}}}"#)
            }
        }
    }

    /// What to say after a publication that nothing answers, so that something does.
    pub fn question(self) -> Option<&'static str> {
        (self == Protocol::Sockudo).then_some(r#"{"event":"pusher:ping","data":{}}"#)
    }

    /// Whether it is a publication that arrives.
    pub fn is_message(self, text: &[u8]) -> bool {
        match self {
            Protocol::WsGuard => text.starts_with(br#"{"type":"message""#),
            Protocol::SocketIo => text.starts_with(b"42[\"message\""),
            Protocol::Sockudo => has(text, br#""client-message""#),
        }
    }

    /// Whether it says that something was done.
    pub fn is_done(self, text: &[u8]) -> bool {
        match self {
            Protocol::WsGuard => [&br#"{"type":"published""#[..], br#"{"type":"subscribed""#]
                .iter()
                .any(|beginning| text.starts_with(beginning)),
            Protocol::SocketIo => text.starts_with(b"43"),
            Protocol::Sockudo => {
                has(text, b"pusher:pong") || has(text, b"pusher_internal:subscription_succeeded")
            }
        }
    }
}

fn signature(text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn has(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
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
    protocol: Protocol,
    /// What the server calls the connection, where that is part of a subscription.
    name: String,
}

impl Talk {
    /// The connection of this number; `query` begins with a question mark.
    pub async fn open(protocol: Protocol, port: u16, number: usize, query: &str) -> Result<Talk> {
        let mut talk = Talk::over(tcp(port, number).await?, protocol);
        ask(&mut talk.speaker.0, &protocol.path(query), "").await?;
        answer(&mut talk.hearer.stream).await?;
        match protocol {
            Protocol::WsGuard => {}
            Protocol::SocketIo => {
                ensure!(talk.hear().await?.starts_with(b"0"), "no greeting of socket.io");
                talk.speaker.say("40").await?;
                ensure!(talk.hear().await?.starts_with(b"40"), "socket.io does not connect");
            }
            Protocol::Sockudo => {
                let said: Value = serde_json::from_slice(talk.hear().await?)?;
                let data = said["data"].as_str().context("no greeting of sockudo")?;
                let data: Value = serde_json::from_str(data)?;
                talk.name = data["socket_id"].as_str().context("no name")?.into();
            }
        }
        Ok(talk)
    }

    fn over(stream: TcpStream, protocol: Protocol) -> Talk {
        let (read, write) = stream.into_split();
        let stream = BufReader::with_capacity(4096, read);
        let hearer = Hearer { stream, payload: Vec::new() };
        Talk { speaker: Speaker(write), hearer, protocol, name: String::new() }
    }

    /// Follow a topic from now on; the answer.
    pub async fn subscribe(&mut self, topic: &str) -> Result<&[u8]> {
        let text = self.protocol.subscribe(topic, &self.name);
        self.ask(&text).await
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
    pub async fn ask(&mut self, text: &str) -> Result<&[u8]> {
        self.speaker.say(text).await?;
        let protocol = self.protocol;
        while !protocol.is_done(self.hear().await?) {}
        Ok(&self.hearer.payload)
    }
}

/// A value at a percentile of what is sorted.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((part * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}
