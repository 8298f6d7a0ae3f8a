//! Messages of clients, and checks that the answers are intact.
use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::{Frame, opcode},
};

use crate::stage::WAIT;

/// Return bytes that differ from place to place and from message to message.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand(seed);
    (0..length).map(|_| random()).collect()
}

/// Return a xorshift generator: the same bytes each time.
fn fastrand(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    }
}

/// Return letters and digits, so that it is UTF-8.
pub fn text(length: usize, seed: u64) -> String {
    pattern(length, seed).into_iter().map(|byte| char::from(b'a' + byte % 26)).collect()
}

/// Return pings numbered from `first`, so that each pong can be identified.
pub fn pings(first: u64, count: u64) -> Vec<Frame> {
    (first..first + count).map(|n| Frame::ping(n.to_be_bytes())).collect()
}

/// Return the numbers of the pings that pongs answer, in their order.
pub fn answered(client: &Client) -> Vec<u64> {
    let received = client.received();
    let number = |payload: &Vec<u8>| payload.first_chunk::<8>().map(|n| u64::from_be_bytes(*n));
    received.pong_payloads.iter().filter_map(number).collect()
}

/// Send one text message and wait for its echo:
/// everything sent before has been answered then, as far as it will be.
pub fn round_trip(client: &mut Client, payload: &str) -> Result<()> {
    let before = client.received().messages;
    client.send(&[Frame::new(opcode::TEXT, payload)], &Cut::Whole)?;
    ensure!(
        client.wait(WAIT, |r| r.ended || r.messages > before) && !client.received().ended,
        "{}: no echo of {} bytes (close {:?})",
        client.local(),
        payload.len(),
        client.received().close
    );
    Ok(())
}

/// Check that the messages echoed so far are exactly these, byte by byte.
pub fn ensure_echoed(client: &Client, sent: &[Vec<u8>]) -> Result<()> {
    let received = client.received();
    ensure!(
        received.kept.len() == sent.len(),
        "{}: {} echoes of {} messages",
        client.local(),
        received.kept.len(),
        sent.len()
    );
    for (n, ((_, echo), message)) in received.kept.iter().zip(sent).enumerate() {
        ensure!(echo == message, "{}: the echo of message {n} differs", client.local());
    }
    Ok(())
}
