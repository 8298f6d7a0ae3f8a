//! Pings that wait for their pongs, and what a pong's time is counted under.
//!
//! A pong carries its ping's payload (RFC 6455, 5.5.3), of which a digest is kept: a pong never
//! closes another ping. Of the pings of one side that wait at the same time, the oldest and the
//! newest are kept; equal payloads are answered in their order.

use crate::frame::MAX_CONTROL_PAYLOAD;

/// Words that hold the longest payload of a control frame.
pub const WORDS: usize = (MAX_CONTROL_PAYLOAD as usize).div_ceil(8);

/// Length of a tick, as a shift of nanoseconds: 1.024 µs. Ticks wrap after 73 minutes.
const TICK_SHIFT: u32 = 10;

/// Wait after which a ping counts as unanswered and makes room for a later one, in ticks: one minute.
const GIVE_UP: u32 = (60_000_000_000u64 >> TICK_SHIFT) as u32;
/// Wait after which it does where its connection ends: one second.
const AT_END: u32 = (1_000_000_000u64 >> TICK_SHIFT) as u32;

/// Lower bits of [`Asked::what`]: the digest. Above them: [`Asked::ahead`].
const DIGEST_BITS: u32 = 24;
const DIGEST: u32 = (1 << DIGEST_BITS) - 1;

/// The time in ticks.
#[inline(always)]
pub const fn ticks(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

/// Microseconds in a number of ticks.
#[inline(always)]
pub const fn micros(ticks: u32) -> u64 {
    ((ticks as u64) << TICK_SHIFT) / 1000
}

/// Digest of a control frame's payload of `len` bytes, never 0.
///
/// `words` hold it as on the wire, and behind it, up to the end of the word, `mask`: the repeated
/// masking key, or 0 for an unmasked frame. Words that hold nothing of it are not read.
#[inline(always)]
pub fn digest(words: &[u64; WORDS], mask: u64, len: u32) -> u32 {
    const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
    let mut hash = (len as u64 + 1).wrapping_mul(FACTOR);
    let mut i = 0;
    while i < WORDS {
        if i as u32 * 8 >= len {
            break;
        }
        hash = (hash.rotate_left(5) ^ words[i] ^ mask).wrapping_mul(FACTOR);
        i += 1;
    }
    (hash >> (64 - DIGEST_BITS)) as u32 | 1
}

/// A ping that waits; all zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Asked {
    /// Its time.
    tick: u32,
    /// Its digest, and how many pongs with that one answer earlier pings.
    what: u32,
}

impl Asked {
    const NONE: Asked = Asked { tick: 0, what: 0 };

    #[inline(always)]
    const fn digest(&self) -> u32 {
        self.what & DIGEST
    }

    #[inline(always)]
    const fn ahead(&self) -> u32 {
        self.what >> DIGEST_BITS
    }
}

/// Pings of one side that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Waiting {
    oldest: Asked,
    newest: Asked,
}

impl Waiting {
    /// Check whether any ping waits.
    #[inline(always)]
    pub const fn any(&self) -> bool {
        self.oldest.what != 0
    }

    /// Add a ping. `true` when an older one is given up, which has waited for a minute.
    #[inline(always)]
    pub fn ask(&mut self, now: u32, digest: u32) -> bool {
        let mut asked = Asked { tick: now, what: digest };
        if self.oldest.what == 0 {
            self.oldest = asked;
            return false;
        }
        let gives_up = now.wrapping_sub(self.oldest.tick) > GIVE_UP;
        if gives_up {
            self.oldest = self.newest;
            self.newest = Asked::NONE;
            if self.oldest.what == 0 {
                self.oldest = asked;
                return true;
            }
        }
        if self.newest.digest() == digest && self.newest.ahead() < 255 {
            asked.what = self.newest.what + (1 << DIGEST_BITS);
        }
        self.newest = asked;
        gives_up
    }

    /// Take a pong. Returns the ticks since its ping, or `None` where no ping that is kept has its
    /// payload.
    #[inline(always)]
    pub fn answer(&mut self, now: u32, digest: u32) -> Option<u32> {
        if self.oldest.digest() == digest {
            if self.oldest.ahead() > 0 {
                self.oldest.what -= 1 << DIGEST_BITS;
                return None;
            }
            let asked = self.oldest.tick;
            self.oldest = self.newest;
            self.newest = Asked::NONE;
            return Some(now.wrapping_sub(asked));
        }
        if self.newest.digest() == digest {
            if self.newest.ahead() > 0 {
                self.newest.what -= 1 << DIGEST_BITS;
                return None;
            }
            // An answer to the latest ping may stand for those before it (RFC 6455, 5.5.3).
            let asked = self.newest.tick;
            *self = Waiting::default();
            return Some(now.wrapping_sub(asked));
        }
        None
    }

    /// Forget all at the connection's end, and return the number that count as unanswered.
    #[inline(always)]
    pub fn end(&mut self, now: u32) -> u32 {
        let late =
            |asked: &Asked| (asked.what != 0 && now.wrapping_sub(asked.tick) > AT_END) as u32;
        let unanswered = late(&self.oldest) + late(&self.newest);
        *self = Waiting::default();
        unanswered
    }
}

