//! Frames that are no pings and cost a server all the same: by class, each with a limit of its own.
//!
//! A limit is one of frames of the class on one connection, in any of the windows that pings are
//! counted in. Off by default, but for small TLS records; a limit that is not set costs nothing.

use crate::{
    frame::{Header, opcode},
    maps::{SourceKey, SpinLock},
    record::Record,
    window::RateWindow,
};

/// A class of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// PONG frames; of a client that nobody asked, mostly.
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

/// How many classes there are.
pub const CLASSES: usize = 5;

/// Frames by [`Class`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts(pub [u32; CLASSES]);

/// 1 where the two are equal, else 0; below 2³¹. No branch, see [`Counts::add`].
#[inline(always)]
const fn equal(a: u32, b: u32) -> u32 {
    (a ^ b).wrapping_sub(1) >> 31
}

impl Counts {
    /// Count a frame of a client. Without a branch: the kernel's verifier follows both ways of each.
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

/// Key of the table of floods: a source and a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FloodKey {
    pub source: SourceKey,
    /// A [`Class`].
    pub class: u32,
}

/// Its value: the frames of the class that came lately.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Flood {
    /// Guards all that follows.
    pub lock: SpinLock,
    pub _pad: u32,
    pub window: RateWindow,
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
}
