//! Limit of pending output, above which nothing more is read from a client.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU32, Ordering},
};

/// Default limit in bytes; with a copied message on top it fits into 64 KiB.
pub const DEFAULT: u32 = 48 * 1024;
/// Limit in bytes while memory is short, whatever the configured one.
pub const SHORT: u32 = 4 * 1024;
/// Valid limits in bytes.
/// Less would not fit a message's header and its heartbeats, more is what the limit shall prevent.
pub const RANGE: RangeInclusive<u32> = SHORT..=16 << 20;

/// Limit in bytes that may change while connections are open.
#[derive(Debug)]
pub struct OutputLimit {
    /// Limit from the command line, which a file does not change.
    fixed: Option<u32>,
    bytes: AtomicU32,
}

impl Default for OutputLimit {
    fn default() -> OutputLimit {
        OutputLimit::new(None, None)
    }
}

impl OutputLimit {
    /// Create the limit: the command line's, or else the file's, or else the default.
    pub fn new(fixed: Option<u32>, of_file: Option<u32>) -> OutputLimit {
        OutputLimit { fixed, bytes: AtomicU32::new(fixed.or(of_file).unwrap_or(DEFAULT)) }
    }

    /// Apply the file's current limit.
    pub fn set(&self, of_file: Option<u32>) {
        self.bytes.store(self.fixed.or(of_file).unwrap_or(DEFAULT), Ordering::Relaxed);
    }

    /// Return the limit in bytes; a lower one where memory is `short`.
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