/// Pings of a connection that wait for their pongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Heartbeats {
    /// [`crate::flow::Flow::generation`] of the connection: an older one may have had its end points.
    pub generation: u32,
    /// Not 0: a CPU has it.
    pub busy: u32,
    /// By the side that pinged: client, server.
    pub waiting: [Waiting; 2],
}

impl Heartbeats {
    /// Forget what an older connection left.
    #[inline(always)]
    pub fn of(&mut self, generation: u32) {
        if self.generation != generation {
            self.generation = generation;
            self.waiting = [Waiting::default(); 2];
        }
    }
}

/// Number of buckets of a histogram of times.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;
/// Upper bounds of all buckets but the last, microseconds.
pub const BOUNDS_US: [u64; 19] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000, 20_000_000, 30_000_000, 60_000_000,
];

/// Histogram of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Times {
    /// Times by bucket, not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Their sum, microseconds.
    pub sum_us: u64,
}

impl Times {
    /// Bucket of a time: a bound belongs to the bucket that it ends. Without a branch.
    #[inline(always)]
    pub const fn bucket(us: u64) -> usize {
        let (mut bucket, mut i) = (0, 0);
        while i < BOUNDS_US.len() {
            bucket += BOUNDS_US[i].wrapping_sub(us) >> 63;
            i += 1;
        }
        bucket as usize
    }

    /// Add a time of this bucket.
    #[inline(always)]
    pub fn add(&mut self, bucket: usize, us: u64) {
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.sum_us += us;
    }

    /// Number of times.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Payload as the kernel hashes it: masked, and the mask behind it.
    fn digest_of(payload: &[u8], key: [u8; 4]) -> u32 {
        let mut bytes = [0u8; 8 * WORDS];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = key[i % 4] ^ payload.get(i).copied().unwrap_or(0);
        }
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        let key = u32::from_le_bytes(key) as u64;
        digest(&words, key << 32 | key, payload.len() as u32)
    }

    #[test]
    fn a_digest_is_of_the_payload_and_not_of_its_mask() {
        let longest: Vec<u8> = (0..125).collect();
        let mut other = longest.clone();
        other[124] ^= 1;
        let payloads: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"ping 1", b"ping 2", &longest, &other];
        for (i, payload) in payloads.iter().enumerate() {
            let plain = digest_of(payload, [0; 4]);
            assert_ne!(plain, 0);
            assert_eq!(digest_of(payload, [1, 2, 3, 0xFE]), plain);
            for earlier in &payloads[..i] {
                assert_ne!(digest_of(earlier, [0; 4]), plain, "{payload:?} and {earlier:?}");
            }
        }
    }

    #[test]
    fn a_pong_closes_its_own_ping() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.answer(5, 1), None);
        assert!(!waiting.ask(10, 11));
        assert_eq!(waiting.answer(15, 13), None);
        assert!(waiting.any());
        assert!(!waiting.ask(20, 13));
        assert_eq!(waiting.answer(30, 11), Some(20));
        assert_eq!(waiting.answer(30, 11), None);
        assert_eq!(waiting.answer(31, 13), Some(11));
        assert!(!waiting.any());
    }

    #[test]
    fn equal_pings_are_answered_in_their_order() {
        // A ping a tick, each answered three ticks later.
        let mut waiting = Waiting::default();
        let mut measured = 0;
        for now in 0..1000u32 {
            waiting.ask(now, 7);
            if now >= 3 {
                let time = waiting.answer(now, 7);
                assert!(time.is_none_or(|time| time == 3), "{time:?}");
                measured += time.is_some() as u32;
            }
        }
        assert!(measured > 300, "{measured}");
    }

    #[test]
    fn one_answer_may_stand_for_several_pings() {
        let mut waiting = Waiting::default();
        for now in 0..5 {
            waiting.ask(now, 101 + 2 * now);
        }
        assert_eq!(waiting.answer(9, 105), None);
        assert_eq!(waiting.answer(9, 109), Some(5));
        assert!(!waiting.any());
    }

    #[test]
    fn an_unanswered_ping_is_given_up_after_a_minute_or_at_the_end() {
        let second = ticks(1_000_000_000);
        let mut waiting = Waiting::default();
        assert!(!waiting.ask(0, 1));
        assert!(!waiting.ask(54 * second, 3));
        assert!(waiting.ask(108 * second, 5));
        assert_eq!(waiting.answer(109 * second, 1), None);
        assert_eq!(waiting.end(109 * second), 1);
        assert_eq!(waiting.end(200 * second), 0);
        // Across the wrap.
        waiting.ask(u32::MAX - 5, 1);
        assert_eq!(waiting.answer(4, 1), Some(10));
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_reaches_it() {
        for us in [0, 1, 99, 100, 101, 49_999, 50_000, 50_001, 60_000_000, 60_000_001, 1 << 40] {
            let expected = BOUNDS_US.iter().position(|bound| us <= *bound);
            assert_eq!(Times::bucket(us), expected.unwrap_or(BUCKETS - 1), "{us}");
        }
    }
}
