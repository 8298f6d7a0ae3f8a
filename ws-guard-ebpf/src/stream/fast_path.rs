//! Fast path of most segments: new bytes in which exactly one frame or TLS record begins.
//!
//! A shortcut through [`crate::ingress`] with the same result: no loop, no state outside registers,
//! the flow's lock taken once. Everything unusual is left to the slow path.

use ws_guard_common::{
    flood::{Class, Counts},
    flow::{Flow, state},
    frame::{self, Header},
    maps::{Counter, action},
    record::{self, Record},
    source::millis,
    tracker::{Tracker, Walk},
    trail::Trace,
    window::Rate,
};

use crate::{
    context::{Context, Verdict},
    limits::charge,
    maps::locked,
    packet::{Packet, Segment},
    report,
    stream::{heartbeat, trail},
};

/// Result of the fast path in one word: bits, and above them the offset of a ping's first byte.
///
/// No enum with data: that would be returned in memory.
pub mod came_to {
    /// Nothing was changed: take the slow path.
    pub const NOTHING: u32 = 0;
    /// The segment is committed.
    pub const TAKEN: u32 = 1 << 0;
    /// The frame is a PING: [`super::ping`] has to judge it.
    pub const PING: u32 = 1 << 1;
    /// The ping is within the connection's share.
    pub const FITS_SHARE: u32 = 1 << 2;
    /// The ping is within the connection's limit.
    pub const FITS_CONNECTION: u32 = 1 << 3;
    /// The frame is a PONG.
    pub const PONG: u32 = 1 << 4;
    /// The ping is committed as defused: it seems to be over the limit.
    pub const DEFUSED: u32 = 1 << 5;
    /// From this bit on: payload offset of the ping's or the pong's first byte.
    pub const AT: u32 = 6;
}

/// Commit the segment if it is of the common kind.
/// `LIMITS`: classes of frames have limits, as those of TLS records have by default; without limits
/// records take the slow path.
#[inline(never)]
pub fn pass<P: Packet, const LIMITS: bool>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> u32 {
    let Some(start) = flow.client.between() else {
        return came_to::NOTHING;
    };
    let mut walk = Walk::new(start, &start, context.segment.seq, context.segment.len);
    let packet = payload(context.segment);
    let is_record = LIMITS && start.in_records();
    let word = if is_record { walk.only_record(&packet) } else { walk.only(&packet) };
    if word == 0 {
        return came_to::NOTHING;
    }
    let is_ping = walk.pings > 0;
    let now_ms = millis(context.now);
    let classes = if LIMITS { class_of(context, &start, &walk, word) } else { Counts::default() };
    let share = Rate { limit: context.policy.share, ..context.policy.rate };
    let enforces = context.policy.action != action::OBSERVE;
    let (mut fits, mut passed) = (0, walk.pings);
    let mut committed = false;
    let trace = Trace::new(&start, word);
    let (enters, mut trail) = (flow.trail != 0 || flow.room() == 0, 0);
    if enters {
        let Some(entered) = trail::enter_one(context.now) else {
            return came_to::NOTHING;
        };
        trail = entered;
    }
    let mut latest = trail::Latest::default();
    locked(flow, |flow| {
        let mut stands =
            (flow.held == 0) & flow.client.is_still(&start) & (flow.state == state::OPEN);
        stands &= if trail == 0 { flow.trail == 0 } else { true };
        if LIMITS && stands {
            let (limits, mut window) = (&context.policy.class_limits, flow.classes);
            // The slow path charges what is over a limit.
            stands = window.charge(now_ms, limits, context.policy.rate.window_ms, &classes) == 0;
            if stands {
                flow.classes = window;
            }
        }
        if stands {
            if is_ping {
                let fits_share = (share.limit > 0 && flow.window.has_room(now_ms, share)) as u32;
                let kept = flow.charge(now_ms, context.policy.connection_rate, 1);
                // So that the flow's lock need not be taken again where a flood goes on.
                let defused =
                    (enforces & flow.is_over_limit(context.now)) as u32 & (fits_share ^ 1);
                passed = defused ^ 1;
                fits = fits_share * came_to::FITS_SHARE
                    + kept * came_to::FITS_CONNECTION
                    + defused * came_to::DEFUSED;
            }
            flow.commit_one(&walk, passed);
            flow.last_ns = context.now;
            committed = true;
            if trail == 0 {
                flow.trace_one(trace);
            } else {
                latest = trail::take_in(flow, trail, 1);
            }
        }
    });
    if enters {
        // Before this CPU leaves it: no other one may read the trail without this header.
        if committed && trail != 0 {
            trail::put_latest(trace, latest);
        }
        trail::leave();
    }
    if !committed {
        return came_to::NOTHING;
    }
    count(&walk, &start, &classes);
    let at = start.next.wrapping_sub(context.segment.seq);
    if is_ping {
        return came_to::TAKEN | came_to::PING | fits | at << came_to::AT;
    }
    if walk.pongs > 0 {
        return came_to::TAKEN | came_to::PONG | at << came_to::AT;
    }
    came_to::TAKEN
}

