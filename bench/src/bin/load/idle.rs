//! Idle connections that answer pings, as a browser's do.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::{
    connect::{frame, tcp, upgrade},
    talk::Protocol,
};

const TEXT: u8 = 1;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(clap::Args)]
pub struct Args {
    port: u16,
    #[arg(long)]
    connections: usize,
    /// Echo one message of so many bytes before being idle
    #[arg(long, default_value_t = 0)]
    used: usize,
    /// Offer permessage-deflate
    #[arg(long)]
    deflate: bool,
    /// Subscribe each to one of so many topics
    #[arg(long, default_value_t = 0)]
    topics: usize,
    /// TLS, with this certificate as the root
    #[arg(long)]
    ca: Option<PathBuf>,
    /// No WebSocket handshake
    #[arg(long)]
    bare: bool,
}

pub async fn run(args: Args) -> Result<()> {
    let tls = args.ca.as_deref().map(connector).transpose()?;
    let (tasks, pings) = (LocalSet::new(), Rc::new(Cell::new(0u64)));
    let hold = async {
        for number in 0..args.connections {
            let stream = tcp(args.port, number).await?;
            match &tls {
                None => begin(stream, number, &args, &pings).await?,
                Some(tls) => {
                    let name = ServerName::try_from("localhost")?;
                    begin(tls.connect(name, stream).await?, number, &args, &pings).await?;
                }
            }
        }
        println!("ready");
        signal(SignalKind::terminate())?.recv().await;
        println!("{}", json!({"pings": pings.get()}));
        anyhow::Ok(())
    };
    tasks.run_until(hold).await
}

fn connector(ca: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).context("reading the certificate")?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Do what comes first, and leave the rest to a task.
async fn begin<S>(mut stream: S, number: usize, args: &Args, pings: &Rc<Cell<u64>>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if !args.bare {
        upgrade(
            &mut stream,
            if args.deflate { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" },
        )
        .await?;
    }
    if args.topics > 0 {
        let topic = format!("chat{}", number % args.topics);
        let answer = ask(&mut stream, Protocol::WsGuard.subscribe(&topic, "").as_bytes()).await?;
        ensure!(Protocol::WsGuard.is_done(&answer), "{}", String::from_utf8_lossy(&answer));
    }
    if args.used > 0 {
        let echo = ask(&mut stream, &vec![b'x'; args.used]).await?;
        ensure!(echo.len() <= args.used, "an echo of {} bytes", echo.len());
    }
    let pings = pings.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = answer_pings(stream, &pings).await {
            eprintln!("an idle connection ended: {error:#}");
        }
    });
    Ok(())
}

/// Say something, and read what is answered.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(&frame(TEXT, text)).await?;
    stream.flush().await?;
    let mut header = [0; 2];
    stream.read_exact(&mut header).await?;
    let len = match header[1] {
        126 => usize::from(stream.read_u16().await?),
        len => usize::from(len),
    };
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Control frames of a server are at most 127 bytes long (RFC 6455, 5.5).
async fn answer_pings(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    pings: &Cell<u64>,
) -> Result<()> {
    loop {
        let mut header = [0; 2];
        stream.read_exact(&mut header).await?;
        let mut payload = vec![0; usize::from(header[1])];
        stream.read_exact(&mut payload).await?;
        ensure!(header[0] == 0x80 | PING, "a frame that is no ping: {:#x}", header[0]);
        pings.set(pings.get() + 1);
        stream.write_all(&frame(PONG, &payload)).await?;
        stream.flush().await?;
    }
}
