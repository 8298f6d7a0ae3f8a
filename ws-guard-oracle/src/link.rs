//! Honest TCP sender and a lossy network, with the guard in front of the receiver.
//!
//! ```text
//! sender ──▶ network ──▶ guard ──▶ receiver
//! ▲     loses, repeats,    discards what
//! │     reorders           it rejects
//! └───── acknowledgements, through the guard
//! ```

use std::collections::BTreeMap;

use fastrand::Rng;
use ws_guard_common::replay::{Reason, Verdict};

use crate::{
    cases::one_in,
    guard::Guard,
    receiver::{Overlap, Receiver},
};

/// Segmentation of retransmissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resend {
    /// Segments as first sent.
    Same,
    /// Several segments merged, at least one.
    Longer,
    /// Any segmentation: a shorter path MTU, or segments merged the first time.
    Any,
}

/// Faults of the path: one in this number of segments, 0 for never.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub lost_before: u32,
    pub lost_behind: u32,
    pub repeated: u32,
    pub reordered: u32,
    pub resend: Resend,
    /// Maximum number of segments between acknowledgements.
    pub ack_every: u32,
    /// Acknowledgements replaced by a silent second: one in this number.
    pub rests: u32,
    /// Longest segment, in bytes of payload.
    pub longest: usize,
}

impl Path {
    /// Choose random faults of each kind, or none.
    pub fn any(rng: &mut Rng) -> Path {
        let mut once_in = |n: u32| if one_in(rng, 3) { 0 } else { rng.u32(2..n) };
        Path {
            lost_before: once_in(20),
            lost_behind: once_in(20),
            repeated: once_in(10),
            reordered: once_in(10),
            ack_every: once_in(6),
            rests: once_in(20),
            resend: [Resend::Same, Resend::Longer, Resend::Any][rng.usize(..3)],
            longest: 0xFFFF,
        }
    }
}

/// Connection from sender to receiver.
#[derive(Clone, Debug)]
pub struct Link {
    pub receiver: Receiver,
    /// Segments that the guard dropped, by reason.
    pub dropped: BTreeMap<Reason, u64>,
    base: u32,
    pub stream: Vec<u8>,
    /// Ends of the segments as first sent, ascending.
    boundaries: Vec<usize>,
    pub path: Path,
    /// End of the bytes sent at least once.
    sent: usize,
    /// End of the bytes that the sender knows to have arrived.
    known: usize,
    /// Segments on the way to the guard: start and end.
    flying: Vec<(usize, usize)>,
}

/// Rounds without progress after which nothing has passed for long.
const PATIENCE: usize = 20;

impl Link {
    /// Create a sender of `stream`, with sequence numbers from `base` on.
    /// Its segments end at `boundaries`.
    pub fn new(base: u32, stream: Vec<u8>, boundaries: Vec<usize>, path: Path) -> Link {
        Link {
            receiver: Receiver::new(base, Overlap::Linux),
            dropped: BTreeMap::new(),
            base,
            stream,
            boundaries,
            path,
            sent: 0,
            known: 0,
            flying: Vec::new(),
        }
    }

    /// Return the number of steps until the path is calm.
    /// They are enough to send everything several times.
    pub fn steps(&self) -> usize {
        self.boundaries.len() * 8
    }

    /// Run until everything has arrived, and return whether it has.
    /// Once a calm path makes no more progress, it never will.
    pub fn run(&mut self, rng: &mut Rng, guard: &mut impl Guard) -> bool {
        for _ in 0..self.steps() {
            self.step(rng, guard);
        }
        self.finish(rng, guard)
    }

    /// Finish without further loss, and return whether everything arrives.
    pub fn finish(&mut self, rng: &mut Rng, guard: &mut impl Guard) -> bool {
        self.flying.clear();
        let mut idle = 0;
        while self.receiver.stream.len() < self.stream.len() && idle < 50 {
            let before = self.receiver.stream.len();
            self.calm_round(rng, guard);
            idle = if self.receiver.stream.len() > before { 0 } else { idle + 1 };
            if idle == PATIENCE {
                guard.fall_silent();
            }
        }
        self.receiver.stream.len() == self.stream.len()
    }