/// Count the one frame or record by class.
#[inline(always)]
fn class_of(context: &Context, start: &Tracker, walk: &Walk, word: u16) -> Counts {
    let mut counts = Counts::default();
    let policy = context.policy;
    let bytes = walk.tracker.next.wrapping_sub(start.next);
    if start.in_records() {
        let record = Record::new(word, bytes.wrapping_sub(record::HEADER as u32) as u16);
        counts.add_record(&record, policy.record_min, policy.record_max);
    } else {
        let header_len = if word as u8 & frame::LEN7 == 126 { 8 } else { 6 };
        let payload_len = bytes.wrapping_sub(header_len).into();
        let header = Header { first: (word >> 8) as u8, second: word as u8, payload_len };
        counts.add(&header, policy.tiny_bytes);
    }
    counts
}

/// Count the result of the walk: one frame or record.
#[inline(always)]
fn count(walk: &Walk, start: &Tracker, classes: &Counts) {
    if let Some(counters) = report::counters() {
        let is_record = start.in_records() as u64;
        counters.events[Counter::Frames as usize] += is_record ^ 1;
        counters.events[Counter::Records as usize] += is_record;
        counters.events[Counter::Pings as usize] += walk.pings as u64;
        counters.events[Counter::Pongs as usize] += walk.pongs as u64;
        counters.events[Counter::SplitFrames as usize] += walk.splits_frame() as u64;
        let small = classes.0[Class::SmallRecord as usize] as u64;
        counters.events[Counter::SmallRecords as usize] += small;
    }
}

/// Charge the source for the one frame, a committed PING, and defuse it if it is over the limit.
#[inline(never)]
pub fn ping<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
    ping: u32,
) -> Verdict {
    let share = (ping & came_to::FITS_SHARE != 0) as u32;
    let most = (ping & came_to::FITS_CONNECTION != 0) as u32;
    let answer = charge::charge_one(context, flow, share, most);
    let at = ping >> came_to::AT;
    let passes = answer & (charge::KEPT | charge::OBSERVED) != 0;
    if passes == (ping & came_to::DEFUSED != 0) {
        correct(flow, context.segment, at, passes);
    }
    if passes {
        payload(context.segment).heartbeat(at, heartbeat::CLIENT_ASKS, flow);
        return Verdict::Pass;
    }
    if answer & charge::DROP != 0 {
        return Verdict::Drop;
    }
    if let Some(counters) = report::counters() {
        counters.events[Counter::Defused as usize] += 1;
        counters.events[Counter::Rewritten as usize] += 1;
    }
    let mut packet = payload(context.segment);
    packet.defuse(at);
    let odd = (context.segment.payload + at - context.segment.tcp) & 1;
    packet.fix_checksum(context.segment, 1 - odd, odd);
    Verdict::Pass
}

/// Correct the flow, which took the one ping for one that is passed on, or is not.
#[inline(never)]
fn correct(flow: &mut Flow, segment: &Segment, at: u32, passes: bool) {
    let (from, end) = (segment.seq.wrapping_add(at), segment.seq.wrapping_add(segment.len));
    locked(flow, |flow| {
        if passes {
            flow.give_back(from, end);
        } else {
            flow.take_back(1, from, end);
        }
    });
}
