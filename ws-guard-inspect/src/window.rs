//! Receive windows that are held: small, and not zero, while data is acknowledged.
//!
//! A receiver whose program reads keeps the right edge of its window moving with what it acknowledges.
//! One that reads slowly lets the window shrink to zero, and opens it again by a segment at least (RFC
//! 9293, 3.8.6.2.2). Where the edge follows in small steps, or not at all, it is held.

use ws_guard_common::seq::after;

use crate::finding::{At, What};

/// A window is small below this part of the greatest one, and has opened again at twice as much.
const SMALL: u32 = 8;
/// Acknowledgements of new data in a small window that make it a held one.
const PROOF: u32 = 3;
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
    /// Latest acknowledgement, and right edge at its farthest.
    latest: Option<(u32, u32)>,
    held: Option<Held>,
    /// How often it was held, and how long in all.
    pub count: u64,
    pub held_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    since: At,
    acks: u32,
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

    /// The side acknowledges up to `ack` and offers `window` bytes behind it.
    pub fn advertise(&mut self, at: At, ack: u32, window: u32) -> Option<(At, What)> {
        let edge = ack.wrapping_add(window);
        let (acked, farthest) = self.latest.unwrap_or((ack, edge));
        if after(acked, ack) {
            return None;
        }
        let acknowledged = ack.wrapping_sub(acked);
        let advanced = if after(edge, farthest) { edge.wrapping_sub(farthest) } else { 0 };
        self.latest = Some((ack, if advanced > 0 { edge } else { farthest }));
        self.greatest = self.greatest.max(window);
        let small = self.greatest / SMALL;
        match &mut self.held {
            Some(held) if window <= 2 * small => {
                held.acks += u32::from(acknowledged > 0 && window > 0);
                held.acknowledged += u64::from(acknowledged);
                held.advanced += u64::from(advanced);
                // A closed one is told on its own.
                held.smallest = held.smallest.min(if window > 0 { window } else { u32::MAX });
                None
            }
            Some(_) => self.end(at.time_ns, true),
            None => {
                if window > 0 && window < small && acknowledged > advanced {
                    let acknowledged = acknowledged.into();
                    let advanced = advanced.into();
                    let since = at;
                    self.held =
                        Some(Held { since, acks: 1, acknowledged, advanced, smallest: window });
                }
                None
            }
        }
    }

    /// It has opened, or the capture is over.
    pub fn end(&mut self, now_ns: u64, has_opened: bool) -> Option<(At, What)> {
        let held = self.held.take().filter(|held| held.acks >= PROOF)?;
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
