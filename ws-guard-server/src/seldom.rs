//! Log lines that would come again and again: one at a time, with how many there were.

use std::time::{Duration, Instant};

/// Between two lines about the same.
const PAUSE: Duration = Duration::from_secs(10);

/// Whether to say something, if it was not just said.
#[derive(Debug, Default)]
pub struct Seldom {
    said: Option<Instant>,
    kept: u64,
}

impl Seldom {
    /// How often it was not said since the last time, if it is to be said now.
    pub fn say(&mut self, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|said| now.duration_since(said) < PAUSE) {
            self.kept += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_ten_seconds() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let said: Vec<_> = (0..300u64)
            .filter_map(|tenth| seldom.say(start + Duration::from_millis(100 * tenth)))
            .collect();
        assert_eq!(said, [0, 99, 99]);
    }
}
