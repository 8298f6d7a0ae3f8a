//! A receiving TCP: puts segments together by sequence number and acknowledges.

use std::collections::BTreeMap;

/// Which bytes a receiver keeps when a segment overlaps what waits behind a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Those that came first.
    First,
    /// Those that came last, as where Linux replaces a queued segment by one that covers it.
    Last,
}

/// One byte stream as its receiver sees it. What was acknowledged never changes.
#[derive(Clone, Debug)]
pub struct Receiver {
    base: u32,
    overlap: Overlap,
    /// Everything received in order since `base`.
    pub stream: Vec<u8>,
    /// Bytes behind a gap, by their offset in the stream.
    waiting: BTreeMap<u64, u8>,
}

impl Receiver {
    pub fn new(base: u32, overlap: Overlap) -> Receiver {
        Receiver { base, overlap, stream: Vec::new(), waiting: BTreeMap::new() }
    }

    /// The next sequence number it expects: what its acknowledgements carry.
    pub fn ack(&self) -> u32 {
        self.base.wrapping_add(self.stream.len() as u32)
    }

    /// A segment passed the checks of the receiver's TCP.
    pub fn take(&mut self, seq: u32, payload: &[u8]) {
        let distance = i64::from(seq.wrapping_sub(self.ack()) as i32);
        for (index, byte) in payload.iter().enumerate() {
            let offset = self.stream.len() as i64 + distance + index as i64;
            if offset < self.stream.len() as i64 {
                continue;
            }
            let slot = self.waiting.entry(offset as u64).or_insert(*byte);
            if self.overlap == Overlap::Last {
                *slot = *byte;
            }
        }
        while let Some(byte) = self.waiting.remove(&(self.stream.len() as u64)) {
            self.stream.push(byte);
        }
    }
}
