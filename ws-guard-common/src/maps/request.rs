//! Requests to the control program, and its answers.

use super::SourceKey;

/// Operation of the control program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// Throttle `source` until `until`; its entry is inserted if there is none.
    Throttle = 0,
    /// Release `source`.
    Release = 1,
    /// Log `pings` pings that a terminator decrypted.
    Report = 2,
    /// Regroup the log of pings into groups of 2^`pings`, for a window of `until` milliseconds,
    /// when the limit changes ([`crate::window::RateWindow::regroup`]).
    Regroup = 3,
    /// Ban `source` until `until`: everything of it is dropped. As [`Operation::Throttle`] otherwise.
    Ban = 4,
}

/// Request to the control program: the payload of its packet, after 14 bytes of Ethernet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Request {
    /// One of [`Operation`].
    pub operation: u32,
    /// For [`Operation::Report`] and [`Operation::Regroup`].
    pub pings: u32,
    /// For [`Operation::Throttle`] and [`Operation::Ban`]: nanoseconds of CLOCK_MONOTONIC, or
    /// [`crate::source::UNTIL_RELEASED`]. For [`Operation::Regroup`].
    pub until: u64,
    pub source: SourceKey,
    pub _pad: u32,
}

/// Answers of the control program.
pub mod answer {
    pub const DONE: u32 = 0;
    pub const NOT_FOUND: u32 = 1;
    pub const TABLE_FULL: u32 = 2;
    pub const BAD_REQUEST: u32 = 3;
}
