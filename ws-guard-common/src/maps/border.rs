//! Where a stream stood between two segments.

/// How many [`Border`]s there are at most, a power of two.
pub const BORDERS: u32 = 65_536;

/// Where a segment of a flow began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BorderName {
    /// Made of [`crate::flow::Flow::generation`], which nobody can guess.
    pub generation: u32,
    /// Sequence number of its first byte.
    pub seq: u32,
}

impl BorderName {
    /// Its place in the array, which it shares with others: the latest one has it. (A hash table that
    /// forgets the oldest would be as good, and ten times as slow to write.)
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        let mixed = (self.generation ^ self.seq).wrapping_mul(0x9E37_79B1);
        mixed >> (32 - BORDERS.trailing_zeros())
    }
}

/// A border, and where the stream stood there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Border {
    pub name: BorderName,
    pub start: crate::tracker::Tracker,
}

const _: () = assert!(size_of::<Border>() == 32 && BORDERS.is_power_of_two());
