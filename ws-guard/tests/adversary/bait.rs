//! Bait: segments that the server's TCP discards, and the guard shall believe.
//! They are sent first; then the segments that it accepts, at the same sequence numbers.
use std::time::Duration;

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    netns::Family,
    packets::{Checksum, Packet, flag},
    raw_tcp::RawTcp,
    servers::Library,
};

use crate::{
    attacker::{Attacker, header, persist, persist_all, pings},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const ALL: Reached = Reached::Exactly(PINGS as u64);

/// Send bait: a header that claims 60,000 bytes, changed by `spoil`.
/// Then send pings, where the guard may believe payload to be.
fn bait(attacker: &Attacker, spoil: impl Fn(&RawTcp, &mut Packet)) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut bait = tcp.segment(0, header(60_000));
    spoil(&tcp, &mut bait);
    tcp.send(&bait)?;
    not_taken(&mut tcp)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// Check that the server has acknowledged nothing past the next byte to send.
fn not_taken(tcp: &mut RawTcp) -> Result<()> {
    tcp.settle(Duration::from_millis(50))?;
    ensure!(tcp.unacknowledged() >= 0, "the server took the bait");
    Ok(())
}

fn bad_checksum(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |_, packet| packet.checksum = Checksum::Wrong)
}

fn old_timestamp(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |tcp, packet| packet.tcp_options = tcp.timestamp(tcp.now() - 0x1000_0000))
}

fn ack_of_the_future(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |_, packet| packet.ack = packet.ack.wrapping_add(1_000_000))
}

fn ack_of_the_past(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |_, packet| packet.ack = packet.ack.wrapping_sub(10_000_000))
}

fn no_ack_flag(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |_, packet| packet.flags = 0)
}

fn syn_in_the_middle(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |_, packet| packet.flags = flag::SYN)
}

/// A RST past the server's next byte, where it ends nothing (RFC 5961, 3.2).
fn rst_in_the_middle(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |_, packet| {
        packet.flags = flag::RST | flag::ACK;
        packet.seq = packet.seq.wrapping_add(100);
    })
}

fn fin_in_the_middle(attacker: &Attacker) -> Result<Peers> {
    bait(attacker, |_, packet| {
        packet.flags = flag::FIN | flag::ACK;
        packet.checksum = Checksum::Wrong;
    })
}

/// Defused and undefused pings, retransmitted alone and in front of new ones.
fn retransmitted_while_throttled(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let first = tcp.segment(0, pings(PINGS / 2));
    for _ in 0..3 {
        tcp.send(&first)?;
    }
    tcp.advance(first.payload.len());
    ensure!(tcp.drain()?, "the server does not take them");
    tcp.send(&tcp.again(&first))?;
    let old = 10 * 6;
    let both = tcp.segment(-old, pings(PINGS / 2 + 10));
    ensure!(persist(&mut tcp, &both)?, "the server does not take old and new ones");
    one(tcp)
}

/// Counted bytes that never arrive, and the same bytes again.
fn pings_as_bait(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut bait = tcp.segment(0, pings(PINGS));
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    not_taken(&mut tcp)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// Old bytes in front of new ones, of which TCP takes only the new ones.
fn left_of_the_window(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &header(20))?;
    persist_all(&mut tcp, &[0; 20])?;
    let mut bytes = header(60_000);
    bytes.extend([0; 12]);
    bytes.extend(pings(PINGS));
    let packet = tcp.segment(-20, bytes);
    ensure!(persist(&mut tcp, &packet)?, "the server does not take it");
    one(tcp)
}

/// A header that the server has no room for, and other bytes once it has.
fn right_of_the_window(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    // Header and payload of a frame that fills more than the window.
    persist_all(&mut tcp, &[0x82, 0xFF, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0])?;
    let length = 0x2_0000;
    tcp.send(&tcp.segment(length, header(60_000)))?;
    not_taken(&mut tcp)?;
    persist_all(&mut tcp, &vec![0; length as usize])?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// Header of a frame of that length, in 64 bits.
fn long(length: u64) -> Vec<u8> {
    [&[0x82, 0xFF][..], &length.to_be_bytes(), &[0; 4]].concat()
}

/// Lengths that differ by the whole space of sequence numbers:
/// the server discards the longer one, and a comparison of where the next header is cannot tell the
/// two apart.
fn length_of_a_lap_more(attacker: &Attacker) -> Result<Peers> {
    length_of(attacker, 1 << 32)
}

/// The same of lengths that differ by what the tracker counts apart from the next header's place.
fn length_of_strides_more(attacker: &Attacker) -> Result<Peers> {
    length_of(attacker, 3 << 30)
}

fn length_of(attacker: &Attacker, more: u64) -> Result<Peers> {
    let length = 0x1_0000_u64;
    let mut tcp = attacker.connect()?;
    let mut bait = tcp.segment(0, long(length + more));
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    not_taken(&mut tcp)?;
    persist_all(&mut tcp, &long(length))?;
    persist_all(&mut tcp, &vec![0; length as usize])?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// Headers past the server's window, each where the one before it says: once around the sequence numbers,
/// so that what the server waits for seems to be payload.
fn headers_past_any_window(attacker: &Attacker) -> Result<Peers> {
    const LENGTH: u64 = 900 << 20;
    let mut tcp = attacker.connect()?;
    for number in 0..5 {
        let mut bait = tcp.segment(number * (14 + LENGTH as i64), long(LENGTH));
        bait.checksum = Checksum::Wrong;
        tcp.send(&bait)?;
    }
    not_taken(&mut tcp)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A segment with a bad IP checksum, which IP discards.
fn bad_ip_checksum(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut frame = tcp.frame(&tcp.segment(0, header(60_000)))?;
    ws_guard_testkit::ip::break_header(&mut frame)?;
    tcp.send_frame(&frame)?;
    not_taken(&mut tcp)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new("bad_checksum", ALL, bad_checksum),
    Row::new("pings_as_bait", ALL, pings_as_bait),
    Row::new("old_timestamp", ALL, old_timestamp),
    Row::new("ack_of_the_future", ALL, ack_of_the_future),
    Row::new("ack_of_the_past", ALL, ack_of_the_past),
    Row::new("no_ack_flag", ALL, no_ack_flag),
    Row::new("syn_in_the_middle", ALL, syn_in_the_middle),
    Row::new("rst_in_the_middle", ALL, rst_in_the_middle),
    Row::new("fin_in_the_middle", ALL, fin_in_the_middle),
    Row::new("retransmitted_while_throttled", ALL, retransmitted_while_throttled),
    Row::new("left_of_the_window", ALL, left_of_the_window),
    Row::new("right_of_the_window", ALL, right_of_the_window),
    Row::new("length_of_a_lap_more", ALL, length_of_a_lap_more),
    Row::new("length_of_a_lap_more_ws", ALL, length_of_a_lap_more).on(Library::Ws),
    Row::new("length_of_strides_more", ALL, length_of_strides_more),
    Row::new("headers_past_any_window", ALL, headers_past_any_window),
    Row::new("bad_ip_checksum", ALL, bad_ip_checksum).only(&[Family::V4]),
];
