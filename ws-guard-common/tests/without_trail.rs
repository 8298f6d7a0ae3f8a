//! Clients whose slot of the trails belongs to another: what honest ones pay, and that others gain
//! nothing.

use fastrand::Rng;
use ws_guard_common::{
    flow::state,
    replay::{Mode, Replay},
};
use ws_guard_oracle::{
    cases::{batches, cases, wanted},
    guard::{Allowance, OnHost},
    liar::Liar,
    receiver::Overlap,
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

/// Lengths of segments: of whole frames, and one that splits a header in each sixth.
const LENGTHS: [usize; 2] = [(6 + FRAME) * TOGETHER, 1000];

/// A path of 40 ms that loses segments before the guard and behind it, in a thousand.
fn route(mss: usize, before: u32, behind: u32) -> Route {
    let wire = |lost| Mangling { lost, delay: 10, ..Mangling::default() };
    Route {
        before: wire(before),
        behind: wire(behind),
        back: [wire(0), wire(0)],
        mss,
        shrinks: None,
        burst: 1,
        sack: true,
        room: 400_000,
        reads: 1_000_000,
        download: (0, 0),
    }
}

/// Time of an upload, unless it stalls, and whether it gets out of sync.
fn upload(rng: &mut Rng, sent: &[u8], route: Route, has_trail: bool) -> (Option<Time>, bool) {
    let base = initial(rng);
    let mut replay = Replay::open(base, 0, 0, Mode::Guard);
    replay.has_trail = has_trail;
    let mut guard = OnHost { replay, allowance: Allowance::new(u32::MAX - 1) };
    let mut transfer = Transfer::new(base, sent, route, &mut guard);
    let arrives = transfer.run(rng);
    let time = arrives.then_some(transfer.now);
    (time, guard.replay.flow.unsynced_total > 0)
}

/// As in `adversary.rs`.
#[test]
fn a_receiver_reads_no_ping_that_was_not_charged() {
    cases(20_000, |rng| {
        let base = rng.u32(..);
        let mut liar = Liar::new(rng, base, Overlap::Linux);
        let mut guard = OnHost::new(base, Mode::Guard, rng.u32(..6));
        guard.replay.has_trail = false;
        guard.replay.flow.generation = rng.u32(..);
        guard.replay.flow.client.mark = guard.replay.flow.generation;
        for _ in 0..rng.usize(2..60) {
            guard.allowance.left += rng.u32(..8) / 7;
            liar.step(rng, &mut guard);
            assert_eq!(guard.replay.flow.state, state::OPEN);
            let (read, passed) = (liar.pings_read(), guard.allowance.passed);
            assert!(read <= passed, "the receiver reads {read} pings, {passed} were to pass");
        }
    });
}

#[test]
fn a_busy_client_without_a_trail_arrives() {
    let sent = stream();
    let losses = [(0, 0), (10, 0), (0, 10), (10, 10)];
    for (mss, (before, behind)) in
        LENGTHS.into_iter().flat_map(|mss| losses.map(|lost| (mss, lost)))
    {
        let (mut times, mut lost, mut stalls) = ([Vec::new(), Vec::new()], 0, 0);
        batches(wanted(CLIENTS), |rng| {
            for has_trail in [true, false] {
                let (time, unsynced) = upload(rng, &sent, route(mss, before, behind), has_trail);
                let judged = time.is_some() && !unsynced;
                assert!(judged || !has_trail && behind > 0, "{time:?}, {before} and {behind} lost");
                lost += u64::from(unsynced);
                stalls += u64::from(time.is_none());
                times[usize::from(has_trail)].extend(time);
            }
            1
        });
        let [without, with] = times.map(|mut times| {
            times.sort_unstable();
            (times[times.len() / 2], times[times.len() - 1])
        });
        let of = wanted(CLIENTS);
        println!(
            "{mss} bytes, {before} and {behind} of 1000 lost: median and most {with:?} ms; without a trail {without:?} ms, {lost} of {of} out of sync, {stalls} stall"
        );
    }
}
