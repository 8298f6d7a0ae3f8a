//! A WebSocket handshake, and frames as a client sends them (RFC 6455, 4.1 and 5.2).

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// Connections from one address; ports run out at 28,000.
const A_SOURCE: usize = 5_000;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The connection of this number.
pub async fn tcp(port: u16, number: usize) -> Result<TcpStream> {
    let source = Ipv4Addr::new(127, 0, 1 + (number / A_SOURCE) as u8, 1);
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    let stream = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
    let stream = stream.with_context(|| format!("connecting to port {port}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Ask for WebSocket, with more header lines, and read the answer.
pub async fn upgrade(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), more: &str) -> Result<()> {
    ask(stream, "/", more).await?;
    answer(stream).await
}

/// Ask for WebSocket at a path.
pub async fn ask(stream: &mut (impl AsyncWrite + Unpin), path: &str, more: &str) -> Result<()> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream.flush().await?)
}

/// Read the answer, a byte at a time: where that matters, `stream` has a buffer.
pub async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("the answer to the handshake")?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "refused: {}", String::from_utf8_lossy(&head));
    Ok(())
}

/// A masked frame with FIN.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(opcode, payload.len(), 0x80);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The header of a frame with FIN, up to the masking key.
pub fn header(opcode: u8, len: usize, mask: u8) -> Vec<u8> {
    let mut header = vec![0x80 | opcode];
    match len {
        0..126 => header.push(mask | len as u8),
        126..0x1_0000 => {
            header.push(mask | 126);
            header.extend((len as u16).to_be_bytes());
        }
        _ => {
            header.push(mask | 127);
            header.extend((len as u64).to_be_bytes());
        }
    }
    header
}
