//! A client that floods with pings, and counts those that are answered.

use std::{rc::Rc, time::Duration};

use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Shared,
    backoff::Backoff,
    connect::{Connector, Socket},
};
use crate::log::Event;

/// Pings at a time, and the time between.
const BURST: u64 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// A paced connection takes no more; what it takes later is a flood all the same.
const PATIENCE: Duration = Duration::from_millis(100);
/// For one connection; another one may be to another server.
const LONGEST: Duration = Duration::from_secs(45);
const CONNECT: Duration = Duration::from_secs(10);

/// As long as others publish: flood, and come back when the connection has ended.
pub async fn run(shared: Rc<Shared>, mut connector: Connector) -> Result<()> {
    let mut backoff = Backoff::default();
    while shared.publishing.get() {
        let open = timeout(CONNECT, connector.open("")).await;
        if let Ok(Ok(socket)) = open {
            let start = Instant::now();
            let [sent, answered] = flood(&shared, socket).await;
            let ms = start.elapsed().as_millis() as u64;
            shared.log.write("flooder", Event::Flooded { ms, sent, answered })?;
            backoff.lived(start.elapsed());
        }
        sleep(backoff.next()).await;
    }
    Ok(())
}

/// Until the connection ends, or for so long: pings sent, and answered.
async fn flood(shared: &Shared, socket: Socket) -> [u64; 2] {
    let (mut sink, mut stream) = socket.split();
    let (mut sent, mut answered) = (0u64, 0);
    let end = Instant::now() + LONGEST;
    while Instant::now() < end && shared.publishing.get() {
        for _ in 0..BURST {
            let ping = Message::Ping(sent.to_be_bytes().to_vec().into());
            match timeout(PATIENCE, sink.feed(ping)).await {
                Ok(Ok(())) => sent += 1,
                Ok(Err(_)) => return [sent, answered],
                Err(_) => break,
            }
        }
        if let Ok(Err(_)) = timeout(PATIENCE, sink.flush()).await {
            return [sent, answered];
        }
        let until = Instant::now() + PAUSE;
        while let Ok(next) = timeout_at(until, stream.next()).await {
            match next {
                Some(Ok(Message::Pong(_))) => answered += 1,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return [sent, answered],
                Some(Ok(_)) => {}
            }
        }
    }
    [sent, answered]
}
