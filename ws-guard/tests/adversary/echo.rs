//! Server output under a client's control: an echo whose bytes look like HTTP.
use std::time::Duration;

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    packets::{Checksum, flag},
    raw_tcp::{Opening, RawTcp},
};

use crate::{
    attacker::{Attacker, TEXT, persist_all, pings, try_all},
    handshake::{long_request, upgrade_in},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 500;
const SOME: Reached = Reached::AtMost(PINGS as u64);
/// Length of each of the server's segments, in bytes.
const SEGMENT: u16 = 600;
/// Length of a request's head, longer than any that was followed once.
const LONG: usize = 70_000;
const ECHO: Duration = Duration::from_secs(5);

fn opening() -> Opening {
    Opening { mss: SEGMENT, timestamps: false, ..Opening::default() }
}

/// Return a message whose echo has this number of segments.
/// All but the first begin with `HTTP/1.1`.
fn message(segments: usize) -> Vec<u8> {
    // Behind a header of 4 bytes, or 10.
    let length = usize::from(SEGMENT) * segments - 100;
    let header = if length < 0xFFFF { 4 } else { 10 };
    let mut payload = vec![b' '; length - header];
    for at in (usize::from(SEGMENT)..length).step_by(SEGMENT.into()) {
        payload[at - header..][..8].copy_from_slice(b"HTTP/1.1");
    }
    encode(&[Frame::new(opcode::BINARY, payload)])
}

/// Send a message and a short one, and take the echo in segments.
/// Its last segment has the end of the one, and the other.
fn echoed(tcp: &mut RawTcp, message: &[u8]) -> Result<()> {
    let (most, last) = message.split_at(message.len() - 1);
    persist_all(tcp, most)?;
    (tcp.window, tcp.acknowledges) = (SEGMENT, false);
    persist_all(tcp, &[last, &TEXT[..]].concat())?;
    tcp.settle(Duration::from_millis(100))?;
    (tcp.window, tcp.acknowledges) = (0xFFFF, true);
    tcp.acknowledge()?;
    ensure!(tcp.wait(ECHO, |tcp| tcp.messages == 2)?, "no echo");
    tcp.settle(Duration::from_millis(20))
}

/// HTTP in an echo that begins while the guard takes the connection for closed.
/// It continues, looking like HTTP, when the guard knows better.
fn http_in_an_echo_behind_a_forged_rst(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect_as(0, &opening())?;
    let message = message(3);
    let (most, last) = message.split_at(message.len() - 1);
    persist_all(&mut tcp, most)?;
    tcp.settle(Duration::from_millis(20))?;
    (tcp.window, tcp.acknowledges) = (SEGMENT, false);
    let mut rst = tcp.segment(0, []).flags(flag::RST);
    rst.checksum = Checksum::Wrong;
    tcp.push(last)?;
    tcp.send(&rst)?;
    // At a byte that the server has acknowledged at once.
    rst.seq = tcp.next;
    tcp.send(&rst)?;
    tcp.settle(Duration::from_millis(100))?;
    (tcp.window, tcp.acknowledges) = (0xFFFF, true);
    // The server does not answer the first byte of a ping.
    let pings = pings(PINGS);
    persist_all(&mut tcp, &pings[..1])?;
    ensure!(tcp.wait(ECHO, |tcp| tcp.messages == 1)?, "no echo");
    tcp.window = 0;
    try_all(&mut tcp, &pings[1..])?;
    tcp.window = 0xFFFF;
    tcp.acknowledge()?;
    one(tcp)
}

/// The same behind an unread request, so that the guard is less certain.
fn http_in_an_echo_behind_a_long_request(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &opening())?;
    upgrade_in(&mut tcp, &[&long_request(LONG)])?;
    echoed(&mut tcp, &message(3))?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new("http_in_an_echo_behind_a_forged_rst", SOME, http_in_an_echo_behind_a_forged_rst),
    Row::new("http_in_an_echo_behind_a_long_request", SOME, http_in_an_echo_behind_a_long_request),
];
