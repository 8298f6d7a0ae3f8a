//! Where the stream stood between segments, of flows that have more of them under way than checkpoints.
//!
//! When one of those is lost behind the guard, the server acknowledges a byte in the middle of a merged
//! checkpoint, and an honest client goes on from there. Its segment is what it was if it begins and ends
//! at known borders, by the same way: the same headers at the same places. Which of its pings had passed
//! nobody knows any more: all are defused.

use ws_guard_common::{flow::Flow, maps::Border, tracker::Tracker};

use crate::maps::BORDERS;

/// Stands for a checkpoint's number where a walk begins at a border.
pub const BORDER: u8 = u8::MAX;

/// A segment passes that begins at `seq`, where the flow's stream stood at `start`.
#[inline(always)]
pub fn keep(flow: &Flow, seq: u32, start: &Tracker) {
    if flow.is_crowded(seq) {
        insert(flow, seq, start);
    }
}

/// It stood there from `seq` to where the next header begins, and is looked for at both.
#[inline(never)]
fn insert(flow: &Flow, seq: u32, start: &Tracker) {
    write(flow, seq, start);
    let next = start.resume();
    if next != seq {
        write(flow, next, start);
    }
}

#[inline(always)]
fn write(flow: &Flow, seq: u32, start: &Tracker) {
    let name = flow.border(seq);
    if let Some(border) = BORDERS.get_ptr_mut(name.slot()) {
        // SAFETY: map values stay mapped. Another CPU may write to the same slot, or read it, at the
        // same time: what that makes has no mark that any walk comes to, and is not believed.
        unsafe { *border = Border { name, start: *start } };
    }
}

/// Where the stream stood at `seq`.
#[inline(never)]
pub fn find(flow: &Flow, seq: u32) -> Option<&'static Tracker> {
    let name = flow.border(seq);
    let border = BORDERS.get(name.slot())?;
    if border.name == name { Some(&border.start) } else { None }
}

/// A walk came to `tracker` by the same way as the first one.
#[inline(never)]
pub fn joins(flow: &Flow, tracker: &Tracker) -> bool {
    if !flow.has_true_borders() {
        return false;
    }
    let known = find(flow, tracker.resume());
    flow.stood_at(tracker) || known.is_some_and(|known| known == tracker)
}
