//! No honest TCP stalls: whatever two paths do to its segments, before the guard and behind it, each
//! transfer finishes.

use ws_guard_common::{
    flow::{DEFLATE, state},
    replay::{Mode, Replay},
};
use ws_guard_oracle::{
    cases::{batches, one_in, wanted},
    frames::{self, Side},
    guard::{Allowance, OnHost},
    streams::{initial, messages, stream},
    transfer::{Route, Transfer},
};

/// Number of transfers in an ordinary run, and at most.
const ORDINARY: u64 = 3_000;
const MOST: u64 = 100_000;

/// Of a frame's length so much is never honest, and a trail does not keep it.
const ENDLESS: u128 = 1 << 62;

#[test]
fn every_transfer_comes_to_its_end() {
    let (mut stalls, mut count) = (0, 0);
    batches(wanted(ORDINARY).min(MOST), |rng| {
        let seed = rng.get_seed();
        let frames = rng.usize(1..60);
        let sent = if one_in(rng, 3) { stream(rng, true, frames) } else { messages(rng) };
        let last = frames::frames(&sent, Side::CLIENT).pop();
        if last.and_then(|frame| frame.end).is_some_and(|end| end >= ENDLESS) {
            return 1;
        }
        let route = Route::any(rng);
        let allowed = if one_in(rng, 3) { rng.u32(..20) } else { u32::MAX - 1 };
        let base = initial(rng);
        let replay = Replay::open(base, 0, DEFLATE, Mode::Guard);
        let mut guard = OnHost { replay, allowance: Allowance::new(allowed) };
        // Pings behind a gap pass all or wait until they may, which they never may here.
        guard.allowance.throttled = allowed < u32::MAX - 1;
        let mut transfer = Transfer::new(base, &sent, route, &mut guard);
        count += 1;
        if !transfer.run(rng) {
            stalls += 1;
            let (una, dropped) = (transfer.sender.una, &transfer.dropped);
            eprintln!(
                "WS_GUARD_SEED={seed}: stalled at {una} of {}: {route:?}, dropped {dropped:?}, forged {}",
                sent.len(),
                transfer.forged
            );
            return 1;
        }
        let arrived = transfer.receiver.stream.clone();
        let flow = &guard.replay.flow;
        assert_eq!((flow.state, flow.unsynced_total), (state::OPEN, 0), "{route:?}");
        let expected = frames::count(&sent, Side::CLIENT, &[]);
        assert_eq!((flow.frames_in, flow.pings_in), (expected.frames, expected.pings));
        assert_eq!(guard.allowance.charged, expected.pings);
        // Only pings were changed, and no more passed than may.
        let mut passed = 0;
        let mut same = sent.clone();
        for ping in frames::frames(&sent, Side::CLIENT).iter().filter(|frame| frame.is_ping()) {
            passed += u64::from(arrived[ping.at] == sent[ping.at]);
            same[ping.at] = arrived[ping.at];
            assert!((sent[ping.at] ^ arrived[ping.at]) & !(0x9 ^ 0xA) == 0);
        }
        assert!(arrived == same, "the stream was changed elsewhere");
        assert!(passed <= u64::from(allowed), "{passed} pings of {allowed} passed");
        1
    });
    assert!(stalls == 0, "{stalls} of {count} transfers stalled");
}
