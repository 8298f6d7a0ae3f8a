//! Packets larger than a page: jumbo frames, and merged segments of offloads.
//! Most of their bytes lie in other buffers than the headers.
use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::Frame,
    netns::{Family, INTERFACE, Pair, PairOptions},
    servers::Library,
    statistics::{lost, tcp},
};

use crate::{
    defuse::patient,
    stage::{Stage, WAIT},
    talk::{answered, ensure_echoed, pings, round_trip, text},
};

pub const LIMIT: u64 = 30;
/// Number of rounds, each of which starts its pings, of 14 bytes, one byte later:
/// every byte of a header falls on the boundary between two buffers once.
const ROUNDS: u64 = 14;
const MTU: u32 = 9000;
/// Length of the text before the pings of a round:
/// together they fill one jumbo frame, whose first page ends among the pings.
const TEXT: u64 = 2500;
const PINGS: u64 = 450;
/// Number of pings with offloads, where the guard sees up to 64 KiB at once.
const PINGS_OFFLOADED: u64 = 4000;

/// Check that no ping past the limit is answered, deep in large packets.
pub fn deep_pings(stage: &Stage, mut client: Client, each: u64) -> Result<()> {
    client.send(&pings(0, LIMIT), &Cut::Whole)?;
    round_trip(&mut client, "within the limit")?;
    let before = lost(&stage.pair.client)?;
    let mut sent = vec![b"within the limit".to_vec()];
    for round in 0..ROUNDS {
        let message = text((TEXT + round) as usize, round);
        let mut frames = vec![Frame::text(&message)];
        frames.extend(pings(LIMIT + round * each, each));
        client.send(&frames, &Cut::Whole)?;
        sent.push(message.into_bytes());
        let wanted = sent.len() as u64;
        ensure!(client.wait(WAIT, |r| r.ended || r.messages == wanted), "round {round}: no echo");
        // Two rounds in flight have more headers than a trail has room for.
        ensure!(client.drain(WAIT), "round {round}: the server does not acknowledge");
    }
    round_trip(&mut client, "the end")?;
    sent.push(b"the end".to_vec());
    ensure!(client.drain(WAIT), "the server does not acknowledge");
    ensure_echoed(&client, &sent)?;
    ensure!(answered(&client).into_iter().eq(0..LIMIT), "{:?}", answered(&client));
    let (flow, defused) = (stage.flow(&client)?, ROUNDS * each);
    ensure!((flow.pings_in, flow.defused) == (LIMIT + defused, defused), "{flow:?}");
    ensure!(flow.frames_in == LIMIT + defused + sent.len() as u64, "{flow:?}");
    ensure!((flow.violations, flow.gaps, flow.unsynced_total) == (0, 0, 0), "{flow:?}");
    ensure!(lost(&stage.pair.client)? == before, "something was lost");
    client.close().map(drop)
}

fn mode_sees_all(mode: &str) -> Result<()> {
    for (offloads, each) in [(false, PINGS), (true, PINGS_OFFLOADED)] {
        let options = PairOptions { mtu: MTU, offloads, ..PairOptions::default() };
        let words = format!("--attach {mode} --window-seconds 60 --pace off");
        let pair = Pair::new(options)?;
        patient(&pair)?;
        pair.server.one_cpu(INTERFACE)?;
        let stage = Stage::on(pair, &[Library::Gorilla], &words)?;
        let status: serde_json::Value = stage.guard.ask("status")?;
        ensure!(status["interfaces"][0]["ingress"] == mode, "{status}");
        for family in Family::BOTH {
            deep_pings(&stage, stage.client(family, 0)?, each)
                .with_context(|| format!("{family:?}, offloads {offloads}, {}", stage.drops()))?;
        }
        for errors in ["InErrs", "InCsumErrors"] {
            let counted = tcp(&stage.pair.server, errors)?;
            ensure!(counted == 0, "{errors} of the server: {counted}");
        }
        let totals = stage.finish_one()?;
        ensure!(totals.pings == 2 * LIMIT, "{totals:?}");
    }
    Ok(())
}

macro_rules! jumbo_frames {
    ($($name:ident: $mode:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            needs_root!();
            mode_sees_all($mode)
        }
    )*};
}

jumbo_frames! {
    native_xdp_sees_every_buffer: "xdp-native";
    generic_xdp_sees_every_buffer: "xdp-generic";
    tcx_sees_every_buffer: "tcx";
    clsact_sees_every_buffer: "clsact";
}
