//! Limit of pending output, above which nothing more is read from a client.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU32, Ordering},
};

/// Unless told otherwise. A message on top of it that is copied fits into 64 KiB.
pub const DEFAULT: u32 = 48 * 1024;
/// Where memory is short, whatever the limit.
pub const SHORT: u32 = 4 * 1024;
/// What the limit may be: less would not fit a message's header and its heartbeats, more is what
/// the limit is there to prevent.
pub const RANGE: RangeInclusive<u32> = SHORT..=16 << 20;

/// A limit in bytes that may change while connections are open.
#[derive(Debug)]
pub struct OutputLimit {
    /// Said on the command line: a file does not change it.
    fixed: Option<u32>,
    bytes: AtomicU32,
}

impl Default for OutputLimit {
    fn default() -> OutputLimit {
        OutputLimit::new(None, None)
    }
}

impl OutputLimit {
    /// That of the command line, or else of the file, or else the default.
    pub fn new(fixed: Option<u32>, of_file: Option<u32>) -> OutputLimit {
        OutputLimit { fixed, bytes: AtomicU32::new(fixed.or(of_file).unwrap_or(DEFAULT)) }
    }

    /// Take over what the file says now.
    pub fn set(&self, of_file: Option<u32>) {
        self.bytes.store(self.fixed.or(of_file).unwrap_or(DEFAULT), Ordering::Relaxed);
    }

    /// In bytes; where memory is `short`, less.
    pub fn bytes(&self, short: bool) -> usize {
        if short { SHORT as usize } else { self.bytes.load(Ordering::Relaxed) as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_file() {
        let (fixed, free) =
            (OutputLimit::new(Some(9000), Some(7000)), OutputLimit::new(None, Some(7000)));
        assert_eq!((fixed.bytes(false), free.bytes(false)), (9000, 7000));
        fixed.set(Some(5000));
        free.set(Some(5000));
        assert_eq!((fixed.bytes(false), free.bytes(false)), (9000, 5000));
        free.set(None);
        assert_eq!((free.bytes(false), free.bytes(true)), (49_152, 4096));
    }
}
