//! Echo server on tokio-tungstenite, as its users write one.
//! Its output is described in `servers`.
use std::{net::Ipv6Addr, process::ExitCode, sync::atomic::Ordering::Relaxed};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};
use tokio_tungstenite::tungstenite::Message;

/// Output of [`totals`].
mod count {
    use std::sync::atomic::AtomicU64;

    pub static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    pub static MESSAGES: AtomicU64 = AtomicU64::new(0);
    pub static PINGS: AtomicU64 = AtomicU64::new(0);
    pub static PONGS: AtomicU64 = AtomicU64::new(0);
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let port = std::env::args().nth(1).context("usage: ws-guard-tungstenite-echo PORT")?;
    let port: u16 = port.parse().with_context(|| format!("{port:?} is not a port"))?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .await
        .with_context(|| format!("listening at port {port}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("{}", json!({"event": "listening", "port": port}));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, peer) = accepted?;
                tokio::spawn(async move {
                    println!("{}", json!({"event": "connected", "peer": peer.to_string()}));
                    let mut counts = Counts::default();
                    let result = echo(stream, &mut counts).await;
                    let why = result.err().map(|error| format!("{error:#}"));
                    println!("{}", counts.closed(&peer.to_string(), why));
                });
            }
            _ = terminate.recv() => {
                println!("{}", totals());
                return Ok(());
            }
        }
    }
}

/// Counts of one connection's input.
#[derive(Default)]
struct Counts {
    messages: u64,
    pings: u64,
    pongs: u64,
}

impl Counts {
    fn closed(&self, peer: &str, why: Option<String>) -> serde_json::Value {
        json!({
            "event": "closed",
            "peer": peer,
            "why": why,
            "messages": self.messages,
            "pings": self.pings,
            "pongs": self.pongs,
        })
    }
}

async fn echo(stream: TcpStream, counts: &mut Counts) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    count::CONNECTIONS.fetch_add(1, Relaxed);
    while let Some(message) = socket.next().await {
        match message? {
            message @ (Message::Text(_) | Message::Binary(_)) => {
                count::MESSAGES.fetch_add(1, Relaxed);
                counts.messages += 1;
                socket.send(message).await?;
            }
            // Answered by the library.
            Message::Ping(_) => {
                count::PINGS.fetch_add(1, Relaxed);
                counts.pings += 1;
            }
            Message::Pong(_) => {
                count::PONGS.fetch_add(1, Relaxed);
                counts.pongs += 1;
            }
            Message::Close(_) | Message::Frame(_) => {}
        }
    }
    Ok(())
}

fn totals() -> serde_json::Value {
    json!({
        "event": "totals",
        "connections": count::CONNECTIONS.load(Relaxed),
        "messages": count::MESSAGES.load(Relaxed),
        "pings": count::PINGS.load(Relaxed),
        "pongs": count::PONGS.load(Relaxed),
    })
}
