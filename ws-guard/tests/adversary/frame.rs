//! Frames that servers interpret in different ways.
use anyhow::Result;
use ws_guard_testkit::servers::Library;

use crate::{
    attacker::{Attacker, TEXT, persist_all, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const ALL: Reached = Reached::Exactly(PINGS as u64);
const SOME: Reached = Reached::AtMost(PINGS as u64);

fn sent(attacker: &Attacker, bytes: &[u8]) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    try_all(&mut tcp, bytes)?;
    one(tcp)
}

/// Lengths that fit 7 bits, sent in 16 and in 64 (RFC 6455, 5.2 forbids both).
fn lengths_in_more_bits(attacker: &Attacker) -> Result<Peers> {
    let mut bytes = Vec::new();
    for _ in 0..PINGS / 2 {
        bytes.extend([0x89, 0xFE, 0, 1, 0, 0, 0, 0, 7]);
        bytes.extend([0x89, 0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 7]);
    }
    sent(attacker, &bytes)
}

/// Pings between the fragments of a message.
fn between_fragments(attacker: &Attacker) -> Result<Peers> {
    let mut bytes = vec![0x01, 0x80, 0, 0, 0, 0];
    for _ in 0..PINGS / 10 {
        bytes.extend(pings(10));
        bytes.extend([0x00, 0x80, 0, 0, 0, 0]);
    }
    bytes.extend([0x80, 0x80, 0, 0, 0, 0]);
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &bytes)?;
    one(tcp)
}

/// A ping longer than control frames may be, with a payload that looks like pings.
fn oversized_ping(attacker: &Attacker) -> Result<Peers> {
    let mut bytes = vec![0x89, 0xFE, 2, 88, 0, 0, 0, 0];
    bytes.extend(pings(PINGS));
    sent(attacker, &bytes)
}

/// A length with the highest bit set, which must be 0.
fn negative_length(attacker: &Attacker) -> Result<Peers> {
    let mut bytes = vec![0x82, 0xFF];
    bytes.extend(i64::MIN.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(pings(PINGS));
    sent(attacker, &bytes)
}

/// Frames that break a rule, one of each kind, before the pings.
fn behind_a_violation(attacker: &Attacker) -> Result<Peers> {
    let mut peers: Peers = Vec::new();
    let violations: [&[u8]; 6] = [
        // Unmasked, a reserved bit, a reserved opcode, a fragmented ping, a continuation of
        // nothing, a close frame with a payload of one byte.
        &[0x81, 0x00],
        &[0xC1, 0x80, 0, 0, 0, 0],
        &[0x83, 0x80, 0, 0, 0, 0],
        &[0x09, 0x80, 0, 0, 0, 0],
        &[0x80, 0x80, 0, 0, 0, 0],
        &[0x88, 0x81, 0, 0, 0, 0, 0],
    ];
    for (n, violation) in violations.iter().enumerate() {
        let mut tcp = attacker.connect_number(n as u16)?;
        try_all(&mut tcp, &[&TEXT[..], violation, &pings(PINGS)].concat())?;
        peers.push(Box::new(tcp));
    }
    Ok(peers)
}

pub const ROWS: &[Row] = &[
    Row::new("lengths_in_more_bits", ALL, lengths_in_more_bits),
    Row::new("lengths_in_more_bits_ws", SOME, lengths_in_more_bits).on(Library::Ws),
    Row::new("lengths_in_more_bits_gorilla", SOME, lengths_in_more_bits).on(Library::Gorilla),
    Row::new("lengths_in_more_bits_tungstenite", SOME, lengths_in_more_bits)
        .on(Library::TokioTungstenite),
    Row::new("between_fragments", ALL, between_fragments),
    Row::new("oversized_ping", SOME, oversized_ping),
    Row::new("oversized_ping_ws", SOME, oversized_ping).on(Library::Ws),
    Row::new("oversized_ping_gorilla", SOME, oversized_ping).on(Library::Gorilla),
    Row::new("oversized_ping_tungstenite", SOME, oversized_ping).on(Library::TokioTungstenite),
    Row::new("negative_length", SOME, negative_length),
    Row::new("negative_length_ws", SOME, negative_length).on(Library::Ws),
    Row::new("negative_length_gorilla", SOME, negative_length).on(Library::Gorilla),
    Row::new("negative_length_tungstenite", SOME, negative_length).on(Library::TokioTungstenite),
    Row::new("behind_a_violation", Reached::AtMost(6 * PINGS as u64), behind_a_violation),
    Row::new("behind_a_violation_ws", Reached::AtMost(6 * PINGS as u64), behind_a_violation)
        .on(Library::Ws),
    Row::new("behind_a_violation_gorilla", Reached::AtMost(6 * PINGS as u64), behind_a_violation)
        .on(Library::Gorilla),
    Row::new(
        "behind_a_violation_tungstenite",
        Reached::AtMost(6 * PINGS as u64),
        behind_a_violation,
    )
    .on(Library::TokioTungstenite),
];
