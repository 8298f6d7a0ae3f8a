//! Honest clients whose slot of the trails belongs to another: what they pay, and that they arrive.

use fastrand::Rng;
use ws_guard_common::replay::{Mode, Replay};
use ws_guard_oracle::{
    cases::{batches, wanted},
    guard::{Allowance, OnHost},
    sender::Time,
    streams::initial,
    transfer::{Route, Transfer},
    wire::Mangling,
};

/// Clients in an ordinary run.
const CLIENTS: u64 = 50;
/// Payload of a frame, and number of frames in a segment.
const FRAME: usize = 32;
const TOGETHER: usize = 32;
const SEGMENTS: usize = 200;

/// Segments of small frames.
fn stream() -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | FRAME as u8, 1, 2, 3, 4];
    frame.resize(6 + FRAME, b'x');
    frame.repeat(TOGETHER * SEGMENTS)
}

/// A path of 40 ms that loses segments before the guard and behind it, in a thousand.
fn route(before: u32, behind: u32) -> Route {
    let wire = |lost| Mangling { lost, delay: 10, ..Mangling::default() };
    Route {
        before: wire(before),
        behind: wire(behind),
        back: [wire(0), wire(0)],
        mss: (6 + FRAME) * TOGETHER,
        shrinks: None,
        burst: 1,
        sack: true,
        room: 400_000,
        reads: 1_000_000,
        download: (0, 0),
    }
}

/// Time of an upload, unless it stalls.
fn upload(rng: &mut Rng, sent: &[u8], route: Route, has_trail: bool) -> Option<Time> {
    let base = initial(rng);
    let mut replay = Replay::open(base, 0, 0, Mode::Guard);
    replay.has_trail = has_trail;
    let mut guard = OnHost { replay, allowance: Allowance::new(u32::MAX - 1) };
    let mut transfer = Transfer::new(base, sent, route, &mut guard);
    let arrives = transfer.run(rng);
    arrives.then_some(transfer.now)
}

#[test]
fn a_busy_client_without_a_trail_is_slower_and_arrives() {
    let sent = stream();
    for (before, behind) in [(0, 0), (10, 0), (0, 10), (10, 10)] {
        let mut times = [Vec::new(), Vec::new()];
        batches(wanted(CLIENTS), |rng| {
            for has_trail in [true, false] {
                let time = upload(rng, &sent, route(before, behind), has_trail);
                let seed = rng.get_seed();
                let time = time.unwrap_or_else(|| panic!("stalled, {has_trail}, after {seed}"));
                times[usize::from(has_trail)].push(time);
            }
            1
        });
        let [without, with] = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        });
        println!("{before} and {behind} of 1000 lost: {with} ms, without a trail {without} ms");
    }
}
