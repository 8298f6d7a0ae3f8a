//! Liveness of the peer: a state machine without a clock or a socket.
//!
//! ```text
//! Idle ── first ping ──▶ Handshaking ── pong ──▶ Active ── one timeout ──▶ Suspect ── three ──▶ Dead
//! ▲                         │
//! └────────── pong ─────────┘
//! ```
//!
//! There are two of them, with their own timers. The *probe* is this side's pings and the peer's
//! pongs. The *answer* is the peer's pings and this side's pongs, which count as answered once the
//! socket has accepted them: a peer that does not read is detected even if it never has to send.

use std::time::{Duration, Instant};

/// Number of timeouts after which a direction is dead.
pub const MISSES: u8 = 3;

/// State of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No ping so far.
    Idle,
    /// First ping, waiting for its pong.
    Handshaking,
    Active,
    /// Late pong, once or twice.
    Suspect,
    /// Late pong for the third time.
    Dead,
}

impl State {
    /// Return the name in listings and logs.
    pub const fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Handshaking => "handshaking",
            State::Active => "active",
            State::Suspect => "suspect",
            State::Dead => "dead",
        }
    }
}

/// Time-outs of the heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Silence of the peer before it is pinged.
    pub ping_interval: Duration,
    /// Time from a ping to its pong.
    pub pong_timeout: Duration,
    /// Time for which other bytes replace a pong.
    /// A peer in the middle of a long frame cannot send one.
    pub grace: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            grace: Duration::from_secs(120),
        }
    }
}

/// Action that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a ping with this payload.
    Ping([u8; 8]),
    /// Close: the peer sends, but answers no ping.
    Unanswered,
    /// Close: nothing came from the peer since it was pinged, as when a NAT forgot it.
    Silent,
    /// Close: the peer does not read the pongs it asked for.
    NotReading,
}

/// State of one direction.
#[derive(Clone, Copy, Debug)]
struct Beat {
    state: State,
    misses: u8,
    /// Time at which the awaited pong will be late.
    due: Option<Instant>,
}

impl Beat {
    const IDLE: Beat = Beat { state: State::Idle, misses: 0, due: None };

    fn asked(&mut self, due: Instant) {
        if self.state == State::Idle {
            self.state = State::Handshaking;
        }
        self.due.get_or_insert(due);
    }

    fn answered(&mut self) {
        *self = Beat { state: State::Active, misses: 0, due: None };
    }

    /// Count a late pong, and return whether the direction is dead for it.
    fn late(&mut self) -> bool {
        self.due = None;
        self.misses = self.misses.saturating_add(1);
        let dead = self.misses >= MISSES;
        self.state = if dead { State::Dead } else { State::Suspect };
        dead
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

/// Heartbeat of one connection, in both directions.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    probe: Beat,
    answer: Beat,
    next_ping: Instant,
    /// Arrival of the peer's latest byte.
    heard: Instant,
    /// Times of the first and the latest ping without a pong.
    first_asked: Instant,
    last_asked: Instant,
    /// Number of the latest ping, which is its payload, and of the latest answered one.
    number: u64,
    answered: u64,
    round_trip: Option<Duration>,
    last_pong: Option<Instant>,
}

impl Heartbeat {
    /// Create the heartbeat of a connection that opened `now`.
    /// `spread`, a share of 2³², selects where in the second half of the interval the first ping
    /// falls, so that connections opened together are not pinged together.
    pub fn new(now: Instant, times: &Times, spread: u32) -> Heartbeat {
        let half = times.ping_interval / 2;
        let next_ping = now + half + half.mul_f64(f64::from(spread) / f64::from(u32::MAX));
        Heartbeat {
            probe: Beat::IDLE,
            answer: Beat::IDLE,
            next_ping,
            heard: now,
            first_asked: now,
            last_asked: now,
            number: 0,
            answered: 0,
            round_trip: None,
            last_pong: None,
        }
    }

    /// Record bytes from the peer, which needs no ping for a while.
    pub fn heard(&mut self, now: Instant, times: &Times) {
        // The first ping keeps its place in the interval, or all peers that sent at once would be
        // pinged at once.
        let shift = now.saturating_duration_since(self.heard);
        self.heard = now;
        self.next_ping = (self.next_ping + shift).min(now + times.ping_interval);
    }

