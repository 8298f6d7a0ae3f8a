//! The tracker's shortcuts come to what its steps come to.

use ws_guard_common::{
    flow::{self, Flow},
    frame::{Header, Violations},
    ledger::Interval,
    tracker::{
        FROM_CLIENT, IN_MESSAGE, MESSAGE_UNKNOWN, RECORDS, RSV1_AGREED, Segment, Step, Tracker,
        Walk,
    },
};

/// Plain bytes; `slow` hides pairs of bytes, so that every header is taken byte by byte and no
/// shortcut applies.
struct Bytes {
    bytes: Vec<u8>,
    slow: bool,
    headers: Vec<(u32, Header, Violations)>,
}

impl Segment for Bytes {
    fn u8_at(&self, at: u32) -> Option<u8> {
        self.bytes.get(at as usize).copied()
    }

    fn u16_at(&self, at: u32) -> Option<u16> {
        let pair = self.bytes.get(at as usize..)?.first_chunk()?;
        (!self.slow).then(|| u16::from_be_bytes(*pair))
    }

    fn u64_at(&self, at: u32) -> Option<u64> {
        let eight = self.bytes.get(at as usize..)?.first_chunk()?;
        (!self.slow).then(|| u64::from_be_bytes(*eight))
    }

    fn defuse(&mut self, at: u32) {
        self.bytes[at as usize] ^= 3;
    }

    fn header(&mut self, seq: u32, header: Header, violations: Violations) {
        if !violations.is_empty() {
            self.headers.push((seq, header, violations));
        }
    }
}

fn segment(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.usize(1..30) {
        let first = match random.u8(0..10) {
            0 => random.u8(..),
            1 => 0x80 | random.u8(0..16),
            2 | 3 => 0x89,
            4 => 0x8A,
            5 => 0xC1 + random.u8(0..2),
            _ => 0x81 + random.u8(0..2),
        };
        let mask = if random.u8(0..20) == 0 { 0 } else { 0x80 };
        let len = match random.u8(0..8) {
            0 => 126,
            1 => 125,
            2 => random.u8(0..128),
            _ => random.u8(0..20),
        };
        bytes.extend([first, mask | len]);
        let rest = match len {
            126 => 2 + 4 + usize::from(random.u8(..)),
            len => 4 + usize::from(len),
        };
        bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(rest));
    }
    bytes.truncate(random.usize(1..=bytes.len()));
    bytes
}

fn run(bytes: &[u8], walk: Walk, slow: bool) -> (Walk, Bytes) {
    let mut segment = Bytes { bytes: bytes.to_vec(), slow, headers: Vec::new() };
    let mut walk = walk;
    assert_eq!(walk.run(&mut segment), Step::Done);
    (walk, segment)
}

/// `carry` aside: only a header that was cut leaves bytes there, and both ways zero it behind one.
fn counted(walk: &Walk) -> (Tracker, u32, u32, u32, u32, Violations) {
    (walk.tracker, walk.frames, walk.pings, walk.pongs, walk.violations, walk.kinds)
}

/// Commit the walk both ways, on a flow in any state in which it may be.
fn commits_alike(random: &mut fastrand::Rng, start: &Tracker, walk: &Walk) {
    let mut flow = Flow { generation: random.u32(..), ..Flow::default() };
    flow.open(start.next, 1, random.u8(..), 0);
    flow.client = *start;
    flow.high = start.next.wrapping_add(random.u32(0..3)).wrapping_sub(1);
    let len = random.u32(0..3) * 100;
    flow.defused_pings = Interval { from: start.next.wrapping_sub(len + random.u32(0..2)), len };
    assert_eq!(flow.client.between(), Some(*start));
    let (mut whole, mut one) = (flow, flow);
    whole.commit(start, walk, walk.pings);
    one.commit_one(walk, walk.pings);
    assert_eq!(format!("{one:?}"), format!("{whole:?}"), "from {flow:?}");
    assert!(flow.client.is_still(start) && !one.client.is_still(start));
    if walk.pings == 0 {
        return;
    }
    // Taken for one over the limit, at once or afterwards.
    let (mut defused, mut passed) = (flow, whole);
    defused.commit_one(walk, 0);
    let came_to = format!("{defused:?}");
    passed.take_back(1, start.next, walk.end());
    if passed.state == flow::state::OPEN {
        assert_eq!(came_to, format!("{passed:?}"), "from {flow:?}");
    }
    // And the other way round, except for pings between it and an earlier one that was defused.
    defused.give_back(start.next, walk.end());
    let (now, known) = (defused.defused_pings, whole.defused_pings);
    assert!(now.has(start.next) == 0 && known.has(start.next) == 0);
    assert!(known.len == 0 || now.from == known.from && now.len >= known.len);
    defused.defused_pings = known;
    if whole.state == flow::state::OPEN {
        assert_eq!(format!("{defused:?}"), format!("{whole:?}"), "from {flow:?}");
    }
}

