//! The guard on the host: one connection's segments in, verdicts and counters out.
//!
//! [`Replay`] drives a [`Flow`] as the kernel programs do, over byte slices instead of packets.
//! `ws-guard inspect` runs it on capture files, property tests and fuzz targets on generated
//! streams.

mod out_of_order;

use std::mem;

use crate::{
    flow::{self, Action, Flow},
    frame::{Header, PING_TO_PONG, Violation, Violations},
    ledger::{Interval, RING},
    out_of_order::{Region, mesh},
    record::Record,
    seq::later,
    tracker::{Segment, Step, Tracker, Walk},
    trail::{Trace, Traces, Trail, give_way, is_worth_pruning},
};

/// Budget for a client's pings: a source's limit, or none for a capture.
pub trait Budget {
    /// Maximum of new pings of the current segment that may pass.
    fn room(&mut self) -> u32;
    /// Charge the segment's `pings` new pings, of which `passed` passed.
    fn charge(&mut self, pings: u32, passed: u32);
    /// Check whether the connection is over the limit: its out-of-order segments do not pass then.
    fn is_over_limit(&mut self) -> bool;
    /// Check whether `pings` new pings are more than a connection over the limit may still send:
    /// they are not even charged.
    fn is_exceeded_by(&mut self, _pings: u32) -> bool {
        false
    }
    /// Charge `pings` new pings that pass all or none, and return whether they may.
    fn charge_whole(&mut self, pings: u32) -> bool;
}

/// Budget without a limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl Budget for Unlimited {
    fn room(&mut self) -> u32 {
        Walk::UNLIMITED
    }

    fn charge(&mut self, _pings: u32, _passed: u32) {}

    fn is_over_limit(&mut self) -> bool {
        false
    }

    fn charge_whole(&mut self, _pings: u32) -> bool {
        true
    }
}

/// Reason for dropping a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// It is past the cursor.
    Gap,
    /// It is past any window: [`Flow::is_out_of_reach`].
    OutOfReach,
    /// It has provisional headers that are not traced, or more headers than there is room to trace.
    Untraced,
    /// Its frames differ from the first transmission.
    Changed,
    /// A walk reached unreadable bytes.
    Unreadable,
}

/// Verdict about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes, with the pings over the budget rewritten.
    Pass,
    Drop(Reason),
}

/// Treatment of segments that cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is dropped and nothing rewritten.
    Observe,
    /// As under the actions `defuse` and `drop`.
    Guard,
}

/// Complete frame header, and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenHeader {
    /// Sequence number of the frame's first byte.
    pub seq: u32,
    pub header: Header,
    pub violations: Violations,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Replay {
    pub flow: Flow,
    pub mode: Mode,
    /// [`Flow::is_settled`]; the caller has the clock.
    pub settled: bool,
    /// Set: nothing has passed for [`flow::STALLED_NS`].
    pub silent: bool,
    /// The client's violations by kind; a frame may count under several.
    pub by_kind: [u64; Violation::COUNT],
    /// The client's headers since the caller last took them, each once.
    pub headers: Vec<SeenHeader>,
    /// The same of TLS records.
    pub records: Vec<SeenRecord>,
    /// Not set: the trails that the flow may take belong to others.
    pub has_trail: bool,
    /// Trail of unacknowledged frames.
    trail: Box<Trail>,
    /// Traces of the current walk.
    traces: Vec<Trace>,
    /// The flow needs a trail for the current segment, and has none.
    many: bool,
    /// Out-of-order segments, while [`Flow::held`]...
    region: Region,
    /// ...and the ring of their bytes, for which there are always pages.
    kept: Vec<u8>,
    /// [Mesh](mesh) of the latest filler.
    mesh: u32,
}

/// Complete record header, and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenRecord {
    /// Sequence number of its first byte.
    pub seq: u32,
    pub record: Record,
    pub violations: Violations,
}

impl Replay {
    /// Open a connection whose client frames start at sequence number `client_next` and whose
    /// server frames start at `server_next`. `flags`: [`flow::DEFLATE`] or 0.
    pub fn open(client_next: u32, server_next: u32, flags: u8, mode: Mode) -> Replay {
        let mut flow = Flow { generation: client_next ^ server_next, ..Flow::default() };
        flow.open(client_next, server_next, flags, 0);
        Replay::of(flow, mode)
    }

    /// The same inside TLS: the client's records start at `client_next`.
    pub fn open_records(client_next: u32, server_next: u32, mode: Mode) -> Replay {
        let mut flow = Flow { generation: client_next ^ server_next, ..Flow::default() };
        let client = Tracker::new(client_next, 0);
        flow.open_records(client, client_next, server_next, 0, 0);
        Replay::of(flow, mode)
    }

