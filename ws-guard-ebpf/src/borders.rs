//! Where the stream stood between segments, of flows that have more of them under way than checkpoints.
//!
//! When one of those is lost behind the guard, the server acknowledges a byte in the middle of a merged
//! checkpoint, and an honest client goes on from there. Its segment is what it was if it begins and ends
//! at known borders, by the same way: the same headers at the same places. Which of its pings had passed
//! nobody knows any more: all are defused.

use aya_ebpf::bindings::BPF_ANY;
use ws_guard_common::{flow::Flow, maps::Border, tracker::Tracker};

use crate::maps::BORDERS;

/// Stands for a checkpoint's number where a walk begins at a border.
pub const BORDER: u8 = u8::MAX;

/// A segment passes that begins at `seq`, where the flow's stream stood at `start`.
#[inline(always)]
pub fn keep(flow: &Flow, seq: u32, start: &Tracker) {
    if flow.is_crowded() {
        insert(flow.generation, seq, start);
    }
}

/// It stood there from `seq` to where the next header begins, and is looked for at both.
#[cold]
#[inline(never)]
fn insert(generation: u32, seq: u32, start: &Tracker) {
    let _ = BORDERS.insert(&Border { generation, seq }, start, BPF_ANY.into());
    let next = start.resume();
    if next != seq {
        let _ = BORDERS.insert(&Border { generation, seq: next }, start, BPF_ANY.into());
    }
}

/// Where the stream stood at `seq`.
#[inline(never)]
pub fn find(generation: u32, seq: u32) -> Option<&'static Tracker> {
    // SAFETY: an LRU entry may be used again for another border meanwhile; then its mark is another
    // one, and no walk from it or to it is believed.
    BORDERS.get_ptr_mut(&Border { generation, seq }).map(|tracker| unsafe { &*tracker })
}

/// A walk came to `tracker` by the same way as the first one.
#[inline(never)]
pub fn joins(flow: &Flow, tracker: &Tracker) -> bool {
    if !flow.has_true_borders() {
        return false;
    }
    let known = find(flow.generation, tracker.resume());
    *tracker == flow.client || known.is_some_and(|known| known == tracker)
}
