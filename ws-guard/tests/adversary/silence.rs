//! Acknowledgements that the guard sees late.
//! The client's machine does not answer for its Ethernet address, so they wait in the server's
//! neighbour table before they reach the guard.
use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use ws_guard_testkit::{netns::INTERFACE, raw_tcp::RawTcp};

use crate::{
    attacker::{Attacker, TEXT, header, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const SOME: Reached = Reached::AtMost(PINGS as u64);
/// Silence, longer than a delayed acknowledgement, shorter than a neighbour query.
const SILENCE: Duration = Duration::from_millis(1400);

/// Make the server forget the client's Ethernet address, and get no answer.
fn hide(attacker: &Attacker, tcp: &RawTcp) -> Result<()> {
    let at = format!("{} dev {INTERFACE}", tcp.client.ip());
    attacker.stage.pair.server.ip(&format!("neigh del {at}"))?;
    Ok(())
}

/// Tell the server the address.
fn show(attacker: &Attacker, tcp: &RawTcp) -> Result<()> {
    let mac: Vec<String> = tcp.mac().iter().map(|byte| format!("{byte:02x}")).collect();
    let neighbour = format!("{} lladdr {}", tcp.client.ip(), mac.join(":"));
    let server = &attacker.stage.pair.server;
    server.ip(&format!("neigh replace {neighbour} nud permanent dev {INTERFACE}"))?;
    Ok(())
}

/// A frame whose acknowledgement waits;
/// another one takes its place, and makes payload of all that follows.
fn acknowledgement_that_waits_for_an_address(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    hide(attacker, &tcp)?;
    let mut other = tcp.segment(0, header(60_000));
    tcp.push(&[&TEXT[..], &[0x81, 0x82]].concat())?;
    ensure!(other.payload.len() == TEXT.len() + 2, "{} bytes", other.payload.len());
    thread::sleep(SILENCE);
    other = tcp.again(&other);
    tcp.send(&other)?;
    tcp.settle(Duration::from_millis(30))?;
    show(attacker, &tcp)?;
    tcp.settle(Duration::from_millis(50))?;
    // The rest of the second text, and the pings.
    try_all(&mut tcp, &[&[0; 4][..], b"xx", &pings(PINGS)].concat())?;
    one(tcp)
}

pub const ROWS: &[Row] = &[Row::new(
    "acknowledgement_that_waits_for_an_address",
    SOME,
    acknowledgement_that_waits_for_an_address,
)];
