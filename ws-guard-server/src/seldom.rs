//! Log lines that would repeat: one at a time, with the number of those left out.

use std::time::{Duration, Instant};

/// Pause between two lines on the same subject.
const PAUSE: Duration = Duration::from_secs(10);

/// Rate limit of a repeated line.
#[derive(Debug, Default)]
pub struct Seldom {
    said: Option<Instant>,
    kept: u64,
}

impl Seldom {
    /// Return the number of lines left out since the last one, if one is due now.
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
