//! TCP that heeds the window, and probes a closed one with its next byte.
//!
//! RFC 9293, 3.8.6.1, wants a sender to probe a window of zero with at least one byte of new data.
//! Linux probes with an old one instead; here it is a new one, just past the edge, as in other
//! stacks. A guard that drops everything past the edge stalls such a sender for good.
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::raw_tcp::{RawTcp, SEGMENT};

/// Maximum number of segments in flight.
const BURST: usize = 16;
/// Maximum wait for an acknowledgement before bytes are retransmitted.
const AGAIN: Duration = Duration::from_millis(500);
/// Time between a closed window and the first probe, doubled for each further one.
const FIRST_PROBE: Duration = Duration::from_millis(200);
const LAST_PROBE: Duration = Duration::from_secs(2);

/// Result of a delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Number of bytes that the server acknowledged.
    pub bytes: usize,
    /// Number of probes of one new byte, and of those whose byte was accepted at once.
    pub probes: u64,
    pub taken: u64,
    /// Number of retransmissions of bytes inside the window.
    pub again: u64,
}

/// Send all of `bytes` and wait until they are acknowledged, or the time is up.
pub fn deliver(tcp: &mut RawTcp, bytes: &[u8], patience: Duration) -> Result<Delivered> {
    let (start, end) = (tcp.next, Instant::now() + patience);
    let mut done = Delivered::default();
    let mut pause = FIRST_PROBE;
    while done.bytes < bytes.len() && Instant::now() < end && !tcp.ended {
        let acked = start.wrapping_add(done.bytes as u32);
        tcp.next = acked;
        if tcp.room() > 0 {
            pause = FIRST_PROBE;
            send(tcp, &bytes[done.bytes..])?;
            let all = tcp.wait(AGAIN, |tcp| tcp.ended || tcp.unacknowledged() <= 0)?;
            done.again += u64::from(!all);
        } else if !tcp.wait(pause, |tcp| tcp.ended || tcp.room() > 0)? {
            pause = (pause * 2).min(LAST_PROBE);
            tcp.send(&tcp.segment(0, &bytes[done.bytes..=done.bytes]))?;
            done.probes += 1;
            let heard = |tcp: &RawTcp| tcp.ended || tcp.room() > 0 || tcp.acked() != acked;
            tcp.wait(pause, heard)?;
            done.taken += u64::from(tcp.acked() != acked);
        }
        done.bytes = tcp.acked().wrapping_sub(start) as usize;
        tcp.next = tcp.acked();
    }
    Ok(done)
}

/// Send as many of `bytes` as the window and a burst have room for.
fn send(tcp: &mut RawTcp, bytes: &[u8]) -> Result<()> {
    let room = usize::try_from(tcp.room()).unwrap_or(0).min(SEGMENT * BURST);
    for part in bytes[..bytes.len().min(room)].chunks(SEGMENT) {
        tcp.send(&tcp.segment(0, part))?;
        tcp.advance(part.len());
    }
    Ok(())
}
