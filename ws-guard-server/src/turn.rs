//! Amount of work for one connection before others get their turn.
//!
//! Work is counted in bytes that are compressed, decompressed, encrypted or checked, and what is not
//! done by bytes in as many as take about as long. Where bytes take longer than they should, because
//! because of their content or on a slow machine, the clock ends the turn.

use std::time::{Duration, Instant};

/// Bytes of a turn.
pub const TURN: usize = 64 * 1024;
/// Bytes that are worked on without a look at the clock.
pub const SLICE: usize = 8 * 1024;
/// How long a turn may take before the next look at the clock ends it.
const LONGEST: Duration = Duration::from_millis(8);

/// What is left of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    left: usize,
    /// What is left at the next look at the clock.
    look: usize,
    until: Option<Instant>,
}

impl Turn {
    /// One that begins `now`.
    pub fn new(now: Instant) -> Turn {
        Turn { left: TURN, look: TURN - SLICE, until: Some(now + LONGEST) }
    }

    /// One that never ends, for work that is done as a whole.
    pub const fn endless() -> Turn {
        Turn { left: usize::MAX, look: 0, until: None }
    }

    /// So much was done.
    pub fn spend(&mut self, bytes: usize) {
        self.left = if self.until.is_none() { self.left } else { self.left.saturating_sub(bytes) };
        if self.left < self.look {
            self.look = self.left.saturating_sub(SLICE);
            if self.until.is_some_and(|until| Instant::now() >= until) {
                self.left = 0;
            }
        }
    }

    /// It is for others to go on.
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
