//! Attacker that sends pings and never reads.
use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    client::Client,
    frame::{Frame, encode},
};

/// Maximum payload of a control frame (RFC 6455, 5.5).
pub const PAYLOAD: usize = 125;
/// Length of a flood's ping with its header and its masking key (RFC 6455, 5.2).
pub const FRAME: usize = 2 + 4 + PAYLOAD;
/// Number of pings in one write.
const BATCH: usize = 500;
/// Maximum wait of a write for room, so that the end of the time is noticed.
const PATIENCE: Duration = Duration::from_millis(50);

/// Maximum wait of the last ping's rest, on a machine busy with what came before.
const LAST: Duration = Duration::from_secs(5);

/// Bounds of a flood; it ends at the first that is reached.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub pings: u64,
    pub time: Duration,
    /// Pause after each write of 500 pings; zero for maximum speed.
    pub pause: Duration,
}

/// Result of a flood.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flooded {
    /// Pings handed to the socket in full.
    pub pings: u64,
    /// Writes without room in the socket: the server had stopped taking bytes.
    pub blocked: u64,
    pub time: Duration,
    /// Error that ended the connection.
    pub broken: Option<io::ErrorKind>,
}

/// Send pings of [`PAYLOAD`] bytes as fast as possible, while `go_on` returns true.
/// A connection that the server closes ends the flood.
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
