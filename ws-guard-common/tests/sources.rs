//! The limit of a source and the shares of its connections, against a list of all ping times.

use ws_guard_common::{
    flow::Flow,
    maps::{Limits, action},
    source::{Charged, MANUAL, Pings as Sent, Source},
    window::Rate,
};
use ws_guard_oracle::{
    cases::{cases, one_in},
    pings::{Pings, later},
};

/// A source and its connections, as the kernel programs charge them.
struct Crowd {
    source: Source,
    flows: Vec<Flow>,
    rate: Rate,
    share: u32,
}

impl Crowd {
    fn new(connections: usize, limit: u32, share: u32, window_ms: u32) -> Crowd {
        let rate = Rate::new(limit, window_ms, 0).expect("in range");
        let limits = Limits { rate, action: action::DEFUSE, ..Limits::default() };
        let source = Source { limits, ..Source::default() };
        Crowd { source, flows: vec![Flow::default(); connections], rate, share }
    }

    fn ping(&mut self, connection: usize, now: u64, count: u32) -> Charged {
        let flow = &mut self.flows[connection];
        let share = flow.share_room(now as u32, self.share, self.rate.window_ms, count);
        let most = flow.charge(now as u32, Rate { limit: 0, ..self.rate }, count);
        self.source.charge(now * 1_000_000, Sent { count, share, most, held: 0 })
    }
}

#[test]
fn a_ping_is_over_if_and_only_if_window_and_share_are_used_up() {
    cases(10_000, |rng| {
        let (limit, share, window) = (rng.u32(1..=64), rng.u32(..=64), rng.u32(10..20_000));
        let connections = rng.usize(1..6);
        let mut crowd = Crowd::new(connections, limit, share, window);
        let mut all = Pings::default();
        let mut of = vec![Pings::default(); connections];
        let mut passed = Pings::default();
        let mut now = rng.u64(..1 << 33);
        for _ in 0..rng.usize(1..80) {
            now = later(rng, now, window.into());
            let connection = rng.usize(..connections);
            let count = if one_in(rng, 4) { rng.u32(1..100) } else { rng.u32(1..3) };
            let defused = crowd.source.defused_total;
            let charged = crowd.ping(connection, now, count);
            let keeps = |_: &u32| {
                let full = !all.ping(now, limit.into(), window.into());
                let used = share == 0 || !of[connection].ping(now, share.into(), window.into());
                !(full && used)
            };
            let kept = (0..count).filter(keeps).count() as u32;
            assert_eq!((charged.kept, charged.over), (kept, count - kept), "{count} at {now}");
            assert_eq!(crowd.source.defused_total - defused, u64::from(charged.over));
            (0..kept).for_each(|_| passed.log(now));
            // What one connection has of the limit, and the shares of all others.
            let most = limit.max(share) + share * (connections as u32 - 1);
            let inside = passed.inside(now, window.into());
            assert!(inside <= u64::from(most), "{inside} passed, at most {most}");
        }
    });
}

#[test]
fn one_connection_alone_gets_exactly_the_limit() {
    cases(10_000, |rng| {
        let (limit, window) = (rng.u32(1..=64), rng.u32(10..20_000));
        let mut crowd = Crowd::new(1, limit, rng.u32(..=limit), window);
        let mut all = Pings::default();
        let mut now = rng.u64(..1 << 33);
        for _ in 0..rng.usize(1..200) {
            now = later(rng, now, window.into());
            let keeps = all.ping(now, limit.into(), window.into());
            assert_eq!(crowd.ping(0, now, 1).kept, u32::from(keeps), "at {now}");
        }
    });
}

#[test]
fn whoever_keeps_to_the_share_is_never_touched() {
    cases(10_000, |rng| {
        let (limit, share, window) = (rng.u32(1..=64), rng.u32(1..=8), rng.u32(10..20_000));
        let mut crowd = Crowd::new(2, limit, share, window);
        let mut polite = Pings::default();
        let mut now = rng.u64(..1 << 33);
        for _ in 0..rng.usize(1..100) {
            now = later(rng, now, window.into());
            if one_in(rng, 2) {
                crowd.ping(0, now, rng.u32(1..100));
            } else if polite.inside(now, window.into()) < share.into() {
                polite.log(now);
                assert_eq!(crowd.ping(1, now, 1).over, 0, "at {now}");
            }
        }
    });
}

#[test]
fn a_source_is_throttled_for_a_window_after_the_last_ping_over_the_limit() {
    cases(10_000, |rng| {
        let (limit, window) = (rng.u32(1..=64), rng.u32(10..20_000));
        let mut crowd = Crowd::new(1, limit, 0, window);
        let mut all = Pings::default();
        let mut now = rng.u64(..1 << 33);
        let mut over_until = 0;
        for _ in 0..rng.usize(1..200) {
            now = later(rng, now, window.into());
            let keeps = all.ping(now, limit.into(), window.into());
            let charged = crowd.ping(0, now, 1);
            assert_eq!(charged.throttled, !keeps && over_until <= now);
            if !keeps {
                over_until = now + u64::from(window);
            }
            assert_eq!(crowd.source.is_throttled(now * 1_000_000), over_until > now);
        }
    });
}

#[test]
fn an_operators_throttling_leaves_connections_their_shares() {
    let mut crowd = Crowd::new(2, 30, 5, 10_000);
    crowd.source.throttle(0, u64::MAX, 0);
    assert_eq!(crowd.source.flags & MANUAL, MANUAL);
    for connection in 0..2 {
        let charged = crowd.ping(connection, 1, 10);
        assert_eq!((charged.kept, charged.spared, charged.over), (5, 5, 5));
    }
}
