//! The rate window against a list of all ping times.

use fastrand::Rng;
use ws_guard_common::window::{Rate, RateWindow, SLOTS};
use ws_guard_oracle::{
    cases::{cases, one_in},
    pings::{Pings, later},
};

#[test]
fn charge_is_exact_up_to_the_slots_and_errs_by_less_than_a_group_above() {
    cases(10_000, |rng| {
        let exact = !one_in(rng, 3);
        let limit = if exact { rng.u32(1..=64) } else { rng.u32(65..600) };
        let window = rng.u32(1..20_000);
        let rate = Rate::new(limit, window, 0).expect("in range");
        let (mut log, mut oracle) = (RateWindow::new(), Pings::default());
        let mut kept_times = Pings::default();
        // Near where 32 bit milliseconds wrap, every other time.
        let mut now =
            if one_in(rng, 2) { (1 << 32) - rng.u64(..40_000) } else { rng.u64(..1 << 40) };
        for _ in 0..rng.usize(1..60) {
            now = later(rng, now, window.into());
            let pings = if one_in(rng, 4) { rng.u32(1..2 * limit + 2) } else { rng.u32(1..4) };
            let before = oracle.inside(now, window.into());
            let room = log.room(now as u32, rate, limit);
            if exact {
                assert_eq!(u64::from(room), u64::from(limit).saturating_sub(before));
                assert_eq!(log.has_room(now as u32, rate), room > 0);
            }
            let expected =
                (0..pings).filter(|_| oracle.ping(now, limit.into(), window.into())).count() as u32;
            let kept = log.charge(now as u32, rate, pings);
            let inside = u64::from(log.count(now as u32, rate));
            if exact {
                assert_eq!(kept, expected, "limit {limit}, {pings} pings at {now}");
                assert_eq!(inside, oracle.inside(now, window.into()).min(64));
            } else {
                assert!(kept >= expected, "{kept} kept of {pings}, limit {limit}: {expected}");
            }
            (0..kept).for_each(|_| kept_times.log(now));
            let passed = kept_times.inside(now, window.into());
            let most = u64::from(limit + rate.max_error());
            assert!(passed <= most, "{passed} pings kept to a limit of {limit}");
        }
    });
}

#[test]
fn many_at_once_are_as_many_one_by_one() {
    cases(10_000, |rng| {
        let rate = Rate::new(rng.u32(..=64), rng.u32(1..20_000), rng.u32(..10)).expect("in range");
        let (mut batch, mut single) = (RateWindow::new(), RateWindow::new());
        let mut now = rng.u64(..1 << 33);
        for _ in 0..rng.usize(1..40) {
            now = later(rng, now, rate.window_ms.into());
            let pings = if one_in(rng, 4) { rng.u32(..1200) } else { rng.u32(..4) };
            let kept: u32 = (0..pings).map(|_| single.charge(now as u32, rate, 1)).sum();
            let at_once = batch.charge(now as u32, rate, pings);
            assert_eq!(at_once, kept, "{pings} at {now}, {rate:?}");
        }
    });
}

#[test]
fn a_log_in_other_groups_keeps_the_pings_that_came_before() {
    cases(10_000, |rng| {
        let window = rng.u32(100..20_000);
        let limit = |rng: &mut Rng| match rng.u8(..3) {
            0 => rng.u32(1..=64),
            1 => rng.u32(65..600),
            _ => rng.u32(600..100_000),
        };
        let rate = |limit| Rate::new(limit, window, 0).expect("in range");
        let (old, new) = (rate(limit(rng)), rate(limit(rng)));
        let (mut log, mut oracle) = (RateWindow::new(), Pings::default());
        let mut now = rng.u64(1 << 20..1 << 33);
        for _ in 0..rng.usize(1..20) {
            now += rng.u64(..=u64::from(window) / 8);
            let pings = rng.u32(1..4);
            log.charge(now as u32, old, pings);
            (0..pings).for_each(|_| oracle.log(now));
        }
        log.regroup(now as u32, new, &mut [0; SLOTS]);
        // A group that was split counts from its first ping on.
        let error = (1 << old.shift) + (1 << new.shift) - 2;
        for _ in 0..rng.usize(1..20) {
            now += rng.u64(..=u64::from(window) / 8);
            let expected = oracle.ping(now, new.limit.into(), window.into());
            let kept = log.charge(now as u32, new, 1) == 1;
            assert!(kept || !expected, "a ping at {now} kept to {new:?}, after {old:?}");
            let inside = oracle.inside(now, window.into());
            let most = u64::from(new.limit + error);
            assert!(!kept || inside <= most, "{inside} pings keep to {new:?}, after {old:?}");
        }
    });
}

/// Times are true ones, in microseconds; the log has those of a clock that advances in steps, the same on all CPUs
/// or each CPU's first time in a step.
#[test]
fn a_clock_that_advances_in_steps_lets_no_more_into_any_window() {
    cases(10_000, |rng| {
        let (limit, window, step) = (rng.u32(1..=64), rng.u32(1..20_000), rng.u64(1..=10));
        let rate = Rate::new(limit, window, step as u32).expect("in range");
        let (mut log, mut kept) = (RateWindow::new(), Vec::new());
        let phase = rng.u64(..step * 1000);
        let (same, mut cpus) = (one_in(rng, 2), [(u64::MAX, 0); 3]);
        let mut now = rng.u64(1 << 20..1 << 40);
        for _ in 0..rng.usize(1..200) {
            // A whole window further on but for some microseconds, or anywhere.
            now += match rng.u8(..3) {
                0 => (u64::from(window) * 1000).saturating_sub(rng.u64(..12_000)),
                1 => rng.u64(..=u64::from(window) * 1000 / u64::from(limit)),
                _ => 0,
            };
            let tick = (now - phase) / (step * 1000);
            let cpu = &mut cpus[rng.usize(..3)];
            if cpu.0 != tick {
                *cpu = (tick, now);
            }
            let stamp = if same { tick * step * 1000 + phase } else { cpu.1 } / 1000;
            kept.extend((log.charge(stamp as u32, rate, 1) == 1).then_some(now));
        }
        for pings in kept.windows(limit as usize + 1) {
            let apart = pings[limit as usize] - pings[0];
            assert!(
                apart > u64::from(window) * 1000,
                "{limit} and one more in {apart} us: {rate:?}"
            );
        }
    });
}
