//! Sending TCP, with its congestion control and path.
//! It has a congestion window, fast retransmit with or without SACK, time-outs, probes of a shut
//! window, and segment lengths that follow the path's MTU.

use std::ops::Range;

/// Milliseconds of the simulation.
pub type Time = u64;

/// Shortest and longest retransmission time-out.
const RTO: Range<Time> = 200..3_000;

/// Acknowledgement, as offsets in the stream.
#[derive(Clone, Debug, Default)]
pub struct Ack {
    /// End of the bytes that have arrived in order.
    pub to: usize,
    /// Number of bytes that may be sent after that.
    pub window: usize,
    /// Other ranges that have arrived.
    pub sacks: Vec<Range<usize>>,
}

/// Sender of `length` bytes.
#[derive(Clone, Debug)]
pub struct Sender {
    length: usize,
    /// Maximum length of a segment.
    pub mss: usize,
    /// Number of segments that leave merged, and are cut further on.
    pub burst: usize,
    /// `true` if the receiver reports ranges behind a gap.
    pub sack: bool,
    /// End of the bytes that are acknowledged...
    pub una: usize,
    /// ...and of those that are sent.
    pub next: usize,
    cwnd: usize,
    window: usize,
    repeats: u32,
    /// End of the bytes sent again; [`Sender::una`] when there are none.
    again: usize,
    /// End of the bytes that count as lost.
    lost_to: usize,
    sacked: Vec<Range<usize>>,
    rto: Time,
    /// Time of the next time-out; none while nothing is in flight.
    due: Option<Time>,
    /// `true` if time is up and the window is shut: it probes the window.
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

    /// Check whether everything is acknowledged.
    pub fn is_done(&self) -> bool {
        self.una >= self.length
    }

    /// Return the time of the next action if nothing arrives.
    pub fn due(&self) -> Option<Time> {
        self.due
    }

    /// Process an acknowledgement.
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

    /// Apply a shorter MTU from path MTU discovery: what was sent is lost.
    pub fn shrink(&mut self, now: Time, mss: usize) {
        if mss < self.mss {
            self.mss = mss;
            self.lost_to = self.next;
            self.again = self.una;
            self.due = Some(now + self.rto);
        }
    }

    /// Handle a time-out: everything not known to have arrived counts as lost.
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
            // The receiver may have discarded ranges that it had reported (RFC 2018, 8).
            self.sacked.clear();
        }
    }

    /// Return the range to send now; a shut window is probed with its next byte.
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

    /// Return the next range of what counts as lost.
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
