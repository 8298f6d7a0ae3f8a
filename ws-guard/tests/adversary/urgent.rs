//! The urgent pointer:
//! a byte that TCP delivers outside the server's stream (RFC 9293, 3.8.5; Linux takes it out unless
//! SO_OOBINLINE is set).
use anyhow::Result;

use crate::{
    attacker::{Attacker, persist, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const SOME: Reached = Reached::AtMost(PINGS as u64);

/// A frame of over 32,768 bytes with the second byte, an empty one without it.
fn a_length_that_is_taken_out(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut segment = tcp.segment(0, [0x82, 0xFE, 0x80, 1, 2, 3, 4]);
    // It points behind the urgent byte.
    segment.urgent = Some(2);
    if persist(&mut tcp, &segment)? {
        try_all(&mut tcp, &pings(PINGS))?;
    }
    one(tcp)
}

pub const ROWS: &[Row] =
    &[Row::new("a_length_that_is_taken_out", SOME, a_length_that_is_taken_out)];
