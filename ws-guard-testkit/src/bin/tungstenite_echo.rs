//! An echo server on tokio-tungstenite, as its users write one. See `servers` for what it prints.
use std::{net::Ipv6Addr, process::ExitCode, sync::atomic::Ordering::Relaxed};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};
use tokio_tungstenite::tungstenite::Message;

/// What [`totals`] prints.
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
                    let why = echo(stream).await.err().map(|error| format!("{error:#}"));
                    println!("{}", json!({"event": "closed", "peer": peer.to_string(), "why": why}));
                });
            }
            _ = terminate.recv() => {
                println!("{}", totals());
                return Ok(());
            }
        }
    }
}

async fn echo(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    count::CONNECTIONS.fetch_add(1, Relaxed);
    while let Some(message) = socket.next().await {
        match message? {
            message @ (Message::Text(_) | Message::Binary(_)) => {
                count::MESSAGES.fetch_add(1, Relaxed);
                socket.send(message).await?;
            }
            // Answered by the library.
            Message::Ping(_) => {
                count::PINGS.fetch_add(1, Relaxed);
            }
            Message::Pong(_) => {
                count::PONGS.fetch_add(1, Relaxed);
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
