//! Limits for classes of frames other than pings that cost a server resources.
//!
//! A limit applies to frames of the class on one connection, in windows of the same length as for
//! pings ([`ClassWindow`]). All are off by default, except for small TLS records; an unset limit
//! costs nothing.

use crate::{
    frame::{Header, opcode},
    record::Record,
    window::Rate,
};

/// A class of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// PONG frames; mostly unsolicited.
    Pong = 0,
    /// Fragments of a message without payload (CVE-2026-48779 and its like).
    EmptyFragment = 1,
    /// All other data frames of no more than [`crate::maps::Policy::tiny_bytes`].
    TinyData = 2,
    /// CLOSE frames, one of which is enough.
    Close = 3,
    /// On TLS ports: records of application data that may hold a ping,
    /// [`crate::maps::Policy::record_min`] to [`crate::maps::Policy::record_max`] bytes.
    SmallRecord = 4,
}

/// Number of classes.
pub const CLASSES: usize = 5;

/// Frames by [`Class`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts(pub [u32; CLASSES]);

/// 1 for equal numbers below 2³¹, otherwise 0. No branch, see [`Counts::add`].
#[inline(always)]
const fn equal(a: u32, b: u32) -> u32 {
    (a ^ b).wrapping_sub(1) >> 31
}

impl Counts {
    /// Count a client's frame. Without a branch: the kernel's verifier follows both sides of each.
    #[inline(always)]
    pub const fn add(&mut self, header: &Header, tiny_bytes: u32) {
        let opcode = header.opcode() as u32;
        let fin = header.first as u32 >> 7;
        let control = opcode >> 3;
        let data = control ^ 1;
        let empty = (header.payload_len.wrapping_sub(1) >> 63) as u32;
        let small = (header.payload_len.wrapping_sub(tiny_bytes as u64 + 1) >> 63) as u32;
        let continues = equal(opcode, opcode::CONTINUATION as u32);
        let fragment = continues | (fin ^ 1);
        let empty_fragment = data & empty & fragment;
        self.0[Class::Pong as usize] += equal(opcode, opcode::PONG as u32);
        self.0[Class::EmptyFragment as usize] += empty_fragment;
        self.0[Class::TinyData as usize] += data & small & (empty_fragment ^ 1);
        self.0[Class::Close as usize] += equal(opcode, opcode::CLOSE as u32);
    }

    /// Count a TLS record of a client.
    #[inline(always)]
    pub const fn add_record(&mut self, record: &Record, shortest: u16, longest: u16) {
        self.0[Class::SmallRecord as usize] += record.is_small(shortest, longest);
    }
}

/// Maximum difference between the clocks of two CPUs, with a margin: a tick of a coarse one is 4 ms
/// at 250 Hz.
const TICK_MS: u32 = 100;

/// Frames of one connection by class, in successive windows.
///
/// The first frame after the end of a window begins the next one. So a connection within the limit
/// in every window is never over it; others get at most the limit in each of these windows, and
/// twice as much across the boundary of two. (Pings have a [`crate::window::RateWindow`], which is
/// exact, and eleven times as large.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClassWindow {
    /// Start of the window, milliseconds modulo 2³².
    pub since_ms: u32,
    /// The frames in it.
    pub counts: Counts,
}

impl ClassWindow {
    /// Log the frames of a segment, and return how many are over the limit of their class. Frames
    /// over the limit are logged too.
    #[inline(always)]
    pub const fn charge(
        &mut self,
        now_ms: u32,
        rates: &[Rate; CLASSES],
        window_ms: u32,
        frames: &Counts,
    ) -> u32 {
        // Another CPU's clock may have been a tick ahead.
        let elapsed = now_ms.wrapping_add(TICK_MS).wrapping_sub(self.since_ms);
        if elapsed >= window_ms.saturating_add(TICK_MS) {
            *self = ClassWindow { since_ms: now_ms, counts: Counts([0; CLASSES]) };
        }
        let mut over = 0;
        let mut class = 0;
        while class < CLASSES {
            let (limit, before) = (rates[class].limit, self.counts.0[class]);
            let after = before.saturating_add(frames.0[class]);
            self.counts.0[class] = after;
            // The new ones beyond the limit.
            let first = if before > limit { before } else { limit };
            over += if limit > 0 { after.saturating_sub(first) } else { 0 };
            class += 1;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts after one frame.
    fn counts(first: u8, payload_len: u64, tiny_bytes: u32) -> [u32; CLASSES] {
        let mut counts = Counts::default();
        counts.add(&Header { first, second: 0x80, payload_len }, tiny_bytes);
        counts.0
    }

    #[test]
    fn each_frame_is_in_one_class_or_in_none() {
        for (first, len, wanted) in [
            (0x8A, 0, [1, 0, 0, 0, 0]),
            (0x8A, 125, [1, 0, 0, 0, 0]),
            (0x89, 0, [0, 0, 0, 0, 0]),
            (0x88, 2, [0, 0, 0, 1, 0]),
            // A text message of nothing is no fragment.
            (0x81, 0, [0, 0, 1, 0, 0]),
            (0x01, 0, [0, 1, 0, 0, 0]),
            (0x00, 0, [0, 1, 0, 0, 0]),
            (0x80, 0, [0, 1, 0, 0, 0]),
            (0x80, 8, [0, 0, 1, 0, 0]),
            (0x82, 8, [0, 0, 1, 0, 0]),
            (0x82, 9, [0, 0, 0, 0, 0]),
            (0x82, 1 << 40, [0, 0, 0, 0, 0]),
        ] {
            assert_eq!(counts(first, len, 8), wanted, "{first:#x}, {len} bytes");
        }
        assert_eq!(counts(0x82, 1, 0), [0; CLASSES]);
    }

    /// A limit of 10 pongs in 1,000 ms, and none for the other classes.
    fn pongs(window: &mut ClassWindow, now_ms: u32, count: u32) -> u32 {
        let mut rates = [Rate::default(); CLASSES];
        rates[Class::Pong as usize].limit = 10;
        window.charge(now_ms, &rates, 1000, &Counts([count, count, 0, 0, 0]))
    }

    #[test]
    fn frames_over_the_limit_of_a_window_are_told() {
        let mut window = ClassWindow::default();
        for (now_ms, count, over) in [
            (5000, 10, 0),
            (5000, 1, 1),
            (5999, 7, 7),
            // The next window begins with the first frame behind this one.
            (6000, 12, 2),
            (6500, 3, 3),
            (7001, 10, 0),
            (7002, 1 << 31, 1 << 31),
            // A window later, on a CPU whose clock is a tick ahead.
            (8009, 10, 0),
            (8005, 1, 1),
            (8005 + (1 << 31), 11, 1),
        ] {
            assert_eq!(pongs(&mut window, now_ms, count), over, "{count} at {now_ms}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_connection_that_keeps_to_the_limit_is_never_over_it(
            start: u32, gaps in proptest::collection::vec(0u32..400, 1..100),
        ) {
            let (mut window, mut now) = (ClassWindow { since_ms: start, ..ClassWindow::default() }, start);
            let mut sent: Vec<u32> = Vec::new();
            for gap in gaps {
                now = now.wrapping_add(gap);
                let recent = sent.iter().filter(|&&at| now.wrapping_sub(at) < 1000).count();
                let room = 10 - recent.min(10) as u32;
                sent.extend((0..room).map(|_| now));
                proptest::prop_assert_eq!(pongs(&mut window, now, room), 0);
            }
        }
    }
}