#[test]
fn shortcuts_come_to_the_same() {
    let seed = std::env::var("WS_GUARD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut taken = 0;
    for case in 0..20_000 {
        let bytes = segment(&mut random);
        let base = random.u32(..);
        let known = random.u8(0..8) & (RSV1_AGREED | IN_MESSAGE)
            | if case % 50 == 0 { MESSAGE_UNKNOWN } else { 0 };
        let start = Tracker { mark: random.u32(..), ..Tracker::new(base, FROM_CLIENT | known) };
        let mut walk = Walk::new(start, &start, base, bytes.len() as u32);
        walk.budget = random.u32(0..6);
        let (fast, fast_bytes) = run(&bytes, walk, false);
        let (slow, slow_bytes) = run(&bytes, walk, true);
        assert_eq!(counted(&fast), counted(&slow), "case {case}, seed {seed}: {bytes:02x?}");
        assert_eq!(fast_bytes.bytes, slow_bytes.bytes, "case {case}, seed {seed}");
        assert_eq!(fast_bytes.headers, slow_bytes.headers, "case {case}, seed {seed}");
        let mut only = Walk::new(start, &start, base, bytes.len() as u32);
        let plain = Bytes { bytes: bytes.clone(), slow: false, headers: Vec::new() };
        if only.only(&plain) != 0 {
            taken += 1;
            walk.budget = Walk::UNLIMITED;
            let (slow, _) = run(&bytes, walk, true);
            assert_eq!(counted(&only), counted(&slow), "case {case}, seed {seed}: {bytes:02x?}");
            assert_eq!(only.splits_frame(), slow.splits_frame(), "case {case}, seed {seed}");
            commits_alike(&mut random, &start, &only);
        }
    }
    assert!(taken > 200, "only {taken} segments were of the common kind");
}

/// TLS records, most of them as they should be, cut anywhere.
fn records(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.usize(1..4) {
        let kind = if random.u8(0..10) == 0 { random.u8(..) } else { random.u8(20..25) };
        let major = if random.u8(0..20) == 0 { random.u8(..) } else { 3 };
        let length = if random.u8(0..10) == 0 { random.u16(..) } else { random.u16(0..300) };
        bytes.extend([kind, major, 3]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(length.into()));
    }
    bytes.truncate(random.usize(1..=bytes.len()));
    bytes
}

#[test]
fn the_shortcut_of_records_comes_to_the_same() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut taken = 0;
    for case in 0..5_000 {
        let bytes = records(&mut random);
        let base = random.u32(..);
        let start = Tracker { mark: random.u32(..), ..Tracker::new(base, FROM_CLIENT | RECORDS) };
        let walk = Walk::new(start, &start, base, bytes.len() as u32);
        let mut only = walk;
        let plain = Bytes { bytes: bytes.clone(), slow: false, headers: Vec::new() };
        let word = only.only_record(&plain);
        let (slow, _) = run(&bytes, walk, true);
        let single = bytes.len() >= 5 && slow.frames == 1 && slow.tracker.carried == 0;
        assert_eq!(word != 0, single && slow.violations == 0, "case {case}: {bytes:02x?}");
        if word != 0 {
            taken += 1;
            assert_eq!(counted(&only), counted(&slow), "case {case}: {bytes:02x?}");
            assert_eq!(only.splits_frame(), slow.splits_frame(), "case {case}");
            commits_alike(&mut random, &start, &only);
            assert_eq!(word.to_be_bytes(), bytes[..2]);
        }
    }
    assert!(taken > 500, "only {taken} segments were of the common kind");
}
