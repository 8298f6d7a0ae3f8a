//! Echo servers on other people's libraries, each as its own example has it, on one thread.
//!
//! They print `listening` and serve until they are killed.

mod batch;
mod fastwebsockets;
mod sockudo;
mod tls;
mod tokio_websockets;
mod tungstenite;

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
struct Args {
    library: Library,
    port: u16,
    /// For `rustls` alone
    #[arg(long)]
    cert: Option<PathBuf>,
    #[arg(long)]
    key: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Library {
    Tungstenite,
    Fastwebsockets,
    TokioWebsockets,
    Sockudo,
    /// No WebSocket server: TLS connections that are held, to compare memory with
    Rustls,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let tls = match (args.library, &args.cert, &args.key) {
        (Library::Rustls, Some(cert), Some(key)) => Some(tls::acceptor(cert, key)?),
        (Library::Rustls, ..) => anyhow::bail!("rustls needs --cert and --key"),
        _ => None,
    };
    let listener = listen(args.port)?;
    println!("listening");
    loop {
        let (stream, _) = listener.accept().await.context("accepting")?;
        stream.set_nodelay(true)?;
        let tls = tls.clone();
        tokio::spawn(async move {
            // The load generator closes without a farewell, which is an error to some.
            let _ = serve(args.library, stream, tls).await;
        });
    }
}

async fn serve(
    library: Library,
    stream: TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
) -> Result<()> {
    match library {
        Library::Tungstenite => tungstenite::serve(stream).await,
        Library::Fastwebsockets => fastwebsockets::serve(stream).await,
        Library::TokioWebsockets => tokio_websockets::serve(stream).await,
        Library::Sockudo => sockudo::serve(stream).await,
        Library::Rustls => tls::hold(tls.context("no acceptor")?, stream).await,
    }
}

/// With a backlog for as many handshakes at once as the load generator makes.
fn listen(port: u16) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into()).context("listening")
}
