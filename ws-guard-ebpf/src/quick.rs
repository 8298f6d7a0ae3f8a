//! The way of most segments: new bytes in which exactly one frame begins.
//!
//! A shortcut through [`crate::ingress`], with the same result: no loop, no state outside of
//! registers, one turn of the flow's lock. Whatever is out of the ordinary is left to the long way.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ws_guard_common::{
    flow::{Flow, state},
    maps::Counter,
    source::millis,
    tracker::Walk,
    window::Rate,
};

use crate::{
    commit::take_back,
    maps::locked,
    packet::{Packet, Segment},
    report,
    scene::{Scene, Verdict},
    sources, trail,
};

/// What the shortcut came to, in one word: bits, and above them the offset of a ping's first byte.
///
/// No enum with data: that would come back through memory.
pub mod came_to {
    /// Nothing was changed: go the long way.
    pub const NOTHING: u32 = 0;
    /// The flow has taken the segment over.
    pub const TAKEN: u32 = 1 << 0;
    /// The frame is a PING: [`super::ping`] has to judge it.
    pub const PING: u32 = 1 << 1;
    /// The ping keeps to the connection's share.
    pub const FITS_SHARE: u32 = 1 << 2;
    /// The ping keeps to the connection's limit.
    pub const FITS_CONNECTION: u32 = 1 << 3;
    /// From this bit on: where in the payload the ping's first byte is.
    pub const AT: u32 = 4;
}

/// Take the segment through, if it is of the common kind.
#[inline(never)]
pub fn pass<P: Packet>(scene: &Scene, flow: &mut Flow, payload: &impl Fn(&Segment) -> P) -> u32 {
    let start = flow.client;
    let mut walk = Walk::new(start, &start, scene.segment.seq, scene.segment.len);
    let word = walk.only(&payload(scene.segment));
    if word == 0 {
        return came_to::NOTHING;
    }
    let is_ping = walk.pings > 0;
    let now_ms = millis(scene.now);
    let mut asked_ns = flow.ping_ns;
    if is_ping && asked_ns == 0 {
        // SAFETY: no arguments, no effects.
        asked_ns = unsafe { bpf_ktime_get_ns() };
    }
    let share = Rate { limit: scene.policy.share, ..scene.policy.rate };
    let mut fits = 0;
    let mut committed = false;
    // Before the commit: no other CPU may read the trail without this header.
    let traces = flow.will_need_trace(scene.segment.len);
    if traces && !trail::enter(scene.now) {
        return came_to::NOTHING;
    }
    locked(flow, |flow| {
        if (flow.held == 0) & (flow.client == start) & (flow.state == state::OPEN) {
            if is_ping {
                let fits_share = (share.limit > 0 && flow.window.has_room(now_ms, share)) as u32;
                let kept = flow.charge(now_ms, scene.policy.connection_rate, 1);
                fits = fits_share * came_to::FITS_SHARE + kept * came_to::FITS_CONNECTION;
                flow.ping_ns = asked_ns;
            }
            flow.commit(&start, &walk, walk.pings);
            flow.last_ns = scene.now;
            committed = true;
            if !traces && flow.trail != 0 {
                // Another CPU has begun one meanwhile.
                flow.trace_anew();
            }
        }
    });
    if !committed {
        trail::leave();
        return came_to::NOTHING;
    }
    if traces {
        trail::trace_one(&start, word, walk.tracker.next);
    }
    count(&walk);
    let at = start.next.wrapping_sub(scene.segment.seq);
    if is_ping { came_to::TAKEN | came_to::PING | fits | at << came_to::AT } else { came_to::TAKEN }
}

/// Count what the walk found: one frame.
#[inline(always)]
fn count(walk: &Walk) {
    if let Some(counters) = report::counters() {
        counters.events[Counter::Frames as usize] += 1;
        counters.events[Counter::Pings as usize] += walk.pings as u64;
        counters.events[Counter::Pongs as usize] += walk.pongs as u64;
        counters.events[Counter::SplitFrames as usize] += walk.splits_frame() as u64;
    }
}

/// The one frame was a PING, and the flow has taken it over: charge its source, and take its harm
/// away if it is one too many.
#[inline(never)]
pub fn ping<P: Packet>(
    scene: &Scene,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
    ping: u32,
) -> Verdict {
    let share = (ping & came_to::FITS_SHARE != 0) as u32;
    let most = (ping & came_to::FITS_CONNECTION != 0) as u32;
    let answer = sources::charge_one(scene, flow, share, most);
    if answer & (sources::KEPT | sources::OBSERVED) != 0 {
        return Verdict::Pass;
    }
    take_back(flow, 1, 1);
    if answer & sources::DROP != 0 {
        return Verdict::Drop;
    }
    report::count(Counter::Defused);
    let at = ping >> came_to::AT;
    let mut packet = payload(scene.segment);
    packet.defuse(at);
    let odd = (scene.segment.payload + at - scene.segment.tcp) & 1;
    packet.seal(scene.segment, 1 - odd, odd);
    report::count(Counter::Rewritten);
    Verdict::Pass
}
