//! A single HTTP request over a socket, inside a namespace.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use ws_guard_testkit::netns::Namespace;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Return status and body of `GET path`, in HTTP/1.0, which has no chunks.
pub fn get(namespace: &Namespace, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&address, TIMEOUT))??;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}
