//! Checksum of a changed segment: right where real, untouched where partial.
use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    capture::{Capture, Captured},
    client::Cut,
    netns::{Family, PairOptions},
    raw::{Flags, Segment, Sender},
    servers::Library,
    statistics::tcp,
};

use crate::{
    stage::{Stage, WAIT, eventually},
    talk::{pings, round_trip},
};

const LIMIT: u64 = 30;
const WORDS: &str = "--attach xdp-native --window-seconds 60";

/// Return each ping over the limit, in front of the guard and behind it.
fn both_sides(stage: &Stage, family: Family) -> Result<Vec<(Captured, Captured)>> {
    let mut client = stage.client(family, 0)?;
    client.send(&pings(0, LIMIT), &Cut::Whole)?;
    round_trip(&mut client, "within the limit")?;
    ensure!(client.drain(WAIT), "the server does not acknowledge");
    let (mut left, mut came) =
        (Capture::new(&stage.pair.client)?, Capture::new(&stage.pair.server)?);
    for n in 0..20 {
        client.send(&pings(LIMIT + n, 1), &Cut::Whole)?;
        ensure!(client.drain(WAIT), "the server does not acknowledge");
    }
    round_trip(&mut client, "it goes on")?;
    let came = came.take();
    let ours =
        left.take().into_iter().filter(|s| s.source == client.local() && s.payload.len() == 14);
    let pairs = ours.map(|sent| {
        let same = came.iter().find(|s| s.source == sent.source && s.seq == sent.seq);
        Ok((sent, same.context("a segment did not arrive")?.clone()))
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    ensure!(pairs.len() == 20, "{} segments", pairs.len());
    ensure!(pairs.iter().all(|(sent, came)| sent.payload[0] == 0x89 && came.payload[0] == 0x8a));
    client.close()?;
    Ok(pairs)
}

#[test]
fn real_checksums_are_put_right() -> Result<()> {
    needs_root!();
    let options = PairOptions { offloads: false, ..PairOptions::default() };
    let stage = Stage::new(Library::Gorilla, options, WORDS)?;
    for family in Family::BOTH {
        for (sent, came) in both_sides(&stage, family)? {
            ensure!(sent.checksum != came.checksum, "{sent:?} {came:?}");
        }
    }
    ensure!(tcp(&stage.pair.server, "InErrs")? == 0);
    ensure!(tcp(&stage.pair.server, "InCsumErrors")? == 0);
    // Check that the counter counts: a segment with a wrong checksum.
    let sender = Sender::new(&stage.pair)?;
    let mut frame = sender.frame(&Segment {
        source: (Family::V4.client(0), 4711).into(),
        destination: (Family::V4.server(), crate::stage::PORT).into(),
        seq: 1,
        ack: 0,
        flags: Flags::Syn,
        payload: &[],
    })?;
    let last = frame.len() - 1;
    // The low byte of the urgent pointer, which a SYN without URG does not use.
    frame[last] ^= 1;
    sender.send_frame(&frame)?;
    eventually(
        "a wrong checksum is counted",
        || Ok(tcp(&stage.pair.server, "InCsumErrors")? == 1),
    )?;
    stage.finish_one().map(drop)
}

#[test]
fn partial_checksums_are_left_alone() -> Result<()> {
    needs_root!();
    let stage = Stage::new(Library::Gorilla, PairOptions::default(), WORDS)?;
    for family in Family::BOTH {
        for (sent, came) in both_sides(&stage, family)? {
            ensure!(sent.checksum == came.checksum, "{sent:?} {came:?}");
        }
    }
    ensure!(tcp(&stage.pair.server, "InErrs")? == 0);
    stage.finish_one().map(drop)
}
