//! Receive windows that are held: something on the path opens them more slowly than their receiver.
//!
//! A receiver whose program reads keeps the right edge of its window moving with what it acknowledges.
//! Where the program reads slowly, the window shrinks to zero, and the receiver says by itself when it has
//! room again: a segment that acknowledges nothing new, and that nothing of the sender asked for (RFC 9293,
//! 3.8.6.2.2). A guard that holds the window lets it grow only in what the server sends anyway: answers to
//! data and to probes. So a window that is small, or zero, and grows again and again, but never by itself,
//! is held; the first time that it does so by itself, it is not.

use ws_guard_common::seq::after;

use crate::finding::{At, What};

/// A window is small below this part of the greatest one, and has opened again at twice as much.
const SMALL: u32 = 8;
/// Acknowledgements of new data in a small window that make it a held one, and...
const PROOF: u32 = 3;
/// ...how often it has to grow meanwhile: one of a program that does not read at all never does.
const GRANTS: u32 = 2;
/// A full buffer that is read at speed is small for moments; a held window lasts, in nanoseconds...
const LASTS_NS: u64 = 200_000_000;
/// ...and its edge moves by less than the greatest window in this time.
const SECOND_NS: u128 = 1_000_000_000;

/// One side's receive window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Shift that its SYN announced; the outer one is `None` where no SYN was captured.
    scale: Option<Option<u8>>,
    greatest: u32,
    latest: Option<Latest>,
    /// The other side has sent something since.
    is_asked: bool,
    held: Option<Held>,
    /// How often it was held, and how long in all.
    pub count: u64,
    pub held_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Latest {
    ack: u32,
    window: u32,
    /// Right edge at its farthest.
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
    /// The side's SYN, whose own window is not scaled.
    pub fn open(&mut self, scale: Option<u8>) {
        self.scale = Some(scale);
    }

    /// The shift, if it is known: it needs the option in both SYNs.
    pub fn shift(&self, other: &Window) -> Option<u8> {
        let (own, other) = (self.scale?, other.scale?);
        Some(own.filter(|_| other.is_some()).unwrap_or(0))
    }

    /// The other side has sent a segment.
    pub fn ask(&mut self) {
        self.is_asked = true;
    }

    /// The side acknowledges up to `ack` and offers `window` bytes behind it, in a segment with or without
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
            // By itself.
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
                // What it was granted before may have been taken back once.
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

    /// It has opened, or the capture is over.
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