    fn of(flow: Flow, mode: Mode) -> Replay {
        let by_kind = [0; Violation::COUNT];
        Replay {
            flow,
            mode,
            settled: false,
            silent: false,
            by_kind,
            headers: Vec::new(),
            records: Vec::new(),
            has_trail: true,
            trail: Box::default(),
            traces: Vec::new(),
            many: false,
            region: Region::default(),
            kept: Vec::new(),
            mesh: mesh(0, 0),
        }
    }

    /// Handle a client's segment.
    /// Pings over the budget are rewritten in `payload`, unless the segment is dropped.
    pub fn client(&mut self, seq: u32, payload: &mut [u8], budget: &mut impl Budget) -> Verdict {
        if self.mode == Mode::Guard && self.flow.is_out_of_reach(seq) {
            return Verdict::Drop(Reason::OutOfReach);
        }
        let plan = self.flow.plan(seq, payload.len() as u32);
        let fast = plan == Action::Walk && self.is_fast_path(seq, payload);
        match plan {
            Action::Pass => {}
            Action::Gap => self.make_room(u32::MAX),
            _ if fast && self.flow.room() > 0 => {}
            _ if fast => self.make_room(0),
            _ => self.make_room(payload.len() as u32),
        }
        match plan {
            Action::Pass => self.let_through(seq, payload),
            Action::Walk => self.walk(self.flow.client, false, seq, payload, budget),
            Action::Rewalk => match self.stood_at(seq) {
                Some(start) => self.rewalk(start, seq, payload, budget),
                None => self.refuse(seq, payload.len()),
            },
            Action::Gap => {
                self.flow.gaps += 1;
                self.flow.flags |= flow::GAP;
                match self.mode {
                    Mode::Guard => self.keep_bytes(seq, payload, budget),
                    Mode::Observe => Verdict::Pass,
                }
            }
            Action::Untraced => self.refuse(seq, payload.len()),
            Action::Search => self.search(seq, payload, budget),
        }
    }

    /// Take over the server's acknowledgement of the client's bytes up to `ack`.
    pub fn acknowledge(&mut self, ack: u32) -> flow::Acknowledged {
        self.flow.acknowledge(ack)
    }

    /// Check whether the segment takes the fast path, with one header.
    fn is_fast_path(&self, seq: u32, payload: &mut [u8]) -> bool {
        let start = self.flow.client;
        let mut walk = Walk::new(start, &start, seq, payload.len() as u32);
        let segment = Payload { bytes: payload, rewrite: false, seen: None };
        self.flow.held == 0 && walk.only(&segment) != 0
    }

    /// Make room for the traces of a segment of `len` bytes: drop acknowledged ones, or move all to a
    /// trail.
    fn make_room(&mut self, len: u32) {
        let flow = &mut self.flow;
        let (first, count) = (flow.first_trace(), flow.traces as u32);
        let is_short =
            flow.needs_trail(len) || flow.trail != 0 && is_worth_pruning(&self.trail, flow);
        if is_short {
            let acked = match flow.trail {
                0 => flow.before(first, count, flow.acked),
                _ => self.trail.before(first, count, flow.acked),
            };
            let latest = first.wrapping_add(acked).wrapping_sub(1);
            let latest = match flow.trail {
                0 => flow.trace(latest).seq,
                _ => self.trail.trace(latest).seq,
            };
            flow.drop_traces(acked, latest);
        }
        if self.has_trail && flow.needs_trail(len) {
            for number in 0..flow.traces as u32 {
                let number = flow.first_trace().wrapping_add(number);
                self.trail.put(number, *flow.trace(number));
            }
            flow.trail = 1;
        }
        self.many = self.flow.needs_trail(len);
    }

    /// Tracker of the stream at the segment's first unacknowledged byte.
    fn stood_at(&self, seq: u32) -> Option<Tracker> {
        let from = later(seq, self.flow.acked);
        match self.flow.trail {
            0 => self.flow.stood_at(from),
            _ => self.trail.stood_at(&self.flow, from),
        }
    }

    /// Check whether a walk through old bytes found the traced headers.
    fn is_same(&self, walk: &Walk) -> bool {
        self.flow.is_reached(walk)
            || match self.flow.trail {
                0 => self.flow.knows(&walk.tracker),
                _ => self.trail.knows(&self.flow, &walk.tracker),
            }
    }

