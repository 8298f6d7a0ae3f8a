//! A sending TCP: congestion window, fast retransmit with or without SACK, time-outs, probes of a shut
//! window, and segments that change their length with the path's MTU.

use std::ops::Range;

/// Milliseconds of the simulation.
pub type Time = u64;

/// Shortest and longest time until everything counts as lost.
const RTO: Range<Time> = 200..3_000;

/// What the receiver says, as offsets in the stream.
#[derive(Clone, Debug, Default)]
pub struct Ack {
    /// It has everything up to here.
    pub to: usize,
    /// And may be sent so much more.
    pub window: usize,
    /// It also has these.
    pub sacks: Vec<Range<usize>>,
}

/// One that has `length` bytes to send.
#[derive(Clone, Debug)]
pub struct Sender {
    length: usize,
    /// Longest segment.
    pub mss: usize,
    /// Segments that go out as one, and are cut further on.
    pub burst: usize,
    /// The receiver tells what it has behind a gap.
    pub sack: bool,
    /// Everything up to here is acknowledged...
    pub una: usize,
    /// ...and sent.
    pub next: usize,
    cwnd: usize,
    window: usize,
    repeats: u32,
    /// Sent again up to here; [`Sender::una`] when nothing is.
    again: usize,
    /// What counts as lost lies before this.
    lost_to: usize,
    sacked: Vec<Range<usize>>,
    rto: Time,
    /// When time is up; none while nothing is under way.
    due: Option<Time>,
    /// Time is up, and the window is shut: it asks whether it has been opened.
    probes: bool,
}

impl Sender {
    pub fn new(length: usize, mss: usize, burst: usize, sack: bool) -> Sender {
        Sender {
            length,
            mss,
            burst,
            sack,
            una: 0,
            next: 0,
            cwnd: 10 * mss,
            window: 64 * 1024,
            repeats: 0,
            again: 0,
            lost_to: 0,
            sacked: Vec::new(),
            rto: RTO.start,
            due: None,
            probes: false,
        }
    }

    /// Everything is acknowledged.
    pub fn is_done(&self) -> bool {
        self.una >= self.length
    }

    /// When it acts next if nothing comes.
    pub fn due(&self) -> Option<Time> {
        self.due
    }

    /// An acknowledgement comes.
    pub fn hear(&mut self, now: Time, ack: &Ack) {
        if ack.to < self.una || ack.to > self.next {
            return;
        }
        let opens = ack.window != self.window;
        self.window = ack.window;
        if self.sack {
            self.sacked.extend(ack.sacks.iter().cloned());
        }
        if ack.to > self.una {
            self.advance(now, ack.to);
        } else if self.next > self.una && (!opens || !ack.sacks.is_empty()) {
            self.repeats += 1;
            if self.repeats == 3 {
                self.cwnd = (self.cwnd / 2).max(2 * self.mss);
                self.lost_to = match self.sack {
                    true => self.sacked.iter().map(|range| range.end).max().unwrap_or(self.una),
                    false => self.una + 1,
                }
                .max(self.una + 1);
                self.again = self.una;
            }
        }
    }

    fn advance(&mut self, now: Time, to: usize) {
        self.cwnd = (self.cwnd + (to - self.una).min(self.mss)).min(1 << 20);
        self.una = to;
        self.repeats = 0;
        self.again = self.again.max(to);
        // A partial acknowledgement of what was lost: the next hole (RFC 6582).
        if self.lost_to > to && self.again > to && !self.sack {
            self.again = to;
        }
        self.sacked.retain(|range| range.end > to);
        self.rto = RTO.start;
        self.due = (self.next > to || self.window == 0).then_some(now + self.rto);
    }

    /// Path MTU discovery says that segments must be shorter: what was sent is lost.
    pub fn shrink(&mut self, now: Time, mss: usize) {
        if mss < self.mss {
            self.mss = mss;
            self.lost_to = self.next;
            self.again = self.una;
            self.due = Some(now + self.rto);
        }
    }

    /// Time is up: everything that is not known to have arrived counts as lost.
    pub fn wake(&mut self, now: Time) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.cwnd = self.mss;
        self.lost_to = self.next;
        self.again = self.una;
        self.repeats = 0;
        self.rto = (2 * self.rto).min(RTO.end);
        self.due = Some(now + self.rto);
        self.probes = self.window == 0 && self.next == self.una;
        if self.rto >= RTO.end {
            // The receiver may have thrown away what it had told of (RFC 2018, 8).
            self.sacked.clear();
        }
    }

    /// What it sends now: from and to. A shut window is probed with its next byte.
    pub fn send(&mut self, now: Time) -> Option<Range<usize>> {
        if let Some(range) = self.resend() {
            self.due = self.due.or(Some(now + self.rto));
            return Some(range);
        }
        let room = self.cwnd.max(self.mss).min(self.window);
        let most = (self.una + room).min(self.length);
        let probes = core::mem::take(&mut self.probes) && self.window == 0;
        if self.next >= most && !probes {
            if self.window == 0 && self.next == self.una && self.due.is_none() && !self.is_done() {
                self.due = Some(now + self.rto);
            }
            return None;
        }
        let end = match probes {
            true => self.length.min(self.next + 1),
            false => most.min(self.next + self.mss * self.burst),
        };
        let range = self.next..end;
        self.next = self.next.max(end);
        self.due = Some(now + self.rto);
        Some(range)
    }

    /// The next piece of what counts as lost.
    fn resend(&mut self) -> Option<Range<usize>> {
        self.again = self.again.max(self.una);
        while let Some(range) = self.sacked.iter().find(|range| range.contains(&self.again)) {
            self.again = range.end;
        }
        let limit = self.una + self.cwnd.max(self.mss);
        if self.again >= self.lost_to.min(limit) {
            return None;
        }
        let hole = self.sacked.iter().map(|range| range.start).filter(|start| *start > self.again);
        let end = hole.min().unwrap_or(self.next).min(self.next).min(self.again + self.mss);
        let range = self.again..end;
        self.again = end;
        Some(range)
    }
}
