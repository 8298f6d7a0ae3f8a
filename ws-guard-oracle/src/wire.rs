//! Segment of a path: it loses, delays, repeats, reorders, cuts and merges.

use std::{cmp::Reverse, collections::BinaryHeap};

use fastrand::Rng;

use crate::{cases::one_in, sender::Time};

/// Maximum length of merged segments in bytes.
const LARGEST: usize = 0xFF00;

/// Faults of the wire, in a thousand segments each...
#[derive(Clone, Copy, Debug, Default)]
pub struct Mangling {
    pub lost: u32,
    pub repeated: u32,
    /// ...late, so that others overtake them.
    pub late: u32,
    pub delay: Time,
    /// Maximum length of departing segments, which are cut to it; 0 for uncut.
    pub cuts: usize,
    /// Merges of consecutive segments, in a thousand.
    pub merges: u32,
}

impl Mangling {
    /// Choose random faults of each kind, or none.
    pub fn any(rng: &mut Rng) -> Mangling {
        let mut some = |most: u32| if one_in(rng, 2) { 0 } else { rng.u32(..most) };
        let (lost, repeated, late, merges) = (some(60), some(30), some(60), some(1000));
        let cuts = if one_in(rng, 3) { rng.usize(300..1500) } else { 0 };
        Mangling { lost, repeated, late, delay: rng.u64(1..60), cuts, merges }
    }

    /// Return the same faults with a queue.
    pub fn slower(self, by: Time) -> Mangling {
        Mangling { delay: self.delay + by, ..self }
    }

    /// Return the same cuts and merges, without losses.
    pub fn calm(self) -> Mangling {
        Mangling { lost: 0, repeated: 0, ..self }
    }
}

/// Segment with payload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    pub seq: u32,
    pub bytes: Vec<u8>,
    /// Length of the segments merged in it.
    pub mss: usize,
    /// Acknowledgement number.
    pub ack: u32,
}

/// Items in transit, by arrival time; the number keeps their order.
#[derive(Clone, Debug)]
pub struct Wire<T> {
    waiting: BinaryHeap<Reverse<(Time, u64, T)>>,
    count: u64,
    pub mangling: Mangling,
}

impl<T: Ord + Clone> Wire<T> {
    pub fn new(mangling: Mangling) -> Wire<T> {
        Wire { waiting: BinaryHeap::new(), count: 0, mangling }
    }

    /// Return the time of the next arrival.
    pub fn due(&self) -> Option<Time> {
        self.waiting.peek().map(|Reverse((due, ..))| *due)
    }

    /// Send an item.
    pub fn enter(&mut self, rng: &mut Rng, now: Time, thing: T) {
        let Mangling { lost, repeated, late, delay, .. } = self.mangling;
        if rng.u32(..1000) < lost {
            return;
        }
        let copies = 1 + u32::from(rng.u32(..1000) < repeated);
        for _ in 0..copies {
            let extra = if rng.u32(..1000) < late { rng.u64(..2 * delay + 20) } else { 0 };
            self.waiting.push(Reverse((now + delay + extra, self.count, thing.clone())));
            self.count += 1;
        }
    }

    /// Return an item that has arrived by now.
    pub fn leave(&mut self, now: Time) -> Option<T> {
        self.waiting.peek().filter(|Reverse((due, ..))| *due <= now)?;
        self.waiting.pop().map(|Reverse((.., thing))| thing)
    }
}

/// Cut and merge departing segments, as routers, network cards and kernels do.
pub fn recut(rng: &mut Rng, mangling: Mangling, pieces: Vec<Piece>) -> Vec<Piece> {
    let mut made: Vec<Piece> = Vec::new();
    for piece in pieces {
        match made.last_mut() {
            Some(last)
                if rng.u32(..1000) < mangling.merges
                    && last.seq.wrapping_add(last.bytes.len() as u32) == piece.seq
                    && last.bytes.len() + piece.bytes.len() <= LARGEST =>
            {
                last.bytes.extend(piece.bytes);
                last.ack = piece.ack;
            }
            _ => made.push(piece),
        }
    }
    let longest = if mangling.cuts == 0 { usize::MAX } else { mangling.cuts };
    made.into_iter().flat_map(|piece| cut(piece, longest)).collect()
}

/// Cut a segment into ones of at most `longest` bytes.
pub fn cut(piece: Piece, longest: usize) -> Vec<Piece> {
    let Piece { seq, ref bytes, mss, ack } = piece;
    if bytes.len() <= longest {
        return vec![piece];
    }
    let at = |number: usize| seq.wrapping_add((number * longest) as u32);
    let parts = bytes.chunks(longest).enumerate();
    parts.map(|(n, part)| Piece { seq: at(n), bytes: part.to_vec(), mss, ack }).collect()
}
