//! Out-of-order segments, as in the kernel programs: [`crate::held`].

use super::{Budget, Payload, Reason, Replay, Verdict, leave_traces};
use crate::{
    flow::CHECKPOINTS,
    out_of_order::Look,
    tracker::{Step, Walk},
};

impl Replay {
    /// Keep a segment past the cursor.
    pub(super) fn keep(&mut self, seq: u32, payload: &[u8], budget: &mut impl Budget) -> Verdict {
        let held = &mut *self.held;
        if self.flow.held == 0 {
            held.region.clear();
        }
        let len = payload.len() as u32;
        let place = held.region.place(seq, len);
        let Some(at) = place.filter(|_| self.flow.may_hold() && !budget.is_over_limit()) else {
            return Verdict::Drop(Reason::Gap);
        };
        let known = held.region.known(at, len) as usize;
        let copy = &mut held.bytes[at as usize..][..payload.len()];
        if copy[..known] != payload[..known] {
            return Verdict::Drop(Reason::Changed);
        }
        copy.copy_from_slice(payload);
        if !self.flow.hold(seq, at + len) {
            return Verdict::Drop(Reason::Gap);
        }
        held.region.extend(seq, at, len);
        Verdict::Pass
    }

    /// Decide, before a walk through `came` is committed, whether its segment may pass and fill the
    /// gap. `true` when its pings are charged together with the copy's: all of them pass.
    pub(super) fn judge(
        &mut self,
        walk: &Walk,
        came: &[u8],
        budget: &mut impl Budget,
    ) -> Result<bool, Reason> {
        let region = &self.held.region;
        if self.flow.held == 0 || !region.is_reached(walk) {
            return Ok(false);
        }
        let overlap = region.overlap(walk) as usize;
        if overlap > 0 {
            let at = region.begin.wrapping_sub(walk.base()) as usize;
            if came[at..at + overlap] != self.held.bytes[..overlap] {
                return Err(Reason::Changed);
            }
        }
        if !self.flow.may_fill(walk, region, self.traces.len() as u32) {
            return Err(Reason::NoCheckpoint);
        }
        let kept = self.look(walk);
        if kept == Look::FAILED {
            return Err(Reason::Gap);
        }
        let whole = overlap > 0 || kept > 0;
        let pings = if whole { kept + walk.pings } else { 0 };
        match pings == 0 || budget.charge_whole(pings) {
            true => Ok(whole),
            false => Err(Reason::Gap),
        }
    }

    /// Number of pings in the copy after `walk`, or [`Look::FAILED`].
    fn look(&mut self, walk: &Walk) -> u32 {
        let region = &self.held.region;
        if let Some(known) = region.recall(&walk.tracker) {
            return known;
        }
        let mut dry = Walk::new(walk.tracker, &walk.tracker, region.begin, region.len);
        let done = self.run_kept(&mut dry, 0, false) == Step::Done;
        let pings = if done { dry.pings } else { Look::FAILED };
        self.held.region.looked(&walk.tracker, pings);
        pings
    }

    /// Commit the copy after the filler, if the committed `walk` was that.
    pub(super) fn follow(&mut self, walk: &Walk) {
        if self.flow.held == 0 || !self.held.region.is_reached(walk) {
            return;
        }
        self.flow.held = 0;
        self.flow.filled(self.held.region.overlap(walk) > 0);
        let ragged = self.held.region.ragged != 0;
        for cut in 0..self.held.region.cuts {
            let (begin, len) = self.held.region.cut(cut);
            let start = self.flow.client;
            let mut walk = Walk::new(start, &start, begin, len).unbounded();
            let (headers, records) = (self.headers.len(), self.records.len());
            let at = begin.wrapping_sub(self.held.region.begin);
            let done = self.run_kept(&mut walk, at, true) == Step::Done;
            debug_assert!(done && self.flow.kept as usize <= CHECKPOINTS);
            self.count_kinds(headers, records);
            self.flow.commit_cut(&walk, ragged);
            self.keep_traces(0);
        }
    }

    /// Walk through the copy from offset `at`. No ping is defused.
    fn run_kept(&mut self, walk: &mut Walk, at: u32, note: bool) -> Step {
        walk.budget = Walk::UNLIMITED;
        let bytes = &mut self.held.bytes[at as usize..][..walk.len() as usize];
        let seen = note.then_some((&mut self.headers, &mut self.records));
        let mut segment = Payload { bytes, rewrite: false, seen };
        loop {
            match walk.step(&mut segment) {
                Step::More if note => leave_traces(walk, &mut self.traces),
                Step::More => {}
                end => return end,
            }
        }
    }
}
