//! Progress of a long reading, on a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ws_guard_inspect::input::Progress;

/// Time after which a reading shows its progress.
const PATIENCE: Duration = Duration::from_secs(1);
const KNOWN: &str = "{bar:32} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
const UNKNOWN: &str = "{spinner} {bytes}, {bytes_per_sec}";

/// Progress bar on standard error, if that is a terminal.
pub struct Bar {
    progress: Progress,
    start: Instant,
    /// Hidden at first, so that its rate includes the beginning.
    bar: ProgressBar,
    is_shown: bool,
}

impl Bar {
    pub fn new(progress: Progress) -> Bar {
        let bar = bar(progress.total.filter(|total| *total > 0));
        Bar { progress, start: Instant::now(), bar, is_shown: false }
    }

    pub fn tick(&mut self) {
        if !self.is_shown && self.start.elapsed() >= PATIENCE {
            self.is_shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(self.progress.read());
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    match ProgressStyle::with_template(if total.is_some() { KNOWN } else { UNKNOWN }) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_are_valid() {
        for style in [KNOWN, UNKNOWN] {
            assert!(ProgressStyle::with_template(style).is_ok(), "{style}");
        }
    }
}