    /// Process a pong, and return whether it answers a ping.
    /// One that does not has no meaning (RFC 6455, 5.5.3).
    pub fn pong(&mut self, now: Instant, payload: &[u8]) -> bool {
        let Ok(number) = payload.try_into().map(u64::from_be_bytes) else { return false };
        if number <= self.answered || number > self.number {
            return false;
        }
        if number == self.number {
            self.round_trip = Some(now.saturating_duration_since(self.last_asked));
        }
        self.last_pong = Some(now);
        self.answered = number;
        self.probe.answered();
        true
    }

    /// Record a ping whose pong is not with the socket yet.
    pub fn owes_pong(&mut self, now: Instant, times: &Times) {
        self.answer.asked(now + times.pong_timeout);
    }

    /// Record that the socket has accepted the pong.
    pub fn pong_sent(&mut self) {
        if self.answer.due.is_some() {
            self.answer.answered();
        }
    }

    /// Return the time at which [`Heartbeat::poll`] has something to do.
    pub fn deadline(&self) -> Instant {
        let probe = self.probe.due.unwrap_or(self.next_ping);
        self.answer.due.map_or(probe, |answer| answer.min(probe))
    }

    /// Return the action that is due `now`, if any.
    pub fn poll(&mut self, now: Instant, times: &Times) -> Option<Action> {
        if self.answer.is_due(now) {
            if self.answer.late() {
                return Some(Action::NotReading);
            }
            self.answer.asked(now + times.pong_timeout);
        }
        if self.probe.due.is_none() {
            return (self.next_ping <= now).then(|| self.ping(now, times));
        }
        if !self.probe.is_due(now) {
            return None;
        }
        let graced = self.first_asked + times.grace;
        if self.heard > self.last_asked && now < graced {
            let due = (self.heard + times.pong_timeout).min(graced);
            self.probe.due = (due > now).then_some(due);
            if self.probe.due.is_some() {
                return None;
            }
        }
        if self.probe.late() {
            let silent = self.heard <= self.first_asked;
            return Some(if silent { Action::Silent } else { Action::Unanswered });
        }
        Some(self.ping(now, times))
    }

    /// Return the state of the peer's side.
    pub fn state(&self) -> State {
        self.probe.state
    }

    /// Return the state of answers to the peer's pings.
    pub fn answer_state(&self) -> State {
        self.answer.state
    }

    /// Return the time from the latest answered ping to its pong.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Return the time of the latest answered ping.
    pub fn last_pong(&self) -> Option<Instant> {
        self.last_pong
    }

