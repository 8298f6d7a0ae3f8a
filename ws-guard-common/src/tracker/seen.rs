//! New headers of one step of a walk.
use super::{RECORDS, SPRINT};
use crate::{frame, trail::Trace};

/// New headers of a step: the position and mark of the first of them, and the first two bytes of
/// each. They leave a [trace](crate::trail).
///
/// Stored in the walk, not passed to the [`Segment`](super::Segment): functions called in a step have no stack left
/// in the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub seq: u32,
    pub mark: u32,
    pub flags: u32,
    pub count: u32,
    pub words: [u16; SPRINT as usize],
}

impl Seen {
    /// Sequence number of the `i`-th of them, if its opcode is `opcode`.
    #[inline(always)]
    pub fn place_of(&self, opcode: u8, i: u32) -> Option<u32> {
        let word = |i: u32| self.words.get(i as usize).copied().unwrap_or(0);
        let mut seq = self.seq;
        let mut before = 0;
        while before < SPRINT {
            let len = frame::SHORTEST_MASKED + (word(before) as u8 & frame::LEN7) as u32;
            seq = seq.wrapping_add(if before < i { len } else { 0 });
            before += 1;
        }
        let is_frame = self.flags & RECORDS as u32 == 0;
        let found = is_frame && i < self.count && (word(i) >> 8) as u8 & frame::OPCODE == opcode;
        found.then_some(seq)
    }

    /// Trace of all of them. Several are of the common kind, masked and short.
    #[inline(always)]
    pub const fn trace(&self) -> Trace {
        let [first, second, third] = self.words;
        let word = match self.count {
            1 => Trace::one(first, self.flags),
            count => Trace::several(count, [first, second, third]),
        };
        Trace { seq: self.seq, mark: self.mark, word }
    }
}
