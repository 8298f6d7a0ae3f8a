//! Ranges of out-of-order bytes, compared with a set of bytes: what is kept, what has no place, and in
//! which pages it is.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use ws_guard_common::{
    out_of_order::{BYTES, RANGES, Region, mesh, piece},
    pages,
    tracker::{FROM_CLIENT, Tracker},
};
use ws_guard_oracle::{
    cases::{cases, one_in},
    streams::initial,
};

/// The same as a [`Region`], byte by byte, by the distance from the stream's first byte.
#[derive(Default)]
struct Model {
    bytes: BTreeSet<u32>,
}

impl Model {
    /// First and last byte of each range.
    fn ranges(&self) -> BTreeMap<u32, u32> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for byte in &self.bytes {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *byte => *last = *byte,
                _ => ranges.push((*byte, *byte)),
            }
        }
        ranges.into_iter().collect()
    }

    fn known(&self, from: u32, len: u32) -> u32 {
        self.bytes.range(from..from + len).count() as u32
    }

    /// Add a segment, if there is a place for it.
    fn add(&mut self, from: u32, len: u32, more: bool) -> bool {
        let before = self.bytes.clone();
        let some = !before.is_empty();
        self.bytes.extend(from..from + len);
        let span = self.bytes.last().zip(self.bytes.first()).map_or(0, |(to, from)| to - from + 1);
        let alone = self.ranges().get(&from) == Some(&(from + len - 1))
            && self.known_is(&before, from, len);
        if self.ranges().len() > RANGES || span > BYTES || some && alone && !more {
            self.bytes = before;
            return false;
        }
        true
    }

    /// Check whether none of these bytes was there before.
    fn known_is(&self, before: &BTreeSet<u32>, from: u32, len: u32) -> bool {
        before.range(from..from + len).next().is_none()
    }

    /// Forget the ranges that begin at `cursor` or before.
    fn pass(&mut self, cursor: u32) {
        let stays = |range: &(u32, u32)| range.0 > cursor;
        let ranges: Vec<(u32, u32)> = self.ranges().into_iter().filter(stays).collect();
        self.bytes = ranges.into_iter().flat_map(|(from, to)| from..=to).collect();
    }
}

fn compare(region: &Region, model: &Model, base: u32) {
    let ranges = model.ranges();
    assert_eq!(region.len, model.bytes.len() as u32);
    let (mut at, mut places) = (base, 0);
    for (from, to) in &ranges {
        let next = region.next(at);
        assert_eq!((next.begin, next.len), (base.wrapping_add(*from), to - from + 1), "{ranges:?}");
        // Each of its pieces is in one page.
        let mut from = next.begin;
        while from != next.end() {
            let len = piece(&next, from, mesh(600, 1));
            let short = piece(&next, from, mesh(600, 0));
            let within = from.wrapping_sub(next.begin) % 600;
            assert_eq!(short, len.min(600 - within));
            let last = from.wrapping_add(len - 1);
            places |= 1 << pages::place(from);
            assert_eq!(from / pages::PAGE, last / pages::PAGE);
            from = from.wrapping_add(len);
            assert!(from == next.end() || from.is_multiple_of(pages::PAGE));
        }
        at = next.begin;
    }
    assert_eq!(region.next(at).len, 0);
    assert_eq!(region.pages(), places);
}

#[test]
fn ranges_are_those_of_a_set_of_bytes() {
    let (mut most, mut beyond) = (0, 0);
    cases(500, |rng: &mut Rng| {
        let base = initial(rng);
        let (mut region, mut model) = (Region::default(), Model::default());
        let scale = if one_in(rng, 50) { 14_000 } else { rng.u32(2..60) };
        // One after the other: so many that there is no place for more.
        let fills = one_in(rng, 2);
        let passes = if fills { 200 } else { 10 };
        let mut end = 1;
        for _ in 0..rng.usize(1..if scale > 100 { 30 } else { 200 }) {
            let (mut from, len) = (rng.u32(1..20 * scale), rng.u32(1..2 * scale));
            if fills && !one_in(rng, 4) {
                from = end;
            }
            let (seq, more) = (base.wrapping_add(from), !one_in(rng, 8));
            assert_eq!(region.known(seq, len), model.known(from, len));
            let has_place = region.has_place(seq, len, more.into());
            assert_eq!(has_place, model.add(from, len, more), "{from} + {len}");
            beyond +=
                u32::from(!has_place && model.bytes.len() + len as usize > BYTES as usize / 2);
            if has_place {
                region.extend(seq, len);
                end = end.max(from + len);
            }
            compare(&region, &model, base);
            most = most.max(model.ranges().len());
            if one_in(rng, passes) {
                let cursor = rng.u32(0..20 * scale);
                // A cursor is never inside a range: it goes to its end.
                let inside =
                    model.ranges().into_iter().find(|(from, to)| (*from..=*to).contains(&cursor));
                let cursor = inside.map_or(cursor, |(_, to)| to + 1);
                region.pass(base.wrapping_add(cursor));
                model.pass(cursor);
                compare(&region, &model, base);
            }
        }
    });
    assert_eq!(most, RANGES);
    assert!(beyond > 0, "no region was full");
}

#[test]
fn a_range_is_reached_by_its_first_byte() {
    let mut region = Region::default();
    region.extend(100, 10);
    let reached = |next: u32| region.next(50).is_reached(&Tracker::new(next, FROM_CLIENT));
    assert!(!reached(99) && reached(100) && reached(105) && reached(200));
    assert!(!region.next(100).is_reached(&Tracker::new(100, FROM_CLIENT)));
}
