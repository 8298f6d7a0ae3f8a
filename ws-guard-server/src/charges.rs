//! Blame for a delayed canary: one connection's time is charged to that connection.
//! It is no reason to refuse others.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

/// Minimum time charged.
const WORTH_CHARGING: Duration = Duration::from_millis(1);
/// Time for which charges are kept, for pings that waited through several of them.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Turns of a thread's connections since the canary's wake-up was due.
#[derive(Debug)]
pub struct Turns {
    due: Cell<Instant>,
    /// Time by connection number; few, as each took its time.
    taken: RefCell<Vec<(u64, Duration)>>,
}

impl Turns {
    pub fn new(now: Instant) -> Turns {
        Turns { due: Cell::new(now), taken: RefCell::default() }
    }

    /// Start a measurement: the canary sleeps until `due`.
    pub fn begin(&self, due: Instant) {
        self.due.set(due);
        self.taken.borrow_mut().clear();
    }

    /// Record a connection's turn.
    pub fn took(&self, connection: u64, began: Instant, ended: Instant) {
        let time = ended.saturating_duration_since(began.max(self.due.get()));
        if time < WORTH_CHARGING {
            return;
        }
        let mut taken = self.taken.borrow_mut();
        match taken.iter_mut().find(|(number, _)| *number == connection) {
            Some((_, sum)) => *sum += time,
            None => taken.push((connection, time)),
        }
    }

    /// Return the connection that took most, and its time.
    pub fn most(&self) -> Option<(u64, Duration)> {
        self.taken.borrow().iter().copied().max_by_key(|(_, time)| *time)
    }
}

/// Recent charges to connections.
#[derive(Debug, Default)]
pub struct Charges(VecDeque<(Instant, Duration)>);

impl Charges {
    /// Charge a connection for its turn, at most for the time that the thread worked.
    /// The rest is a pause during its turn, and not its fault. Returns the charge.
    pub fn charge(&mut self, took: Duration, worked: Duration, now: Instant) -> Duration {
        let charge = took.min(worked);
        let remembered = |at: Instant| now.saturating_duration_since(at) < REMEMBERED;
        while self.0.front().is_some_and(|(at, _)| !remembered(*at)) {
            self.0.pop_front();
        }
        if charge >= WORTH_CHARGING {
            self.0.push_back((now, charge));
        }
        charge
    }

    /// Return what remains of a wait that ended `now`, less what was charged meanwhile.
    pub fn left_of(&self, wait: Duration, now: Instant) -> Duration {
        let meanwhile = |at: Instant| now.saturating_duration_since(at) < wait;
        let charged = self.0.iter().filter(|(at, _)| meanwhile(*at)).map(|(_, charge)| *charge);
        wait.saturating_sub(charged.sum())
    }
}

/// Return the CPU time of this thread.
pub fn thread_time() -> Duration {
    // Linux has this clock.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_one_that_took_most_after_the_canary_was_due() {
        let start = Instant::now();
        let turns = Turns::new(start);
        let took =
            |number, from: u32, to: u32| turns.took(number, start + from * MS, start + to * MS);
        turns.begin(start + 10 * MS);
        took(1, 0, 9);
        assert_eq!(turns.most(), None, "it was not due");
        took(2, 9, 40);
        took(3, 40, 65);
        assert_eq!(turns.most(), Some((2, 30 * MS)));
        took(3, 65, 85);
        assert_eq!(turns.most(), Some((3, 45 * MS)));
        turns.begin(start + 100 * MS);
        assert_eq!(turns.most(), None);
    }

    /// Many short turns are not the fault of any connection.
    #[test]
    fn a_crowd_is_not_charged() {
        let start = Instant::now();
        let turns = Turns::new(start);
        for number in 0..1000 {
            let began = start + number * MS / 2;
            turns.took(number.into(), began, began + MS / 2);
        }
        assert_eq!(turns.most(), None);
    }

    #[test]
    fn a_pause_in_the_middle_of_a_turn_is_not_its_fault() {
        let (start, mut charges) = (Instant::now(), Charges::default());
        assert_eq!(charges.charge(600 * MS, 20 * MS, start), 20 * MS);
        assert_eq!(charges.left_of(600 * MS, start), 580 * MS);
    }

    #[test]
    fn a_ping_that_waited_through_several_charges() {
        let (start, mut charges) = (Instant::now(), Charges::default());
        for at in [0, 100, 200] {
            charges.charge(80 * MS, 90 * MS, start + at * MS);
        }
        assert_eq!(charges.left_of(150 * MS, start + 210 * MS), Duration::ZERO);
        assert_eq!(charges.left_of(300 * MS, start + 210 * MS), 60 * MS);
        assert_eq!(charges.left_of(50 * MS, start + 270 * MS), 50 * MS);
        charges.charge(2 * MS, MS, start + REMEMBERED + 150 * MS);
        assert_eq!(charges.0.len(), 2);
    }
}
