//! Out-of-order segments, as in the kernel programs: [`crate::out_of_order`].

use super::{Budget, Payload, Reason, Replay, Verdict, leave_traces};
use crate::{
    out_of_order::{BYTES, Look, Range, Region, mesh, piece, place},
    tracker::{Step, Tracker, Walk},
};

impl Replay {
    /// Keep a segment past the cursor.
    pub(super) fn keep_bytes(
        &mut self,
        seq: u32,
        payload: &[u8],
        budget: &mut impl Budget,
    ) -> Verdict {
        let region = &mut self.region;
        if self.flow.held == 0 {
            region.clear();
        }
        let len = payload.len() as u32;
        let may = self.flow.may_hold() && !budget.is_over_limit();
        let more = u32::from(self.flow.trail != 0);
        if !may || !region.has_place(seq, len, more) {
            return Verdict::Drop(Reason::Gap);
        }
        if !is_same(region, &self.kept, seq, payload) {
            return Verdict::Drop(Reason::Changed);
        }
        if !self.flow.hold(seq) {
            return Verdict::Drop(Reason::Gap);
        }
        self.kept.resize(BYTES as usize, 0);
        for (byte, at) in payload.iter().zip(0..) {
            self.kept[place(seq.wrapping_add(at))] = *byte;
        }
        region.extend(seq, len);
        Verdict::Pass
    }

    /// The range that a stream at `tracker` has reached, if any.
    pub(super) fn reached(&self, tracker: &Tracker) -> Option<Range> {
        let first = self.region.next(self.flow.client.resume());
        (self.flow.held != 0 && first.is_reached(tracker)).then_some(first)
    }

    /// Decide, before a walk through `came` is committed, whether its segment may pass and fill the
    /// gap. `true` when its pings are charged together with the copy's: all of them pass.
    pub(super) fn judge(
        &mut self,
        walk: &Walk,
        came: &[u8],
        budget: &mut impl Budget,
    ) -> Result<bool, Reason> {
        let Some(first) = self.reached(&walk.tracker) else {
            return Ok(false);
        };
        let region = &self.region;
        let overlap = region.overlap(walk);
        // The copy's would pass with them: no walk is spent on that.
        if overlap > 0 && budget.is_exceeded_by(walk.pings) {
            return Err(Reason::Gap);
        }
        if !is_same(region, &self.kept, walk.base(), came) {
            return Err(Reason::Changed);
        }
        if !self.flow.may_fill(self.traces.len() as u32) {
            return Err(Reason::Untraced);
        }
        self.mesh = mesh(walk.len(), self.flow.trail.into());
        let kept = self.look(walk, first);
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

    /// Number of pings in the copy after `walk`, from the range `first` up to the next gap, or
    /// [`Look::FAILED`].
    fn look(&mut self, walk: &Walk, first: Range) -> u32 {
        if let Some(known) = self.region.recall(&walk.tracker) {
            return known;
        }
        let (mut tracker, mut range, mut pings) = (walk.tracker, first, 0);
        'ranges: while range.is_reached(&tracker) {
            let mut begin = range.begin;
            while begin != range.end() {
                let mut dry = Walk::new(tracker, &tracker, begin, piece(&range, begin, self.mesh));
                if self.run_kept(&mut dry, false) != Step::Done {
                    pings = Look::FAILED;
                    break 'ranges;
                }
                pings += dry.pings;
                tracker = dry.tracker;
                begin = dry.end();
            }
            range = self.region.next(range.begin);
        }
        self.region.looked(&walk.tracker, pings);
        pings
    }

    /// Commit the copy after the filler, up to the next gap, if the committed `walk` was that.
    /// `first` is the range that it [reached](Self::reached).
    pub(super) fn follow(&mut self, first: Option<Range>) {
        let Some(mut range) = first else {
            return;
        };
        while range.is_reached(&self.flow.client) {
            self.commit_range(range);
            range = self.region.next(range.begin);
        }
        self.region.pass(self.flow.client.resume());
        self.flow.held = u8::from(self.flow.held != 0 && self.region.len != 0);
    }

    /// Commit the pieces of a range.
    fn commit_range(&mut self, range: Range) {
        let mut begin = range.begin;
        while begin != range.end() {
            let len = piece(&range, begin, self.mesh);
            let start = self.flow.client;
            let mut walk = Walk::new(start, &start, begin, len).unbounded();
            let (headers, records) = (self.headers.len(), self.records.len());
            let done = self.run_kept(&mut walk, true) == Step::Done;
            debug_assert!(done);
            self.count_kinds(headers, records);
            let traces = self.shortened(&start, walk.end());
            self.flow.commit(&start, &walk, walk.pings);
            self.keep(&traces);
            begin = begin.wrapping_add(len);
        }
    }

    /// Walk through bytes of the copy. No ping is defused.
    fn run_kept(&mut self, walk: &mut Walk, note: bool) -> Step {
        walk.budget = Walk::UNLIMITED;
        let offsets = 0..walk.len();
        let bytes = offsets.map(|at| self.kept[place(walk.base().wrapping_add(at))]);
        let mut bytes: Vec<u8> = bytes.collect();
        let seen = note.then_some((&mut self.headers, &mut self.records));
        let mut segment = Payload { bytes: &mut bytes, rewrite: false, seen };
        loop {
            match walk.step(&mut segment) {
                Step::More if note => leave_traces(walk, &mut self.traces),
                Step::More => {}
                end => return end,
            }
        }
    }
}

/// Check whether the bytes that came at `seq` are those of the copy, as far as it has them.
fn is_same(region: &Region, kept: &[u8], seq: u32, came: &[u8]) -> bool {
    region.ranges.iter().all(|range| {
        let (from, len) = range.shared(seq, came.len() as u32);
        (0..len).all(|at| {
            let at = from.wrapping_add(at);
            came[at.wrapping_sub(seq) as usize] == kept[place(at)]
        })
    })
}