    /// Perform a random step: sending or arrival of a segment, or an acknowledgement.
    pub fn step(&mut self, rng: &mut Rng, guard: &mut impl Guard) {
        match rng.u8(..8) {
            0..=2 if self.flying.len() < 24 => self.send_next(),
            3 if self.sent > self.known => {
                let again = self.resent(rng);
                self.flying.push(again);
            }
            4 if self.path.rests > 0 && one_in(rng, self.path.rests) => {
                self.acknowledge(true, guard);
                guard.rest();
            }
            4 if one_in(rng, self.path.ack_every.max(1)) => {
                self.acknowledge(!one_in(rng, 4), guard)
            }
            _ if !self.flying.is_empty() => {
                let reordered = self.path.reordered > 0 && one_in(rng, self.path.reordered);
                let index = if reordered { rng.usize(..self.flying.len()) } else { 0 };
                let repeated = self.path.repeated > 0 && one_in(rng, self.path.repeated);
                let (from, to) =
                    if repeated { self.flying[index] } else { self.flying.remove(index) };
                if self.path.lost_before == 0 || !one_in(rng, self.path.lost_before) {
                    let taken = self.path.lost_behind == 0 || !one_in(rng, self.path.lost_behind);
                    self.arrive(from, to, taken, guard);
                }
            }
            _ => {}
        }
    }

    fn send_next(&mut self) {
        let next = self.boundaries.partition_point(|boundary| *boundary <= self.sent);
        if let Some(end) = self.boundaries.get(next) {
            self.flying.push((self.sent, *end));
            self.sent = *end;
        }
    }

    /// Choose unacknowledged bytes to resend.
    /// They begin at the acknowledged byte, or where a segment began.
    fn resent(&self, rng: &mut Rng) -> (usize, usize) {
        let first = self.boundaries.partition_point(|boundary| *boundary <= self.known);
        let last = self.boundaries.partition_point(|boundary| *boundary < self.sent);
        let index = if one_in(rng, 2) { first } else { rng.usize(first..=last) };
        let from = if index == first { self.known } else { self.boundaries[index - 1] };
        let to = match self.path.resend {
            Resend::Same => self.boundaries[index],
            Resend::Longer => {
                let within = |boundary: &usize| *boundary <= from + self.path.longest;
                let fit = self.boundaries.partition_point(within);
                self.boundaries[rng.usize(index..=last.min(fit.max(index + 1) - 1))]
            }
            Resend::Any => rng.usize(from + 1..=self.sent),
        };
        (from, to.min(from + self.path.longest))
    }

    /// Pass a segment to the guard and, unless dropped, to a receiver that may take it.
    fn arrive(&mut self, from: usize, to: usize, taken: bool, guard: &mut impl Guard) {
        let seq = self.base.wrapping_add(from as u32);
        let mut payload = self.stream[from..to].to_vec();
        match guard.client(seq, &mut payload, taken) {
            Verdict::Pass if taken => self.receiver.take(seq, &payload),
            Verdict::Pass => {}
            Verdict::Drop(reason) => *self.dropped.entry(reason).or_default() += 1,
        }
    }

    /// Acknowledge as the receiver; the guard sees it, the sender perhaps.
    fn acknowledge(&mut self, arrives: bool, guard: &mut impl Guard) {
        guard.acknowledge(self.receiver.ack());
        if arrives {
            self.known = self.receiver.stream.len();
            self.sent = self.sent.max(self.known);
        }
    }

    /// Send everything that the sender has to, without loss.
    fn calm_round(&mut self, rng: &mut Rng, guard: &mut impl Guard) {
        self.acknowledge(true, guard);
        let mut from = self.known;
        while from < self.stream.len() {
            let index = self.boundaries.partition_point(|boundary| *boundary <= from);
            let to = match self.path.resend {
                _ if from >= self.sent => self.boundaries[index],
                Resend::Any => rng.usize(from + 1..=self.sent),
                _ => self.boundaries[index],
            };
            let to = to.min(from + self.path.longest);
            self.arrive(from, to, true, guard);
            self.sent = self.sent.max(to);
            if one_in(rng, 2) {
                self.acknowledge(true, guard);
            }
            from = to.max(self.known);
        }
    }
}
