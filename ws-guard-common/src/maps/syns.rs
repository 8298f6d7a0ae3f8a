//! Window scales of clients' SYNs, until the SYN-ACK leaves.
//!
//! Each SYN has one of a pair of places that depends on its end points, and is known by a tag there. What is
//! not certain counts as no scale at all: the window then seems as small as it may be.

use super::FlowKey;
use crate::pace::scale;

/// Number of places, a power of two.
pub const SYNS: u32 = 4096;

/// First one of the two places of a connection's SYN.
#[inline(always)]
pub const fn syn_pair(key: &FlowKey) -> u32 {
    let [a, b, c, d] = key.client.0;
    let ports = (key.client_port as u32) << 16 | key.server_port as u32;
    let mixed = (a ^ b.rotate_left(11) ^ c.rotate_left(22) ^ d).wrapping_add(ports);
    mixed.wrapping_mul(0x9E37_79B1) >> (32 - SYNS.trailing_zeros()) & !1
}

/// Tag of a SYN in its place. Other SYNs of a connection may be discarded by the server: of those with the same
/// number the smallest scale counts, and none of another.
#[inline(always)]
const fn tag(key: &FlowKey, seq: u32) -> u32 {
    let [a, b, c, d] = key.client.0;
    let ports = (key.client_port as u32) << 16 | key.server_port as u32;
    let mixed = (a ^ b.rotate_left(7) ^ c.rotate_left(19) ^ d ^ seq).wrapping_add(ports);
    mixed.wrapping_mul(0x85EB_CA6B) & TAG
}

const TAG: u32 = !0xFF;
/// One that waited here or in the place next to it was lost.
const SPOILED: u32 = 1 << 7;
const SCALE: u32 = SPOILED - 1;
/// Length of the data once the SYN-ACK has left: more than a packet has.
const ANSWERED: u32 = 0xFFFF;
/// [`answer`]: the SYN-ACK may take data of the SYN.
pub const HAS_DATA: u32 = 1 << 8;
/// Bits of nanoseconds in a step of the clock: 17 ms, modulo 2^8.
const STEP_BITS: u32 = 24;
/// Steps within which a SYN-ACK leaves.
const PATIENCE: u8 = 2;

/// Check whether a step is one of the latest. It may be one ahead: of another CPU's clock, or of another clock.
#[inline(always)]
const fn is_recent(step: u8, at: u8) -> bool {
    step.wrapping_sub(at).wrapping_add(1) <= PATIENCE
}

/// A SYN in its place; 0 for none.
///
/// ```text
///  63       56 55       48 47               32 31          8 7 6     0
/// ┌───────────┬───────────┬───────────────────┬─────────────┬─┬───────┐
/// │ spoiled at│ noted at  │ its data in bytes │     tag     │S│ scale │
/// └───────────┴───────────┴───────────────────┴─────────────┴─┴───────┘
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Syn(pub u64);

impl Syn {
    #[inline(always)]
    const fn new(spoiled_at: u8, noted_at: u8, data: u32, low: u32) -> Syn {
        let times = (spoiled_at as u32) << 24 | (noted_at as u32) << 16;
        Syn(((times | data & 0xFFFF) as u64) << 32 | low as u64)
    }

    #[inline(always)]
    const fn data(self) -> u32 {
        (self.0 >> 32) as u32 & 0xFFFF
    }

    #[inline(always)]
    const fn spoiled_at(self) -> u8 {
        (self.0 >> 56) as u8
    }

    #[inline(always)]
    const fn is(self, tag: u32) -> bool {
        self.0 != 0 && self.0 as u32 & TAG == tag
    }

    /// Check whether its SYN-ACK may be yet to leave.
    #[inline(always)]
    const fn waits(self, step: u8) -> bool {
        let noted_at = (self.0 >> 48) as u8;
        self.0 != 0 && self.data() != ANSWERED && is_recent(step, noted_at)
    }

    #[inline(always)]
    const fn is_spoiled(self, step: u8) -> bool {
        self.0 as u32 & SPOILED != 0 && is_recent(step, self.spoiled_at())
    }

    /// The same SYN again.
    #[inline(always)]
    const fn again(self, scale: u32, data: u32, step: u8) -> Syn {
        let low = self.0 as u32;
        let least = if low & SCALE < scale { low & SCALE } else { scale };
        let data = if data > 0 { data } else { self.data() };
        let spoiled = if self.is_spoiled(step) { SPOILED } else { 0 };
        Syn::new(self.spoiled_at(), step, data, low & TAG | spoiled | least)
    }

    /// Check whether it is the SYN that a SYN-ACK with this acknowledgement answers, with its data or without.
    #[inline(always)]
    const fn is_answered(self, key: &FlowKey, ack: u32) -> bool {
        self.takes_data(key, ack) || self.is(tag(key, ack))
    }