    fn ping(&mut self, now: Instant, times: &Times) -> Action {
        if self.number == self.answered {
            self.first_asked = now;
        }
        self.last_asked = now;
        self.next_ping = now + times.ping_interval;
        self.number += 1;
        self.probe.asked(now + times.pong_timeout);
        Action::Ping(self.number.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMES: Times =
        Times { ping_interval: Duration::from_secs(20), pong_timeout: SECOND, grace: SECOND };

    /// Create a heartbeat whose first ping falls exactly one interval after `start`.
    fn start() -> (Instant, Heartbeat) {
        let now = Instant::now();
        (now, Heartbeat::new(now, &TIMES, u32::MAX))
    }

    fn pinged(beat: &mut Heartbeat, at: Instant) -> [u8; 8] {
        match beat.poll(at, &TIMES) {
            Some(Action::Ping(payload)) => payload,
            other => panic!("{other:?} instead of a ping"),
        }
    }

    #[test]
    fn the_seeds_way_from_idle_to_dead() {
        let (now, mut beat) = start();
        assert_eq!(beat.state(), State::Idle);
        assert_eq!(beat.poll(now + 19 * SECOND, &TIMES), None);
        let first = pinged(&mut beat, now + 20 * SECOND);
        assert_eq!(beat.state(), State::Handshaking);
        beat.pong(now + 20 * SECOND, &first);
        assert_eq!(beat.state(), State::Active);
        pinged(&mut beat, now + 40 * SECOND);
        assert_eq!(beat.state(), State::Active);
        for second in [41, 42] {
            pinged(&mut beat, now + second * SECOND);
            assert_eq!(beat.state(), State::Suspect);
        }
        assert_eq!(beat.poll(now + 43 * SECOND, &TIMES), Some(Action::Silent));
        assert_eq!(beat.state(), State::Dead);
    }

    #[test]
    fn a_pong_returns_suspect_to_active_also_a_late_one() {
        let (now, mut beat) = start();
        let late = pinged(&mut beat, now + 20 * SECOND);
        pinged(&mut beat, now + 21 * SECOND);
        assert_eq!(beat.state(), State::Suspect);
        beat.pong(now + 21 * SECOND, &late);
        assert_eq!(beat.state(), State::Active);
        assert_eq!(beat.deadline(), now + 41 * SECOND);
    }

    #[test]
    fn only_an_answer_is_an_answer() {
        let (now, mut beat) = start();
        let payload = pinged(&mut beat, now + 20 * SECOND);
        for wrong in [&b""[..], b"unasked!", &[0; 8], &[0; 9], &[0, 0, 0, 0, 0, 0, 0, 2]] {
            beat.pong(now + 20 * SECOND, wrong);
            assert_eq!(beat.state(), State::Handshaking, "{wrong:?}");
        }
        beat.pong(now + 20 * SECOND + SECOND / 2, &payload);
        assert_eq!((beat.state(), beat.round_trip()), (State::Active, Some(SECOND / 2)));
        // Nor does an old one count again.
        pinged(&mut beat, now + 40 * SECOND);
        beat.pong(now + 40 * SECOND, &payload);
        assert!(beat.poll(now + 41 * SECOND, &TIMES).is_some());
        assert_eq!(beat.state(), State::Suspect);
    }

    #[test]
    fn who_speaks_is_not_pinged() {
        let (now, mut beat) = start();
        for second in 1..100 {
            beat.heard(now + second * SECOND, &TIMES);
            assert_eq!(beat.poll(now + second * SECOND, &TIMES), None);
        }
        assert_eq!(beat.state(), State::Idle);
        pinged(&mut beat, now + 119 * SECOND);
    }

    #[test]
    fn bytes_stand_in_for_a_pong_only_so_long() {
        let times = Times { grace: 5 * SECOND, ..TIMES };
        let (now, mut beat) = start();
        let asked = now + 20 * SECOND;
        assert!(matches!(beat.poll(asked, &times), Some(Action::Ping(_))));
        let mut end = None;
        for tenth in 1..200 {
            let now = asked + tenth * SECOND / 10;
            beat.heard(now, &times);
            let done = beat.poll(now, &times);
            if tenth < 50 {
                assert_eq!((done, beat.state()), (None, State::Handshaking), "{tenth}");
            }
            if done == Some(Action::Unanswered) {
                end = Some(tenth);
                break;
            }
        }
        // Five seconds of grace, then two more timeouts.
        assert_eq!(end, Some(70));
    }

    #[test]
    fn who_does_not_read_is_found_in_the_other_direction() {
        let (now, mut beat) = start();
        assert_eq!(beat.answer_state(), State::Idle);
        beat.owes_pong(now, &TIMES);
        assert_eq!(beat.answer_state(), State::Handshaking);
        beat.pong_sent();
        assert_eq!(beat.answer_state(), State::Active);
        beat.owes_pong(now + SECOND, &TIMES);
        // Further pings do not postpone it.
        beat.owes_pong(now + SECOND + SECOND / 2, &TIMES);
        assert_eq!(beat.poll(now + 2 * SECOND, &TIMES), None);
        assert_eq!(beat.answer_state(), State::Suspect);
        assert_eq!(beat.poll(now + 3 * SECOND, &TIMES), None);
        assert_eq!(beat.poll(now + 4 * SECOND, &TIMES), Some(Action::NotReading));
    }

    #[test]
    fn first_pings_are_spread_over_half_an_interval() {
        let now = Instant::now();
        let first = |spread| Heartbeat::new(now, &TIMES, spread).deadline();
        assert_eq!(first(0), now + 10 * SECOND);
        assert_eq!(first(u32::MAX), now + 20 * SECOND);
    }
}
