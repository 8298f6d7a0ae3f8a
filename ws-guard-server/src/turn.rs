//! Amount of work for one connection before others get their turn.
//!
//! Work is counted in bytes that are compressed, decompressed, encrypted or checked, and other work
//! in the number of bytes that take about as long. Where bytes take longer than they should,
//! because of their content or on a slow machine, the clock ends the turn.

use std::time::{Duration, Instant};

/// Length of a turn in bytes.
pub const TURN: usize = 64 * 1024;
/// Number of bytes processed between two checks of the clock.
pub const SLICE: usize = 8 * 1024;
/// Duration of a turn that the next check of the clock ends.
const LONGEST: Duration = Duration::from_millis(8);

/// Remainder of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    left: usize,
    /// Remainder at the next check of the clock.
    look: usize,
    until: Option<Instant>,
}

impl Turn {
    /// Begin a turn `now`.
    pub fn new(now: Instant) -> Turn {
        Turn { left: TURN, look: TURN - SLICE, until: Some(now + LONGEST) }
    }

    /// Begin a turn that never ends, for work that is done in one piece.
    pub const fn endless() -> Turn {
        Turn { left: usize::MAX, look: 0, until: None }
    }

    /// Count this amount of work.
    pub fn spend(&mut self, bytes: usize) {
        self.left = if self.until.is_none() { self.left } else { self.left.saturating_sub(bytes) };
        if self.left < self.look {
            self.look = self.left.saturating_sub(SLICE);
            if self.until.is_some_and(|until| Instant::now() >= until) {
                self.left = 0;
            }
        }
    }

    /// Check whether it is time for others.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_bytes_by_time_or_never() {
        let mut turn = Turn::new(Instant::now() + Duration::from_secs(3600));
        turn.spend(TURN - 1);
        assert!(!turn.is_over());
        turn.spend(SLICE);
        assert!(turn.is_over());
        let Some(past) = Instant::now().checked_sub(LONGEST) else { return };
        let mut late = Turn::new(past);
        late.spend(SLICE);
        assert!(!late.is_over(), "not yet looked");
        late.spend(1);
        assert!(late.is_over());
        let mut endless = Turn::endless();
        endless.spend(usize::MAX);
        endless.spend(1);
        assert!(!endless.is_over());
    }
}
