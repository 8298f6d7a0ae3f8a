//! Pings of one side, and the other side's answers (RFC 6455, 5.5.2 and 5.5.3).

use std::collections::VecDeque;

use serde::Serialize;

use crate::finding::{At, Place, What};

/// Maximum number of unanswered pings kept.
const MOST_OUTSTANDING: usize = 256;
/// Number of samples, the first ones, for medians of answer times and intervals.
const SAMPLES: usize = 4096;

/// Ping that awaits its answer.
#[derive(Debug)]
pub struct Sent {
    pub at: At,
    pub frame: u64,
    /// Capture of the last byte.
    pub ended: Place,
    /// Payload; `None` where it was not captured in full.
    payload: Option<Vec<u8>>,
}

/// Number, total and samples of durations.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    first: Vec<u64>,
    pub count: u64,
    pub longest_ns: u64,
    shortest_ns: u64,
}

/// Durations as reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    pub min_us: u64,
    pub median_us: u64,
    pub max_us: u64,
}

impl Durations {
    fn add(&mut self, ns: u64) {
        self.shortest_ns = if self.count == 0 { ns } else { self.shortest_ns.min(ns) };
        self.longest_ns = self.longest_ns.max(ns);
        self.count += 1;
        if self.first.len() < SAMPLES {
            self.first.push(ns);
        }
    }

    pub fn median_ns(&self) -> Option<u64> {
        let mut sorted = self.first.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    pub fn spread(&self) -> Option<Spread> {
        let median = self.median_ns()?;
        Some(Spread {
            min_us: self.shortest_ns / 1000,
            median_us: median / 1000,
            max_us: self.longest_ns / 1000,
        })
    }
}

/// Pings of one side.
#[derive(Debug, Default)]
pub struct Heartbeat {
    pub outstanding: VecDeque<Sent>,
    /// Number of pings forgotten without an answer.
    pub forgotten: u64,
    pub answered: u64,
    /// Number of pings answered by a later ping's pong.
    pub skipped: u64,
    /// Number of unsolicited pongs.
    pub unasked: u64,
    pub answers: Durations,
    pub intervals: Durations,
    /// Ping with the slowest answer, and the packet of that answer.
    pub slowest: Option<(At, Place)>,
    latest_ns: Option<u64>,
}

impl Heartbeat {
    /// Process the end of a ping.
    /// Returns the finding on an older ping, if one had to be forgotten.
    pub fn ping(
        &mut self,
        at: At,
        frame: u64,
        ended: Place,
        payload: Option<Vec<u8>>,
    ) -> Option<(At, What)> {
        if let Some(latest) = self.latest_ns.replace(ended.time_ns) {
            self.intervals.add(ended.time_ns.saturating_sub(latest));
        }
        self.outstanding.push_back(Sent { at, frame, ended, payload });
        if self.outstanding.len() <= MOST_OUTSTANDING {
            return None;
        }
        self.forgotten += 1;
        self.outstanding.pop_front().map(|sent| unanswered(&sent))
    }

    /// Process the end of the other side's pong.
    /// Returns findings on the pings that it answers, the latest last; empty if it answers none.
    pub fn pong(&mut self, ended: Place, payload: Option<&[u8]>) -> Vec<(At, What)> {
        // A payload that was not captured in full may be any ping's: take the oldest.
        let is_answer = |sent: &Sent| match (&sent.payload, payload) {
            (Some(sent), Some(payload)) => sent == payload,
            _ => true,
        };
        let Some(place) = self.outstanding.iter().position(is_answer) else {
            self.unasked += 1;
            return Vec::new();
        };
        let mut said = Vec::new();
        for (number, sent) in self.outstanding.drain(..=place).enumerate() {
            let ns = ended.time_ns.saturating_sub(sent.ended.time_ns);
            let is_it = number == place;
            if is_it {
                self.answered += 1;
                if ns >= self.answers.longest_ns {
                    self.slowest = Some((sent.at, ended));
                }
                self.answers.add(ns);
            } else {
                self.skipped += 1;
            }
            let answered_us = is_it.then_some(ns / 1000);
            let answered_in_packet = Some(ended.packet);
            said.push((sent.at, What::Ping { frame: sent.frame, answered_us, answered_in_packet }));
        }
        said
    }

    /// Return the number of unanswered pings.
    pub fn unanswered(&self) -> u64 {
        self.forgotten + self.outstanding.len() as u64
    }

    /// Return findings on the pings left unanswered at the end.
    pub fn end(&self) -> impl Iterator<Item = (At, What)> {
        self.outstanding.iter().map(unanswered)
    }
}

fn unanswered(sent: &Sent) -> (At, What) {
    let what = What::Ping { frame: sent.frame, answered_us: None, answered_in_packet: None };
    (sent.at, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(packet: u64) -> Place {
        Place { file: 1, packet, time_ns: packet * 1_000_000 }
    }

    fn ping(beat: &mut Heartbeat, packet: u64, payload: &[u8]) -> Option<(At, What)> {
        let at = At::new(place(packet), 0, 0);
        beat.ping(at, packet, place(packet), Some(payload.to_vec()))
    }

    #[test]
    fn pongs_belong_to_the_ping_with_their_payload_and_those_before() {
        let mut beat = Heartbeat::default();
        for (packet, payload) in [(1, b"a"), (2, b"b"), (3, b"c")] {
            assert_eq!(ping(&mut beat, packet, payload), None);
        }
        assert!(beat.pong(place(4), Some(b"x")).is_empty());
        let said = beat.pong(place(5), Some(b"b"));
        let answers = said.iter().map(|(at, what)| match what {
            What::Ping { answered_us, .. } => (at.packet, *answered_us),
            _ => panic!("{what:?}"),
        });
        assert_eq!(answers.collect::<Vec<_>>(), [(1, None), (2, Some(3000))]);
        assert_eq!((beat.answered, beat.skipped, beat.unasked, beat.unanswered()), (1, 1, 1, 1));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut beat = Heartbeat::default();
        let forgotten = (0..10_000).filter_map(|packet| ping(&mut beat, packet, b"")).count();
        assert_eq!(forgotten, 10_000 - MOST_OUTSTANDING);
        assert_eq!(beat.unanswered(), 10_000);
        assert!(beat.intervals.first.len() == SAMPLES && beat.intervals.count == 9_999);
    }
}
