//! Server that accepts every upgrade, reads everything, and sends nothing more.
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::netns::Namespace;

/// Maximum length of a request in bytes.
const MAX_REQUEST: usize = 16 * 1024;
const WAITING: i32 = 128;

/// Server that ends when dropped; connections end with their clients.
pub struct Sink {
    listener: Socket,
    accepting: Option<JoinHandle<()>>,
}

impl Sink {
    /// Listen on all addresses of `namespace`, both families, at `port`.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Sink> {
        let listen = || -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port).into())?;
            socket.listen(WAITING)?;
            Ok(socket)
        };
        let listener = namespace.run(listen)?.with_context(|| format!("listening at {port}"))?;
        let accepts = listener.try_clone()?;
        let accepting = thread::spawn(move || {
            while let Ok((connection, _)) = accepts.accept() {
                thread::spawn(move || serve(connection.into()));
            }
        });
        Ok(Sink { listener, accepting: Some(accepting) })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Wakes waiting clients: there will be no connection.
        let _ = self.listener.shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Answer the request, and read until the client is gone, which an error means.
fn serve(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 && bytes.len() < MAX_REQUEST => bytes.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&bytes);
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    });
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.unwrap_or_default().as_bytes())
    );
    if stream.write_all(answer.as_bytes()).is_ok() {
        while matches!(stream.read(&mut buffer), Ok(1..)) {}
    }
}
