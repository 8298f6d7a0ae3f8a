//! Honest user: small messages at a steady pace, occasional pings, and a stopwatch.
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::{
    client::{Client, Received},
    frame::{Frame, opcode},
};

/// Interval of messages.
pub const MESSAGE_EVERY: Duration = Duration::from_millis(50);
/// Interval of pings.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// Maximum wait for the last answers.
const PATIENCE: Duration = Duration::from_secs(2);

/// Observations of an honest client.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Served {
    pub messages: u64,
    /// Messages without an intact echo in order within 2 s of the last one sent.
    pub lost: u64,
    pub pings: u64,
    pub pongs: u64,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

/// Send messages for `time` while `go_on` returns true; wait for the last answers.
pub fn run(client: &mut Client, time: Duration, go_on: impl Fn() -> bool) -> Result<Served> {
    run_every(client, MESSAGE_EVERY, time, go_on)
}

/// Run as [`run`], with an interval of `every`.
/// More messages make a meaningful 99th percentile.
pub fn run_every(
    client: &mut Client,
    every: Duration,
    time: Duration,
    go_on: impl Fn() -> bool,
) -> Result<Served> {
    let start = Instant::now();
    let (mut sent, mut pings) = (Vec::new(), 0);
    while start.elapsed() < time && go_on() {
        let now = Instant::now();
        sent.push(now);
        if client.send_one(Frame::text(&text(sent.len() - 1))).is_err() {
            break;
        }
        if start.elapsed() >= PING_EVERY * pings {
            pings += 1;
            if client.send_one(Frame::ping("still there?")).is_err() {
                break;
            }
        }
        std::thread::sleep(every.saturating_sub(now.elapsed()));
    }
    let (messages, pings) = (sent.len() as u64, u64::from(pings));
    client.wait(PATIENCE, |r| r.ended || (r.messages >= messages && r.pongs >= pings));
    let mut received = client.received();
    let served = Served { messages, pings, pongs: received.pongs, ..Served::default() };
    measure(&sent, &mut received, served)
}

/// Answer the server's pings while `go_on` returns true; return their number.
pub fn answer(client: &mut Client, go_on: impl Fn() -> bool) -> Result<u64> {
    let mut answered = 0;
    while go_on() {
        client.wait(MESSAGE_EVERY, |received| received.asked.is_some() || received.ended);
        let asked = client.received().asked.take();
        match asked {
            Some(payload) => client.send_one(Frame::new(opcode::PONG, payload))?,
            None if client.received().ended => break,
            None => continue,
        }
        answered += 1;
    }
    Ok(answered)
}

fn text(number: usize) -> String {
    format!("message {number}")
}

fn measure(sent: &[Instant], received: &mut Received, mut served: Served) -> Result<Served> {
    let mut times = Histogram::<u64>::new(3).context("making a histogram")?;
    let mut intact = 0;
    for (number, (then, (now, payload))) in sent.iter().zip(received.kept.drain(..)).enumerate() {
        if payload == text(number).as_bytes() {
            intact += 1;
            times.record(now.duration_since(*then).as_micros() as u64)?;
        }
    }
    served.lost = served.messages - intact;
    served.p50 = Duration::from_micros(times.value_at_quantile(0.5));
    served.p99 = Duration::from_micros(times.value_at_quantile(0.99));
    served.max = Duration::from_micros(times.max());
    Ok(served)
}