    /// The same with its data alone.
    #[inline(always)]
    const fn takes_data(self, key: &FlowKey, ack: u32) -> bool {
        let data = self.data();
        data != 0 && data != ANSWERED && self.is(tag(key, ack.wrapping_sub(data)))
    }

    /// A SYN of which others are noted at the same time: it has no scale. The first byte behind it is at `seq`.
    #[inline(always)]
    pub const fn uncertain((key, seq): (&FlowKey, u32), now: u64) -> Syn {
        let step = (now >> STEP_BITS) as u8;
        Syn::new(step, step, 0, tag(key, seq) | SPOILED | scale::NONE)
    }
}

/// Place for a SYN, and its value there. The first byte behind the SYN is at `seq`; `scale` is encoded as in
/// [`scale`], `data` is the length of its data in bytes. `pair` is what its places hold, `now` is in nanoseconds.
///
/// Where both wait, one is lost. That may have been the same connection's: for a while no scale is taken from here.
#[inline(always)]
pub const fn note(
    pair: [Syn; 2],
    (key, seq): (&FlowKey, u32),
    scale: u32,
    data: u32,
    now: u64,
) -> (u32, Syn) {
    let step = (now >> STEP_BITS) as u8;
    let tag = tag(key, seq);
    let [first, second] = pair;
    if first.is(tag) {
        return (0, first.again(scale, data, step));
    }
    if second.is(tag) {
        return (1, second.again(scale, data, step));
    }
    let lost = first.waits(step) && second.waits(step);
    let place = (first.waits(step) && !lost) as u32;
    let old = if place == 0 { first } else { second };
    let spoiled_at = if lost { step } else { old.spoiled_at() };
    let spoiled = if lost || old.is_spoiled(step) { SPOILED } else { 0 };
    let certain = !lost && !first.is_spoiled(step) && !second.is_spoiled(step);
    let scale = if certain { scale } else { scale::NONE };
    (place, Syn::new(spoiled_at, step, data, tag | spoiled | scale))
}

