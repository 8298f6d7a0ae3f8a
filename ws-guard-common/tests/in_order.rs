//! Streams that come in order: every figure equals the oracle's, however segments cut them.

use ws_guard_common::{
    flow::{DEFLATE, state},
    replay::{Mode, Replay, Verdict},
};
use ws_guard_oracle::{
    cases::{cases, one_in},
    frames::{self, Counts, Side},
    guard::Allowance,
    streams::{boundaries, initial, stream},
};

/// The flow's counts, in the oracle's terms.
fn counted(replay: &Replay) -> Counts {
    let flow = &replay.flow;
    Counts {
        frames: flow.frames_in,
        pings: flow.pings_in,
        pongs: flow.pongs_in,
        violations: flow.violations,
        by_kind: replay.by_kind,
        coalesced_segments: flow.coalesced_segments,
        split_headers: flow.split_headers,
        split_frames: flow.split_frames,
    }
}

#[test]
fn counts_are_the_oracles_and_pings_past_the_budget_are_defused() {
    cases(10_000, |rng| {
        let deflate = one_in(rng, 3);
        let length = rng.usize(1..40);
        let sent = stream(rng, true, length);
        let boundaries = boundaries(rng, sent.len(), 0xFFFF);
        let base = initial(rng);
        let side = Side { from_client: true, deflate };
        let mut replay =
            Replay::open(base, rng.u32(..), if deflate { DEFLATE } else { 0 }, Mode::Guard);
        let allowed = if one_in(rng, 3) { u32::MAX - 1 } else { rng.u32(..20) };
        let mut allowance = Allowance::new(allowed);
        let mut received = sent.clone();
        let mut from = 0;
        let mut acked = 0;
        for boundary in &boundaries {
            let seq = base.wrapping_add(from as u32);
            let verdict = replay.client(seq, &mut received[from..*boundary], &mut allowance);
            assert_eq!(verdict, Verdict::Pass);
            from = *boundary;
            if one_in(rng, 3) {
                acked = rng.usize(acked..=from);
                replay.acknowledge(base.wrapping_add(acked as u32));
            }
        }
        let expected = frames::count(&sent, side, &boundaries);
        assert_eq!(
            counted(&replay),
            expected,
            "{} bytes in {} segments",
            sent.len(),
            boundaries.len()
        );
        assert_eq!(replay.flow.state, state::OPEN);
        assert_eq!(allowance.charged, expected.pings);
        assert_eq!(replay.flow.defused, expected.pings.saturating_sub(u64::from(allowed)));
        let mut expected_bytes = sent.clone();
        let all = frames::frames(&sent, side);
        for ping in all.iter().filter(|frame| frame.is_ping()).skip(allowed as usize) {
            expected_bytes[ping.at] ^= 0x9 ^ 0xA;
        }
        assert!(received == expected_bytes, "the stream was changed elsewhere");
        let whole = all.iter().filter(|frame| frame.end.is_some());
        assert!(
            whole
                .map(|frame| base.wrapping_add(frame.at as u32))
                .eq(replay.headers.iter().map(|seen| seen.seq)),
            "headers at other places than the oracle's"
        );
    });
}
