//! A client that lies to the guard: segments that the receiver throws away, with other content at
//! the same sequence numbers. Whatever it does, the receiver reads no ping that was not charged.

use fastrand::Rng;
use ws_guard_common::{flow::state, replay::Mode};
use ws_guard_oracle::{
    cases::{cases, one_in},
    guard::OnHost,
    liar::Liar,
    receiver::Overlap,
};

fn attack(rng: &mut Rng, overlap: Overlap) {
    let base = rng.u32(..);
    let mut liar = Liar::new(rng, base, overlap);
    let mut guard = OnHost::new(base, Mode::Guard, rng.u32(..6));
    guard.replay.flow.generation = rng.u32(..);
    guard.replay.flow.client.mark = guard.replay.flow.generation;
    for _ in 0..rng.usize(2..40) {
        // Time passes, and pings leave the window.
        guard.allowance.left += if one_in(rng, 6) { rng.u32(..3) } else { 0 };
        liar.step(rng, &mut guard);
        assert_eq!((guard.replay.flow.state, guard.replay.flow.unsynced_total), (state::OPEN, 0));
        let (read, passed) = (liar.pings_read(), guard.allowance.passed);
        assert!(read <= passed, "the receiver reads {read} pings, {passed} were to pass");
    }
}

#[test]
fn a_linux_receiver_reads_no_ping_that_was_not_charged() {
    cases(100_000, |rng| attack(rng, Overlap::Linux));
}

/// Cases that once failed: a replacement that did not pass had replaced what the receiver held.
#[test]
fn what_does_not_pass_replaces_nothing() {
    for seed in [11_042_662_266_672_295_486, 5_783_003_261_296_077_973] {
        attack(&mut Rng::with_seed(seed), Overlap::Linux);
    }
}
