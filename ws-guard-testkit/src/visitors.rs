//! Thousands of clients behind one proxy that each connect, ping once, and leave.
//!
//! The proxy is this process: it opens a connection for each client and names it in
//! `X-Forwarded-For`, which is all that the guard sees of one.
use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::Builder,
    time::timeout,
};

use crate::{
    frame::{Decoder, Frame, encode, opcode},
    netns::Namespace,
    pool::upgrade,
};

/// Time-out of one visit.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of concurrent visits.
const AT_ONCE: usize = 32;

/// Results of all visits.
#[derive(Clone, Debug, Default)]
pub struct Visits {
    pub answered: u64,
    /// Reasons of unanswered pings.
    pub failures: Vec<String>,
}

/// Connect from inside `namespace` for each client, and send a ping to be answered.
pub fn visit(
    namespace: &Namespace,
    server: SocketAddr,
    clients: Range<u32>,
    address: impl Fn(u32) -> IpAddr + Send,
) -> Result<Visits> {
    namespace.run(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (visits, next) = (RefCell::new(Visits::default()), RefCell::new(clients));
        let one = async || {
            loop {
                let Some(n) = next.borrow_mut().next() else { break };
                let client = address(n);
                let visit = timeout(TIMEOUT, Visit::once(server, client)).await;
                let mut visits = visits.borrow_mut();
                match visit.context("no answer").and_then(|result| result) {
                    Ok(()) => visits.answered += 1,
                    Err(error) => visits.failures.push(format!("{client}: {error:#}")),
                }
            }
        };
        runtime.block_on(join_all((0..AT_ONCE).map(|_| one())));
        Ok(visits.into_inner())
    })?
}

/// Connect for one client, send this number of pings; return the number of answers.
pub fn flood(namespace: &Namespace, server: SocketAddr, client: IpAddr, pings: u64) -> Result<u64> {
    namespace.run(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let flood = timeout(TIMEOUT, async {
                Visit::begin(server, client).await?.answered(pings).await
            });
            flood.await.context("the text behind the pings is not echoed")?
        })
    })?
}

/// Connection of a client.
struct Visit {
    stream: TcpStream,
    decoder: Decoder,
}

impl Visit {
    async fn once(server: SocketAddr, client: IpAddr) -> Result<()> {
        let mut visit = Visit::begin(server, client).await?;
        let answered = visit.answered(1).await?;
        ensure!(answered == 1, "the ping is not answered");
        Ok(())
    }

    async fn begin(server: SocketAddr, client: IpAddr) -> Result<Visit> {
        let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let mut stream = socket.connect(server).await?;
        stream.set_nodelay(true)?;
        // Ends with a RST: nothing waits for the last segments of thousands of connections.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let line = format!("X-Forwarded-For: {client}\r\n");
        let mut decoder = Decoder::default();
        decoder.push(&upgrade(&mut stream, server, &line).await?);
        Ok(Visit { stream, decoder })
    }

    /// Send pings, and a text after them, whose echo shows that all answers are here.
    async fn answered(&mut self, pings: u64) -> Result<u64> {
        let mut frames: Vec<Frame> = (0..pings).map(|n| Frame::ping(format!("{n}"))).collect();
        frames.push(Frame::text("the last"));
        self.stream.write_all(&encode(&frames)).await?;
        let (mut answered, mut buffer) = (0, [0; 4096]);
        loop {
            while let Some(frame) = self.decoder.next_frame() {
                match frame.opcode {
                    opcode::PONG => answered += 1,
                    opcode::TEXT => return Ok(answered),
                    other => anyhow::bail!("the server sent opcode {other}"),
                }
            }
            let n = self.stream.read(&mut buffer).await?;
            ensure!(n > 0, "the server closed");
            self.decoder.push(&buffer[..n]);
        }
    }
}
