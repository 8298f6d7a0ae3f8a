//! State of the stream at any place: as the trail says, and as a walk to that place says.

use ws_guard_common::{
    flow::{DEFLATE, Flow},
    tracker::{Step, Tracker, Walk},
    trail::{Traces, Trail},
};
use ws_guard_oracle::{
    cases::{cases, one_in},
    streams::{initial, messages, stream},
};

const ORDINARY: u64 = 300;

/// A walk through `bytes`, which are at `base`, from `start` on, and a call for each of its steps.
fn walk(start: Tracker, base: u32, bytes: &[u8], mut each: impl FnMut(&mut Walk)) -> Tracker {
    let mut walk = Walk::new(start, &start, base, bytes.len() as u32);
    walk.budget = Walk::UNLIMITED;
    while walk.step(&mut &*bytes) == Step::More {
        each(&mut walk);
    }
    walk.tracker
}

#[test]
fn a_trail_tells_where_the_stream_stood() {
    cases(ORDINARY, |rng| {
        let frames = rng.usize(1..60);
        let sent = if one_in(rng, 2) { stream(rng, true, frames) } else { messages(rng) };
        let base = initial(rng);
        let mut flow = Flow { generation: rng.u32(..), ..Flow::default() };
        flow.open(base, 0, if one_in(rng, 2) { DEFLATE } else { 0 }, 0);
        let start = flow.client;
        let (mut trail, mut count) = (Box::<Trail>::default(), 0);
        flow.client = walk(start, base, &sent, |walk| {
            if walk.seen.count > 0 {
                trail.put(flow.next_trace.wrapping_add(count), walk.seen.trace());
                (count, walk.seen.count) = (count + 1, 0);
            }
        });
        if count > flow.trail_room() {
            return;
        }
        flow.take_traces(count);
        let ends = flow.client;
        for _ in 0..40 {
            let to = rng.usize(..sent.len());
            let there = walk(start, base, &sent[..to], |_| {});
            let seq = base.wrapping_add(to as u32);
            if count == 0 || there.next == ends.next {
                continue;
            }
            let stood = trail.stood_at(&flow, seq);
            assert_eq!(stood, Some(there), "at {to} of {}", sent.len());
            assert!(trail.knows(&flow, &there), "{there:?}");
            let other = Tracker { mark: there.mark ^ 1 << rng.u32(..32), ..there };
            assert!(!trail.knows(&flow, &other), "{other:?}");
            let mut other = there;
            if other.carried > 0 {
                other.carry[rng.usize(..usize::from(other.carried))] ^= 1 << rng.u32(..8);
                assert!(!trail.knows(&flow, &other), "{other:?}");
            }
        }
    });
}
