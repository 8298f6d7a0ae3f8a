//! Packets longer than on a wire: merged by GRO, not yet cut by TSO, jumbo frames.
use anyhow::Result;
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, INTERFACE, PairOptions},
};

use crate::{
    attacker::Attacker,
    row::{Peers, Reached, Row, play},
    stage::Stage,
};

/// Number of pings: more than a packet of 64 KiB holds.
const PINGS: usize = 40_000;
const ALL: Reached = Reached::Exactly(PINGS as u64);
/// Payload of a packet, in bytes, where packets of more than 64 KiB are allowed.
const BIG: u32 = 180_000;
/// Number of honest clients' addresses in the namespace; the rest are attackers'.
const HONEST: u8 = 20;

/// A flood sent by the kernel's own TCP, which cuts as late as it can.
fn in_one_write(attacker: &Attacker) -> Result<Peers> {
    let source = Some(attacker.family.client(HONEST + attacker.n));
    let options = ConnectOptions { source, ..ConnectOptions::default() };
    let mut client = Client::connect(&attacker.stage.pair.client, attacker.server()?, options)?;
    // Headers at odd offsets too, and none at the end of a packet.
    client.send(&vec![Frame::ping("odd"); PINGS], &Cut::Whole)?;
    Ok(vec![Box::new(Some(client))])
}

const ROWS: &[Row] = &[Row::new("in_one_write", ALL, in_one_write)];

/// Rows with packets of more than 64 KiB at both ends of the link.
/// IPv4 has a separate limit, which not every `ip` can set.
const BIG_ROWS: &[Row] = &[Row::new("in_one_write", ALL, in_one_write).only(&[Family::V6])];

/// Set up a stage where floods pass at full speed.
fn unpaced(attach: &str, options: PairOptions) -> Result<Stage> {
    let stage = Stage::new(attach, options)?;
    stage.guard.run("policy set --pace off")?;
    Ok(stage)
}

fn play_with(attach: &str, mtu: u32) -> Result<()> {
    let options = PairOptions { clients: 2 * HONEST, mtu, offloads: true };
    play(unpaced(attach, options)?, ROWS)
}

#[test]
fn super_packets_at_tc() -> Result<()> {
    needs_root!();
    play_with("tcx", 1500)
}

#[test]
fn super_packets_in_generic_xdp() -> Result<()> {
    needs_root!();
    play_with("xdp-generic", 1500)
}

#[test]
fn jumbo_frames() -> Result<()> {
    needs_root!();
    play_with("auto", 9000)
}

/// Packets of more than 64 KiB, where an operator has allowed them ("BIG TCP").
#[test]
fn packets_beyond_64_kilobytes_at_tc() -> Result<()> {
    needs_root!();
    let options = PairOptions { clients: 2 * HONEST, mtu: 1500, offloads: true };
    let stage = unpaced("tcx", options)?;
    for namespace in [&stage.pair.client, &stage.pair.server] {
        let sizes = format!("gso_max_size {BIG} gro_max_size {BIG}");
        namespace.ip(&format!("link set {INTERFACE} {sizes}"))?;
    }
    play(stage, BIG_ROWS)
}
