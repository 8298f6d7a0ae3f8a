//! `defuse`: pings past the limit are not answered, and nothing else changes.
use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, INTERFACE, Pair, PairOptions},
    servers::{Library, Server},
    statistics::{lost, tcp},
};

use crate::{
    stage::{PORT, Stage, WAIT},
    talk::{answered, ensure_echoed, pings, text},
};

const LIMIT: u64 = 30;
const ROUNDS: u64 = 30;
/// Pings between two messages.
const PINGS: u64 = 40;

/// Flood with pings, and between them send messages of all sizes, cut in many ways.
/// Return the messages.
fn flood_and_talk(client: &mut Client) -> Result<Vec<Vec<u8>>> {
    let mut sent = Vec::new();
    for round in 0..ROUNDS {
        let message = text((round * round * 17) as usize, round);
        let mut frames = pings(round * PINGS, PINGS / 2);
        frames.push(Frame::text(&message));
        frames.extend(pings(round * PINGS + PINGS / 2, PINGS / 2));
        let cut = match round % 4 {
            0 => Cut::Whole,
            // Odd and even offsets: the checksum of a changed byte differs between them.
            1 => Cut::Every(7),
            2 => Cut::Every(101),
            _ => Cut::Every(2),
        };
        client.send(&frames, &cut)?;
        sent.push(message.into_bytes());
        let wanted = sent.len() as u64;
        ensure!(
            client.wait(WAIT, |r| r.ended || r.messages == wanted),
            "round {round}: no echo, pongs {}",
            client.received().pongs
        );
    }
    ensure!(client.drain(WAIT), "the server does not acknowledge");
    Ok(sent)
}

/// Play the same talk without a guard; return the number of lost client segments.
fn without_guard(pair: &Pair, library: Library, family: Family) -> Result<u64> {
    let server = Server::start(&pair.server, library, PORT, None)?;
    let at = server.at(family.server());
    let mut client = Client::connect(&pair.client, at, ConnectOptions::default())?;
    let before = lost(&pair.client)?;
    let sent = flood_and_talk(&mut client)?;
    let after = lost(&pair.client)?;
    ensure_echoed(&client, &sent)?;
    ensure!(client.received().pongs > LIMIT, "unguarded, it answers them");
    client.close()?;
    server.stop()?;
    Ok(after.saturating_sub(before))
}

/// Raise the minimum retransmission timeout:
/// no segment is sent again because an answer takes long on a busy machine, only because it, or a
/// later one, was lost.
pub fn patient(pair: &Pair) -> Result<()> {
    pair.client.sysctl("net/ipv4/tcp_early_retrans", "0")?;
    pair.client.ip(&format!("route change 10.77.0.0/16 dev {INTERFACE} rto_min 4s"))?;
    pair.client.ip(&format!("-6 route add fd77::/48 dev {INTERFACE} metric 1 rto_min 4s"))
}

/// Test one server behind one attach mode.
/// The pace is one at which the talk does not take a minute.
fn defuses(library: Library, mode: &str, family: Family, offloads: bool) -> Result<()> {
    let pair = Pair::new(PairOptions { offloads, ..PairOptions::default() })?;
    patient(&pair)?;
    let usual = without_guard(&pair, library, family)?;
    let stage = Stage::on(
        pair,
        &[library],
        &format!("--attach {mode} --window-seconds 60 --pace 256KiB/s"),
    )?;
    let mut client = stage.client(family, 0)?;
    let before = lost(&stage.pair.client)?;
    let sent = flood_and_talk(&mut client)?;
    let lost = lost(&stage.pair.client)?.saturating_sub(before);
    ensure_echoed(&client, &sent)?;
    ensure!(lost <= usual, "{lost} segments lost, {usual} without the guard");
    // A server may answer the latest ping alone (RFC 6455, 5.5.3), but none past the limit.
    let answered = answered(&client);
    ensure!(answered.iter().all(|n| *n < LIMIT) && !answered.is_empty(), "{answered:?}");
    let (flow, source) = (stage.flow(&client)?, stage.source(family, 0)?);
    let pings = ROUNDS * PINGS;
    ensure!((flow.pings_in, flow.defused) == (pings, pings - LIMIT), "{flow:?}");
    ensure!((source.pings_total, source.defused_total) == (pings, pings - LIMIT), "{source:?}");
    ensure!(flow.frames_in == pings + ROUNDS && flow.violations == 0, "{flow:?}");
    ensure!(flow.pongs_out == client.received().pongs, "{flow:?}");
    for errors in ["InErrs", "InCsumErrors"] {
        let counted = tcp(&stage.pair.server, errors)?;
        ensure!(counted == 0, "{errors} of the server: {counted}");
    }
    client.close()?;
    let totals = stage.finish_one()?;
    ensure!((totals.pings, totals.pongs) == (LIMIT, pings - LIMIT), "{totals:?}");
    ensure!(totals.messages == ROUNDS, "{totals:?}");
    Ok(())
}

macro_rules! defuses {
    ($($name:ident: $library:ident, $mode:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            needs_root!();
            for (family, offloads) in [(Family::V4, false), (Family::V6, true)] {
                defuses(Library::$library, $mode, family, offloads)
                    .with_context(|| format!("{family:?}, offloads {offloads}, {INTERFACE}"))?;
            }
            Ok(())
        }
    )*};
}

defuses! {
    native_xdp_before_tokio_tungstenite: TokioTungstenite, "xdp-native";
    generic_xdp_before_python: Python, "xdp-generic";
    tcx_before_npm_ws: Ws, "tcx";
    clsact_before_gorilla: Gorilla, "clsact";
}
