//! Held receive windows: opened more slowly by the path than by the receiver.
//!
//! A receiver whose program reads keeps the right edge of its window moving with what it
//! acknowledges. Where the program reads slowly, the window shrinks to zero, and the receiver
//! announces by itself that it has room again: in a segment that acknowledges nothing new and
//! responds to nothing from the sender (RFC 9293, 3.8.6.2.2). A guard that holds the window lets it
//! grow only in what the server sends anyway: answers to data and to probes. So a window that is
//! small, or zero, and grows again and again, but never by itself, is held; the first time that it
//! does so by itself, it is not.

use ws_guard_common::seq::after;

use crate::finding::{At, What};

/// Divisor of the greatest window for a small one; reopened means twice that size.
const SMALL: u32 = 8;
/// Minimum number of acknowledgements of new data in a small window, and...
const PROOF: u32 = 3;
/// ...minimum number of times it has grown meanwhile, for a held window.
/// The window of a program that does not read at all never grows.
const GRANTS: u32 = 2;
/// Minimum duration of a held window, in nanoseconds, and...
const LASTS_NS: u64 = 200_000_000;
/// ...time in which its edge moves by less than the greatest window.
/// A full buffer that is read at speed is small only for moments.
const SECOND_NS: u128 = 1_000_000_000;

/// Receive window of one side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Shift announced by the SYN; outer `None` where no SYN was captured.
    scale: Option<Option<u8>>,
    greatest: u32,
    latest: Option<Latest>,
    /// `true` if the other side has sent something since.
    is_asked: bool,
    held: Option<Held>,
    /// Number of holds, and their total duration.
    pub count: u64,
    pub held_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Latest {
    ack: u32,
    window: u32,
    /// Farthest right edge.
    farthest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    since: At,
    acks: u32,
    grants: u32,
    acknowledged: u64,
    advanced: u64,
    smallest: u32,
}

impl Window {
    /// Process the side's SYN, whose own window is not scaled.
    pub fn open(&mut self, scale: Option<u8>) {
        self.scale = Some(scale);
    }

    /// Return the shift, if known: scaling needs the option in both SYNs.
    pub fn shift(&self, other: &Window) -> Option<u8> {
        let (own, other) = (self.scale?, other.scale?);
        Some(own.filter(|_| other.is_some()).unwrap_or(0))
    }

    /// Record that the other side has sent a segment.
    pub fn ask(&mut self) {
        self.is_asked = true;
    }

    /// Process an advertised window.
    /// The side acknowledges up to `ack` and offers `window` bytes from there, with or without
    /// data.
    pub fn advertise(
        &mut self,
        at: At,
        ack: u32,
        window: u32,
        has_data: bool,
    ) -> Option<(At, What)> {
        let edge = ack.wrapping_add(window);
        let before = self.latest.unwrap_or(Latest { ack, window, farthest: edge });
        if after(before.ack, ack) {
            return None;
        }
        let is_asked = std::mem::take(&mut self.is_asked) || has_data;
        let has_grown = window > before.window;
        if ack == before.ack && has_grown && !is_asked {
            // Growth by itself.
            self.held = None;
        }
        let acknowledged = ack.wrapping_sub(before.ack);
        let advanced =
            if after(edge, before.farthest) { edge.wrapping_sub(before.farthest) } else { 0 };
        let mut farthest = if advanced > 0 { edge } else { before.farthest };
        self.greatest = self.greatest.max(window);
        let small = self.greatest / SMALL;
        let mut ended = None;
        match &mut self.held {
            Some(held) if window <= 2 * small => {
                held.acks += u32::from(acknowledged > 0);
                held.grants += u32::from(has_grown);
                held.acknowledged += u64::from(acknowledged);
                held.advanced += u64::from(advanced);
                held.smallest = held.smallest.min(if window > 0 { window } else { u32::MAX });
            }
            Some(_) => ended = self.end(at.time_ns, true),
            None if window < small && acknowledged > advanced => {
                // The earlier offer may have been withdrawn once.
                farthest = edge;
                self.held = Some(Held {
                    since: at,
                    acks: 1,
                    grants: 0,
                    acknowledged: acknowledged.into(),
                    advanced: 0,
                    smallest: if window > 0 { window } else { u32::MAX },
                });
            }
            None => {}
        }
        self.latest = Some(Latest { ack, window, farthest });
        ended
    }

    /// End a hold, on reopening or at the end of the capture.
    pub fn end(&mut self, now_ns: u64, has_opened: bool) -> Option<(At, What)> {
        let held = self.held.take()?;
        if held.acks < PROOF || held.grants < GRANTS {
            return None;
        }
        let held_ns = now_ns.saturating_sub(held.since.time_ns);
        let is_slow =
            u128::from(held.advanced) * SECOND_NS < u128::from(self.greatest) * u128::from(held_ns);
        if held_ns < LASTS_NS || !is_slow {
            return None;
        }
        self.count += 1;
        self.held_ns += held_ns;
        let Held { since, acknowledged, advanced, smallest, .. } = held;
        let (held_us, greatest) = (has_opened.then_some(held_ns / 1000), self.greatest);
        Some((since, What::HeldWindow { held_us, acknowledged, advanced, smallest, greatest }))
    }
}