    fn let_through(&mut self, seq: u32, payload: &[u8]) -> Verdict {
        self.flow.let_through(seq, payload.len() as u32);
        Verdict::Pass
    }

    /// Drop a segment that cannot be judged, except in observe mode: then it passes unseen.
    fn unless_observing(&self, reason: Reason) -> Verdict {
        match self.mode {
            Mode::Observe => Verdict::Pass,
            Mode::Guard => Verdict::Drop(reason),
        }
    }

    /// Drop a retransmission whose traces are not kept. If the client would stall, its flow goes out of sync.
    fn refuse(&mut self, seq: u32, len: usize) -> Verdict {
        let stalls = self.silent && self.flow.is_stuck_at(seq, seq.wrapping_add(len as u32));
        if stalls && self.mode == Mode::Guard {
            self.flow.give_up();
        }
        self.unless_observing(Reason::Untraced)
    }

    /// Walk new bytes from `start`, and commit the result.
    fn walk(
        &mut self,
        start: Tracker,
        replaces: bool,
        seq: u32,
        payload: &mut [u8],
        budget: &mut impl Budget,
    ) -> Verdict {
        let mut walk = Walk::new(start, &start, seq, payload.len() as u32);
        let passed = match self.run(&mut walk, None, payload, budget) {
            Ok(passed) => passed,
            Err(reason) => return self.unless_observing(reason),
        };
        let first = self.reached(&walk.tracker);
        if replaces {
            self.flow.set_back(&start);
        }
        let traces = self.shortened(&start, walk.end());
        self.flow.commit(&start, &walk, passed);
        if replaces {
            self.flow.replaced_to(walk.end(), true);
        }
        self.keep(&traces);
        self.follow(first);
        Verdict::Pass
    }

    /// Traces of a walk from `start` to `end`, before it is committed, shortened to the room for them.
    fn shortened(&mut self, start: &Tracker, end: u32) -> Vec<Trace> {
        let mut traces = mem::take(&mut self.traces);
        let counts = (traces.len() as u32, self.flow.room());
        if counts.0 <= counts.1 && !self.many {
            return traces;
        }
        let mut left = [Trace::default(); RING];
        for (number, trace) in traces.iter().enumerate() {
            left[number.min(RING - 1)] = *trace;
        }
        let count = self.flow.shorten(&mut left, counts, self.many, start, end);
        traces.truncate(count as usize);
        traces.copy_from_slice(&left[..count as usize]);
        traces
    }

    /// Keep the [shortened](Self::shortened) traces of a committed walk.
    fn keep(&mut self, traces: &[Trace]) {
        if self.flow.trail == 0 {
            let mut left = [Trace::default(); RING];
            left[..traces.len()].copy_from_slice(traces);
            self.flow.trace_all(&left, traces.len() as u32);
            return;
        }
        let mut at = self.flow.next_trace;
        if self.flow.take_traces(traces.len() as u32) {
            at = at.wrapping_sub(1);
            give_way(&mut *self.trail, at, self.flow.client.flags);
        }
        for (number, trace) in traces.iter().enumerate() {
            self.trail.put(at.wrapping_add(number as u32), *trace);
        }
    }

    /// Walk a retransmission from `start`: the same verdict as before, if the headers are the same.
    fn rewalk(
        &mut self,
        start: Tracker,
        seq: u32,
        payload: &mut [u8],
        budget: &mut impl Budget,
    ) -> Verdict {
        let known = self.flow.client;
        let mut walk = Walk::new(start, &known, seq, payload.len() as u32);
        walk.begins_at(&known);
        let mut segment = Payload { bytes: payload, rewrite: false, seen: None };
        let agrees = walk.agrees(&segment, &known);
        if self.settled && self.flow.is_covered_by(seq, walk.end()) {
            let mut dry = walk;
            dry.budget = Walk::UNLIMITED;
            let done = dry.run(&mut segment) == Step::Done;
            if done && (!self.is_same(&dry) || dry.joined && !agrees) {
                return self.walk(start, true, seq, payload, budget);
            }
        }
        walk.defused = match self.mode {
            Mode::Guard => self.flow.defused_pings,
            Mode::Observe => Interval::default(),
        };
        let passed = match self.run(&mut walk, Some(agrees), payload, budget) {
            Ok(passed) => passed,
            Err(reason) => return self.unless_observing(reason),
        };
        let first = self.reached(&walk.tracker);
        let traces = self.shortened(&known, walk.end());
        self.flow.repeated(&known, &walk, passed);
        self.keep(&traces);
        self.follow(first);
        Verdict::Pass
    }

