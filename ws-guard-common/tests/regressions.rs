//! One fixture for each error that the property tests found.

mod oracle;
mod support;

use support::Allowance;
use ws_guard_common::replay::{Mode, Replay, Verdict};

/// A guarded connection whose client starts at sequence number 0.
fn guarded() -> Replay {
    Replay::open(0, 0, 0, Mode::Guard)
}

/// A segment of the client that must pass, with no ping allowed.
fn pass(replay: &mut Replay, seq: u32, payload: &[u8]) {
    let verdict = replay.client(seq, &mut payload.to_vec(), &mut Allowance::new(0));
    assert_eq!(verdict, Verdict::Pass, "{payload:x?} at {seq}");
}

#[test]
fn a_border_inside_the_masking_key_splits_the_header() {
    let mut replay = guarded();
    pass(&mut replay, 0, &[0x81, 0x82, 1, 2]);
    pass(&mut replay, 4, &[3, 4, 0, 0]);
    assert_eq!((replay.flow.split_headers, replay.flow.split_frames), (1, 1));
    // Cut twice, it is still one header.
    pass(&mut replay, 8, &[0x81]);
    pass(&mut replay, 9, &[0x80, 1, 2]);
    pass(&mut replay, 12, &[3, 4]);
    assert_eq!((replay.flow.split_headers, replay.flow.split_frames), (2, 2));
}
