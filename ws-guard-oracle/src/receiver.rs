//! Receiving TCP: reassembles segments by sequence number, and acknowledges.

use std::ops::Range;

/// Choice of bytes when a segment overlaps others that wait behind a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Linux: a segment fully covered by a waiting one is discarded; one that covers
    /// waiting ones replaces them; else both wait, and the one that begins first counts.
    Linux,
    /// First bytes: they stay, in order or not.
    First,
    /// Last bytes: they count, until they are in order.
    Last,
}

/// Byte stream as its receiver sees it; bytes in order never change.
#[derive(Clone, Debug)]
pub struct Receiver {
    base: u32,
    overlap: Overlap,
    /// Bytes received in order since `base`.
    pub stream: Vec<u8>,
    /// Segments behind a gap: offset in the stream and payload, sorted by offset.
    waiting: Vec<(i64, Vec<u8>)>,
    /// Number of waiting segments that a later one replaced, as on Linux.
    pub replaced: u64,
}

impl Receiver {
    pub fn new(base: u32, overlap: Overlap) -> Receiver {
        Receiver { base, overlap, stream: Vec::new(), waiting: Vec::new(), replaced: 0 }
    }

    /// Return the next expected sequence number, as in acknowledgements.
    pub fn ack(&self) -> u32 {
        self.base.wrapping_add(self.stream.len() as u32)
    }

    /// Return the ranges received behind a gap, as offsets in the stream.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (offset, payload) in &self.waiting {
            let (from, to) = (*offset as usize, *offset as usize + payload.len());
            match ranges.last_mut() {
                Some(last) if last.end >= from => last.end = last.end.max(to),
                _ => ranges.push(from..to),
            }
        }
        ranges
    }

    /// Receive a segment that passed the checks of the receiver's TCP.
    pub fn take(&mut self, seq: u32, payload: &[u8]) {
        let next = self.stream.len() as i64;
        let offset = next + i64::from(seq.wrapping_sub(self.ack()) as i32);
        if offset + payload.len() as i64 <= next {
            return;
        }
        match self.overlap {
            Overlap::Linux if offset <= next => {
                self.append(offset, payload);
            }
            Overlap::Linux => self.queue_as_linux(offset, payload),
            Overlap::First | Overlap::Last => {
                for (index, byte) in payload.iter().enumerate() {
                    self.queue_byte(offset + index as i64, *byte);
                }
            }
        }
        while let Some((offset, _)) = self.waiting.first()
            && *offset <= self.stream.len() as i64
        {
            let (offset, payload) = self.waiting.remove(0);
            self.append(offset, &payload);
        }
    }

    /// Append the new bytes of a segment that reaches back to the stream's end.
    fn append(&mut self, offset: i64, payload: &[u8]) {
        let known = (self.stream.len() as i64 - offset) as usize;
        self.stream.extend(payload.get(known..).unwrap_or_default());
    }

    fn queue_as_linux(&mut self, offset: i64, payload: &[u8]) {
        let end = offset + payload.len() as i64;
        let end_of = |(offset, payload): &(i64, Vec<u8>)| offset + payload.len() as i64;
        if self.waiting.iter().any(|other| other.0 <= offset && end <= end_of(other)) {
            return;
        }
        let before = self.waiting.len();
        self.waiting.retain(|other| !(offset <= other.0 && end_of(other) <= end));
        self.replaced += (before - self.waiting.len()) as u64;
        let at = self.waiting.partition_point(|other| other.0 < offset);
        self.waiting.insert(at, (offset, payload.to_vec()));
    }

    fn queue_byte(&mut self, offset: i64, byte: u8) {
        if offset < self.stream.len() as i64 {
            return;
        }
        let at = self.waiting.partition_point(|other| other.0 < offset);
        match self.waiting.get_mut(at) {
            Some(other) if other.0 == offset => {
                if self.overlap == Overlap::Last {
                    other.1[0] = byte;
                }
            }
            _ => self.waiting.insert(at, (offset, vec![byte])),
        }
    }
}
