//! How far reading is, on a terminal, once that takes long.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ws_guard_inspect::input::Progress;

/// Reading that takes longer than this shows how far it is.
const PATIENCE: Duration = Duration::from_secs(1);
const KNOWN: &str = "{bar:32} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
const UNKNOWN: &str = "{spinner} {bytes}, {bytes_per_sec}";

/// A bar on standard error; none where that is no terminal.
pub struct Bar {
    progress: Progress,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub fn new(progress: Progress) -> Bar {
        Bar { progress, start: Instant::now(), bar: None }
    }

    pub fn tick(&mut self) {
        if self.bar.is_none() && self.start.elapsed() < PATIENCE {
            return;
        }
        let total = self.progress.total.filter(|total| *total > 0);
        let bar = self.bar.get_or_insert_with(|| bar(total));
        bar.set_position(self.progress.read());
    }

    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
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
