//! The load of the benchmark, the same for every server.
//!
//! `load echo ADDRESS BYTES WINDOW CONNECTIONS SECONDS`: send binary messages, with so many of each
//! connection under way at a time, and print how many came back.
//! `load idle ADDRESS COUNT plain|used|deflate|tls|bare-tls [CERTIFICATE]`: open connections, say
//! `ready`, answer pings, and hold them until it is ended.
//! `load certificate DIRECTORY`: make `certificate.pem` and `key.pem` for localhost.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::LocalSet,
    time::sleep,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n";
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let work = async {
        match arguments[..] {
            ["echo", address, bytes, window, connections, seconds] => {
                let seconds = Duration::from_secs_f64(seconds.parse()?);
                let (bytes, window) = (bytes.parse()?, window.parse()?);
                echo(address.parse()?, bytes, window, connections.parse()?, seconds).await
            }
            ["idle", address, count, kind] => {
                idle(address.parse()?, count.parse()?, kind, None).await
            }
            ["idle", address, count, kind, certificate] => {
                idle(address.parse()?, count.parse()?, kind, Some(certificate.as_ref())).await
            }
            ["certificate", directory] => certificate(directory.as_ref()),
            _ => bail!("usage: see the first lines of load.rs"),
        }
    };
    LocalSet::new().run_until(work).await
}

/// A frame that ends its message.
fn frame(opcode: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(mask_bit | length as u8),
        length @ 126..=0xFFFF => {
            frame.push(mask_bit | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(mask_bit | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        frame.extend(payload);
    }
    frame
}

/// TCP from one of several addresses, so that ports do not run out.
async fn connect(address: SocketAddr, number: usize) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let source = Ipv4Addr::new(127, 0, 1 + (number / 5000) as u8, 1);
    socket.bind((source, 0).into())?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Become a WebSocket connection.
async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, fields: &str) -> Result<()> {
    stream.write_all(format!("{REQUEST}{fields}\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(head.starts_with("HTTP/1.1 101"), "no upgrade: {head}");
    Ok(())
}

async fn echo(
    address: SocketAddr,
    bytes: usize,
    window: usize,
    connections: usize,
    time: Duration,
) -> Result<()> {
    let payload: Vec<u8> = (0..bytes).map(|place| place as u8).collect();
    let sent = Rc::new(frame(2, &payload, true).repeat(window));
    let expected = Rc::new(frame(2, &payload, false));
    let (count, over) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(false)));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..connections {
        let mut stream = connect(address, number).await?;
        upgrade(&mut stream, "").await?;
        let (sent, expected) = (sent.clone(), expected.clone());
        let (count, over) = (count.clone(), over.clone());
        tasks.spawn_local(
            async move { talk(stream, &sent, &expected, window, &count, &over).await },
        );
    }
    sleep(time / 5).await;
    let (start, before) = (Instant::now(), count.get());
    println!("measuring");
    sleep(time).await;
    let (messages, took) = (count.get() - before, start.elapsed());
    println!("{{\"messages\":{messages},\"seconds\":{}}}", took.as_secs_f64());
    over.set(true);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Keep `window` messages under way until it is `over`.
async fn talk(
    stream: TcpStream,
    sent: &[u8],
    expected: &[u8],
    window: usize,
    count: &Cell<u64>,
    over: &Cell<bool>,
) -> Result<()> {
    let one = sent.len() / window;
    let (mut reader, mut writer) = stream.into_split();
    let (allow, mut allowed) = tokio::sync::mpsc::unbounded_channel::<usize>();
    let read = async move {
        let mut buffer = vec![0; 256 * 1024];
        // Bytes of the message that is coming.
        let mut at = 0;
        while !over.get() {
            let n = reader.read(&mut buffer).await?;
            ensure!(n > 0, "the server closed the connection");
            let (mut whole, mut rest) = (0, &buffer[..n]);
            while !rest.is_empty() {
                let part = rest.len().min(expected.len() - at);
                ensure!(rest[..part] == expected[at..at + part], "this is no echo");
                (at, rest) = (at + part, &rest[part..]);
                if at == expected.len() {
                    (at, whole) = (0, whole + 1);
                }
            }
            count.set(count.get() + whole as u64);
            if whole > 0 && allow.send(whole).is_err() {
                break;
            }
        }
        anyhow::Ok(())
    };
    let write = async move {
        writer.write_all(sent).await?;
        while let Some(more) = allowed.recv().await {
            writer.write_all(&sent[..more.min(window) * one]).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(read, write)?;
    Ok(())
}

async fn idle(
    address: SocketAddr,
    count: usize,
    kind: &str,
    certificate: Option<&Path>,
) -> Result<()> {
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let fields = if kind == "deflate" { deflate } else { "" };
    let tls = certificate.map(connector).transpose()?;
    for number in 0..count {
        let stream = connect(address, number).await?;
        match &tls {
            None => open(stream, fields, kind).await?,
            Some(tls) => {
                let name = ServerName::try_from("localhost")?;
                open(tls.connect(name, stream).await?, fields, kind).await?;
            }
        }
    }
    println!("ready");
    std::future::pending().await
}

/// Open one connection, and leave it to a task.
async fn open<S>(mut stream: S, fields: &str, kind: &str) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if kind != "bare-tls" {
        upgrade(&mut stream, fields).await?;
    }
    if kind == "used" || kind == "deflate" {
        let text = "hello ".repeat(200);
        stream.write_all(&frame(1, text.as_bytes(), true)).await?;
        skip_frame(&mut stream).await?;
    }
    tokio::task::spawn_local(async move {
        while let Ok((opcode, payload)) = small_frame(&mut stream).await {
            if opcode == 9 && stream.write_all(&frame(10, &payload, true)).await.is_err() {
                break;
            }
        }
    });
    Ok(())
}

/// Read a frame of a server that is shorter than 64 KiB.
async fn skip_frame<S: AsyncRead + Unpin>(stream: &mut S) -> Result<()> {
    small_frame(stream).await.map(drop)
}

async fn small_frame<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(u8, Vec<u8>)> {
    let opcode = stream.read_u8().await? & 0xF;
    let length = match stream.read_u8().await? {
        126 => usize::from(stream.read_u16().await?),
        length @ 0..126 => usize::from(length),
        length => bail!("a frame with the length {length}"),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok((opcode, payload))
}

fn connector(certificate: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificate(directory: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("certificate.pem", made.cert.pem())?;
    write("key.pem", made.signing_key.serialize_pem())
}