    /// Walk to the end of the segment, and return how many of its new pings passed. `again`: of a
    /// retransmission, whether it [agrees](Walk::agrees) with the split header.
    fn run(
        &mut self,
        walk: &mut Walk,
        again: Option<bool>,
        payload: &mut [u8],
        budget: &mut impl Budget,
    ) -> Result<u32, Reason> {
        let rewrite = self.mode == Mode::Guard;
        let (headers, records) = (self.headers.len(), self.records.len());
        let seen = Some((&mut self.headers, &mut self.records));
        // The copy is compared with the original bytes, not with rewritten pings.
        let came = if self.flow.held != 0 { payload.to_vec() } else { Vec::new() };
        self.traces.clear();
        let mut segment = Payload { bytes: payload, rewrite, seen };
        loop {
            match walk.step(&mut segment) {
                Step::Ask => walk.budget = budget.room(),
                Step::Done => break,
                Step::More => leave_traces(walk, &mut self.traces),
                // Headers found so far are counted, because the programs count as they walk.
                Step::Unreadable => {
                    self.count_kinds(headers, records);
                    return Err(Reason::Unreadable);
                }
            }
        }
        let judged = match again {
            Some(agrees) if !self.is_same(walk) || walk.joined && !agrees => Err(Reason::Changed),
            _ if !self.flow.fits(self.traces.len() as u32, self.flow.room()) => {
                Err(Reason::Untraced)
            }
            _ => self.judge(walk, &came, budget),
        };
        let whole = match judged {
            Ok(whole) => whole,
            Err(reason) => {
                self.headers.truncate(headers);
                self.records.truncate(records);
                return Err(reason);
            }
        };
        self.count_kinds(headers, records);
        let passed = if rewrite { walk.pings.min(walk.budget) } else { walk.pings };
        if walk.pings > 0 && !whole {
            budget.charge(walk.pings, passed);
        }
        Ok(passed)
    }

    /// Count the violations in headers and records from these indices on.
    fn count_kinds(&mut self, headers: usize, records: usize) {
        let new = self.headers[headers..].iter().map(|seen| seen.violations);
        let new = new.chain(self.records[records..].iter().map(|seen| seen.violations));
        for kind in new.flat_map(|violations| violations.iter().collect::<Vec<_>>()) {
            self.by_kind[kind as usize] += 1;
        }
    }

    /// Search for frames in this segment of an out-of-sync flow, and walk it from there.
    fn search(&mut self, seq: u32, payload: &mut [u8], budget: &mut impl Budget) -> Verdict {
        let mut search = self.flow.search(seq, payload.len() as u32);
        search.run(&Payload { bytes: payload, rewrite: false, seen: None });
        if self.flow.searched(&search) {
            return self.walk(self.flow.client, false, seq, payload, budget);
        }
        self.flow.high = later(self.flow.high, seq.wrapping_add(payload.len() as u32));
        Verdict::Pass
    }
}

/// Collect the trace of the new headers of the walk's latest step.
fn leave_traces(walk: &mut Walk, traces: &mut Vec<Trace>) {
    if walk.seen.count > 0 {
        traces.push(walk.seen.trace());
        walk.seen.count = 0;
    }
}

/// A segment's payload in memory.
struct Payload<'a> {
    bytes: &'a mut [u8],
    rewrite: bool,
    /// Lists for headers.
    seen: Option<(&'a mut Vec<SeenHeader>, &'a mut Vec<SeenRecord>)>,
}

impl Payload<'_> {
    fn array<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.bytes.get(at as usize..)?.first_chunk().copied()
    }
}

impl Segment for Payload<'_> {
    fn u8_at(&self, at: u32) -> Option<u8> {
        self.bytes.get(at as usize).copied()
    }

    fn u16_at(&self, at: u32) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn u64_at(&self, at: u32) -> Option<u64> {
        self.array(at).map(u64::from_be_bytes)
    }

    fn defuse(&mut self, at: u32) {
        if let (true, Some(byte)) = (self.rewrite, self.bytes.get_mut(at as usize)) {
            *byte ^= PING_TO_PONG;
        }
    }

    fn header(&mut self, seq: u32, header: Header, violations: Violations) {
        if let Some((headers, _)) = &mut self.seen {
            headers.push(SeenHeader { seq, header, violations });
        }
    }

    fn record(&mut self, seq: u32, record: Record, violations: Violations) {
        if let Some((_, records)) = &mut self.seen {
            records.push(SeenRecord { seq, record, violations });
        }
    }
}