/// Find the SYN that a server's SYN-ACK with this `ack` answers: the scale of the client's windows, encoded as in
/// [`scale`], with [`HAS_DATA`], and the number of the place and its new value. The number is 2 where no place has
/// it: it may have had data, unless no SYN was seen, and then the scale is unknown.
///
/// Two may match, one of them with its data: the smaller scale counts.
#[inline(always)]
pub const fn answer(pair: [Syn; 2], key: &FlowKey, ack: u32, now: u64) -> (u32, u32, Syn) {
    let step = (now >> STEP_BITS) as u8;
    let [first, second] = pair;
    let (is_first, is_second) = (first.is_answered(key, ack), second.is_answered(key, ack));
    if !is_first && !is_second {
        let unseen = first.0 | second.0 == 0;
        return (if unseen { scale::UNKNOWN } else { scale::NONE | HAS_DATA }, 2, first);
    }
    let one = if is_first { first.0 as u32 & SCALE } else { SCALE };
    let other = if is_second { second.0 as u32 & SCALE } else { SCALE };
    let least = if one < other { one } else { other };
    let spoiled = first.is_spoiled(step) || second.is_spoiled(step);
    let takes = is_first && first.takes_data(key, ack) || is_second && second.takes_data(key, ack);
    let data = if takes { HAS_DATA } else { 0 };
    let syn = if is_first { first } else { second };
    let answered = Syn(syn.0 | (ANSWERED as u64) << 32);
    (if spoiled { scale::NONE } else { least } | data, !is_first as u32, answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn key(port: u16) -> FlowKey {
        let client = ([10, 0, 0, 1], port).into();
        FlowKey::new(client, ([10, 0, 0, 2], 80).into())
    }

    /// Two places, and a clock.
    #[derive(Default)]
    struct Places {
        pair: [Syn; 2],
        now: u64,
    }

    impl Places {
        fn syn(&mut self, port: u16, seq: u32, scale: u32) {
            let (place, syn) = note(self.pair, (&key(port), seq + 1), scale, 0, self.now);
            self.pair[place as usize] = syn;
        }

        fn syn_ack(&mut self, port: u16, ack: u32) -> u32 {
            let (found, place, syn) = answer(self.pair, &key(port), ack, self.now);
            if let Some(slot) = self.pair.get_mut(place as usize) {
                *slot = syn;
            }
            found & 0xFF
        }
    }

    #[test]
    fn a_pair_holds_two_at_a_time() {
        let mut places = Places::default();
        assert_eq!(places.syn_ack(1, 11), scale::UNKNOWN, "its SYN was not seen");
        for now in [0, SECOND, 3600 * SECOND] {
            places.now = now;
            for port in 0..100 {
                places.syn(port, 10, 8);
                places.syn(port + 1000, 20, 15);
                assert_eq!(places.syn_ack(port, 11), 8);
                assert_eq!(places.syn_ack(port + 1000, 21), 15);
            }
        }
        assert_eq!(places.syn_ack(5, 12), scale::NONE, "its SYN was another one");
    }

    #[test]
    fn the_smallest_scale_of_a_connections_syns_counts() {
        let mut places = Places::default();
        places.syn(1, 10, 15);
        places.syn(1, 10, 2);
        places.syn(1, 10, 15);
        assert_eq!(places.syn_ack(1, 11), 2);
        places.syn(1, 10, 15);
        assert_eq!(places.syn_ack(1, 11), 2, "also of a repetition");
    }

    #[test]
    fn data_that_the_server_takes_is_no_obstacle() {
        let (place, syn) = note([Syn(0); 2], (&key(1), 11), 8, 500, 0);
        for (ack, taken) in [(11, 0), (511, HAS_DATA)] {
            assert_eq!(answer([syn, Syn(0)], &key(1), ack, 0).0, 8 | taken, "{ack}");
        }
        let unknown = scale::NONE | HAS_DATA;
        assert_eq!((place, answer([syn, Syn(0)], &key(1), 12, 0).0), (0, unknown));
        assert_eq!(answer([Syn(0); 2], &key(1), 12, 0).0, scale::UNKNOWN, "no SYN was seen");
        // Of another number: not the connection's.
        let (place, decoy) = note([syn, Syn(0)], (&key(1), 900), 8, 1, 0);
        assert_eq!((place, answer([syn, decoy], &key(1), 11, 0).0), (1, 8));
    }

    #[test]
    fn of_many_at_once_the_last_one_has_no_scale() {
        let syn = Syn::uncertain((&key(1), 11), 0);
        assert_eq!(answer([syn, Syn(0)], &key(1), 11, 0).0, scale::NONE);
        assert_eq!(note([syn, Syn(0)], (&key(1), 11), 15, 0, 0).1.0 as u32 & SCALE, scale::NONE);
    }

    #[test]
    fn where_one_was_lost_no_scale_counts_for_a_while() {
        for others in 2..6 {
            for answered in [false, true] {
                let mut places = Places::default();
                places.syn(1, 10, 1);
                for port in 2..2 + others {
                    places.syn(port, 10, 8);
                }
                for port in 2..2 + others {
                    if answered {
                        places.syn_ack(port, 11);
                    }
                }
                places.now = SECOND / 70;
                places.syn(1, 10, 15);
                assert_eq!(places.syn_ack(1, 11), scale::NONE, "{others}, {answered}");
                places.now = SECOND;
                places.syn(1, 10_000, 15);
                assert_eq!(places.syn_ack(1, 10_001), 15, "later: {others}, {answered}");
            }
        }
    }

    #[test]
    fn data_of_another_syn_does_not_hide_a_scale() {
        for decoy_first in [true, false] {
            let mut places = Places::default();
            let decoy = |places: &mut Places| {
                let (place, syn) = note(places.pair, (&key(1), 11), 15, 100, 0);
                places.pair[place as usize] = syn;
            };
            if decoy_first {
                decoy(&mut places);
            }
            places.syn(1, 110, 1);
            if !decoy_first {
                decoy(&mut places);
            }
            let mut lost = Places { pair: places.pair, now: 0 };
            assert_eq!(places.syn_ack(1, 111), 1, "{decoy_first}");
            lost.syn(2, 10, 8);
            assert_eq!(lost.syn_ack(1, 111), scale::NONE, "with one more: {decoy_first}");
        }
    }

    #[test]
    fn a_clock_that_is_a_step_behind_forgets_nothing() {
        let mut places = Places { now: 10 << STEP_BITS, ..Places::default() };
        places.syn(1, 10, 1);
        let (place, decoy) =
            note(places.pair, (&key(1), 11u32.wrapping_sub(100)), 15, 100, places.now);
        places.pair[place as usize] = decoy;
        places.syn(2, 10, 8);
        places.now -= 1 << STEP_BITS;
        assert_eq!(places.syn_ack(1, 11), scale::NONE);
        let mut places = Places { now: 10 << STEP_BITS, ..Places::default() };
        places.syn(1, 10, 1);
        places.syn(2, 10, 8);
        places.now -= 1 << STEP_BITS;
        places.syn(3, 10, 8);
        assert_eq!(places.syn_ack(3, 11), scale::NONE, "one that waits was lost");
    }

    #[test]
    fn one_that_is_not_answered_makes_room() {
        let mut places = Places::default();
        for port in 0..100 {
            places.syn(port, 10, 8);
            places.now += 3 * SECOND;
        }
        assert_eq!(places.syn_ack(99, 11), 8);
    }
}
