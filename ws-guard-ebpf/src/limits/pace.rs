//! Pacing connections over their limit, see [`ws_guard_common::pace`].
//!
//! Egress limits the window that the server advertises; ingress drops what is past its edge all the
//! same. A connection under no limit costs one look at [`Flow::paced`].

use ws_guard_common::{
    flow::{Flow, paced},
    maps::{Counter, EventKind, Policy, action},
    pace::{Advertised, FRAME, Hold, MOST_SURPLUS, Reach, dense, scale},
    source::millis,
};

use crate::{
    context::Context,
    cpu,
    limits::{
        at_hand,
        budgets::{self, First},
        charge, rules,
    },
    maps::locked,
    opening::role,
    packet::{self, RST, Segment},
    report,
};

/// Time without a segment of the server after which its route is assumed to bypass egress, ms.
const UNHEARD_MS: i32 = 1000;

/// Window field for the current segment, of the server on a paced connection: up to the held edge.
/// `None` to leave it as it is.
#[inline(always)]
pub fn window(now: u64) -> Option<u16> {
    let (Some((flow, policy)), Some(segment)) = (at_hand(), packet::segment()) else {
        return None;
    };
    if flow.over_generation != policy.generation {
        rules::judge_again(now);
    }
    if !flow.is_paced(now) {
        end(flow, now);
        return None;
    }
    if segment.flags & RST != 0 {
        // A RST advertises no window.
        return None;
    }
    if flow.hold.held == 0 {
        report::count(Counter::Paced);
        let source = &flow.account.source;
        report::source_event(EventKind::Paced, source, Some(&segment.key), now, 0, 0);
    }
    let scale = u32::from(flow.began.scale);
    if scale == scale::UNKNOWN {
        flow.hold.held = 1;
        return None;
    }
    let shift = (scale - 1) & 15;
    let server = Advertised { ack: segment.ack, window: segment.window & 0xFFFF, shift };
    let now_ms = millis(now);
    let first = if flow.hold.held == 0 { first(flow, &server, now_ms) } else { 0 };
    let (mut more, mut least) = (0, 0);
    let wanted = locked(
        flow,
        #[inline(always)]
        |flow| {
            more = flow.hold.count(flow.high, flow.frames_in as u32);
            let wanted = flow.hold.wants(&server, first);
            least = flow.hold.minimum(&server, wanted, now_ms);
            wanted
        },
    );
    let asks = wanted != 0 || more != 0;
    let granted = if asks { budgets::grant(now_ms, wanted, least, more) } else { 0 };
    let window = locked(
        flow,
        #[inline(always)]
        |flow| flow.hold.open(&server, granted, now_ms),
    );
    if window == segment.window {
        return None;
    }
    report::count(Counter::WindowsHeld);
    Some(window as u16)
}

/// Distance of the first edge past what the server has acknowledged.
#[inline(always)]
fn first(flow: &mut Flow, server: &Advertised, now_ms: u32) -> u32 {
    let high = flow.high;
    let latest = high.wrapping_sub(flow.hold.counted_high);
    let more = count(flow);
    let paid = flow.hold.paid(server, high);
    let rest = flow.hold.first(server) - paid;
    let cost = if latest != 0 {
        Hold::cost(rest, latest, more)
    } else {
        // Ingress has counted them: the price of the whole stream instead.
        cost(flow, rest)
    };
    let wanted = Hold::affordable(rest, cost);
    let cost = if wanted < rest { wanted + MOST_SURPLUS } else { cost };
    let sent = flow.hold.under_way(server, high).saturating_sub(paid);
    let sent = if sent < wanted { sent } else { wanted };
    paid + budgets::grant_first(flow, now_ms, First { wanted, sent, cost, more, latest })
}

/// Cost of the next `len` bytes, if they have as many frames as all before them.
#[inline(always)]
fn cost(flow: &Flow, len: u32) -> u32 {
    let (bytes, more) = surplus(flow);
    Hold::cost(len, bytes, more)
}

/// The client's bytes, and what its frames cost beyond them.
#[inline(always)]
fn surplus(flow: &Flow) -> (u32, u32) {
    let bytes = flow.high.wrapping_sub(flow.began.client_next);
    let frames = (flow.frames_in as u32).saturating_mul(FRAME);
    (bytes, frames.saturating_sub(bytes))
}

/// Cost of the frames since the last call, beyond their bytes.
#[inline(always)]
fn count(flow: &mut Flow) -> u32 {
    locked(
        flow,
        #[inline(always)]
        |flow| flow.hold.count(flow.high, flow.frames_in as u32),
    )
}

/// End the pacing: this segment keeps the server's own window.
#[inline(always)]
fn end(flow: &mut Flow, now: u64) {
    let hold = flow.hold;
    locked(
        flow,
        #[inline(always)]
        |flow| {
            flow.paced = paced::NO;
            flow.hold.held = 0;
        },
    );
    if hold.held != 0 {
        report::count(Counter::Unpaced);
        let (source, granted) = (&flow.account.source, hold.granted.into());
        report::source_event(EventKind::Unpaced, source, packet::key(), now, granted, 0);
    }
}

/// Drop a client's segment by an earlier decision, on a connection over its limit.
/// That is enough for most segments of a flood under `drop`; [`refuses`] decides about the others.
#[inline(always)]
pub fn drops(context: &Context, flow: &mut Flow) -> bool {
    let decided = flow.drops != 0 && flow.over_generation == context.policy.generation;
    let drops = decided && role::follows(flow.owner) && context.segment.flags & RST == 0;
    if drops {
        charge::count_dropped(flow);
    }
    drops
}

/// Decide whether to drop a client's segment on a connection over its limit.
#[inline(always)]
pub fn refuses(context: &Context, flow: &Flow) -> bool {
    may_refuse(context.policy, flow) && ws_guard_refuses(context.now) != 0
}

/// Check whether there is anything to decide: not for a connection that is neither paced nor dropped,
/// under a policy that does neither to any.
#[inline(always)]
fn may_refuse(policy: &Policy, flow: &Flow) -> bool {
    let treated = flow.paced != paced::NO || flow.drops != 0;
    let may_treat = policy.pace != 0 || policy.rules != 0 || policy.action >= action::DROP;
    treated || may_treat || flow.over_generation != policy.generation
}

/// [`refuses`], as a global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_refuses(now: u64) -> u32 {
    let (Some((flow, policy)), Some(segment)) = (at_hand(), packet::segment()) else {
        return 0;
    };
    if !role::follows(flow.owner) {
        // The programs that follow the flow have passed the segment already.
        return 0;
    }
    if segment.flags & RST != 0 {
        // A RST carries no frame, and without it the server keeps a connection that the client has
        // left.
        return 0;
    }
    // Egress may have ended the pacing just before the connection went over its limit again.
    let untreated = flow.paced == paced::NO && flow.drops == 0;
    if untreated || flow.over_generation != policy.generation {
        rules::judge_again(now);
    }
    if flow.drops != 0 {
        charge::count_dropped(flow);
        return 1;
    }
    if flow.paced != paced::YES || segment.len == 0 {
        return 0;
    }
    let (now_ms, known) = (millis(now), u32::from(flow.began.scale) != scale::UNKNOWN);
    if known && flow.hold.held != 0 {
        let (seq, len) = (segment.seq, segment.len);
        let reach = locked(
            flow,
            #[inline(always)]
            |flow| flow.hold.reach(seq, len, now_ms) as u32,
        );
        if reach == Reach::Within as u32 {
            return 0;
        }
        let due = flow.hold.is_cut() && is_due(flow, segment, now_ms);
        let probes = reach == Reach::Probe as u32 || due;
        report::count(if probes { Counter::Probes } else { Counter::DroppedBeyond });
        return !probes as u32;
    }
    if !flow.is_credible(segment.ack) {
        // The caller drops it as forged; it does not count for the connection's source.
        return 0;
    }
    // The difference may be negative: this clock may be a tick behind the one of a terminator's
    // report.
    let unheard = now_ms.wrapping_sub(flow.hold.since_ms) as i32 >= UNHEARD_MS;
    let len = segment.len;
    let latest = flow.high.wrapping_sub(flow.hold.counted_high);
    let mut more = count(flow);
    if known && !unheard {
        let (bytes, all) = surplus(flow);
        let wanted = if flow.hold.exceeds_surplus(len, bytes, all) { 0 } else { len };
        let sent = if dense(bytes, all) { 0 } else { wanted };
        let cost = Hold::cost(wanted, bytes, all);
        let first = First { wanted, sent, cost, more, latest };
        if budgets::grant_first(flow, now_ms, first) == len {
            flow.hold.granted = flow.hold.granted.saturating_add(len);
            return 0;
        }
        more = 0;
    }
    let passes = budgets::police(flow, now_ms, len, more) || is_due(flow, segment, now_ms);
    if !passes {
        report::count(Counter::DroppedPoliced);
    }
    !passes as u32
}

/// Check whether the segment that took the connection over its limit is refused: it passes only as
/// long as its source has first windows left, and with no more than [`MOST_SURPLUS`], because a merged
/// segment has as many frames as one.
#[inline(always)]
pub fn refuses_first(now: u64) -> bool {
    ws_guard_refuses_first(now) != 0
}

/// [`refuses_first`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_refuses_first(now: u64) -> u32 {
    let (Some((flow, _)), Some(segment), Some(state)) =
        (at_hand(), packet::segment(), cpu::resume())
    else {
        return 0;
    };
    if flow.paced != paced::YES || flow.hold.held != 0 {
        return 0;
    }
    let len = segment.len;
    // Of its frames, or of the whole stream's: a walk that defuses pings counts no new frames.
    let walked = state.walk.frames.saturating_mul(FRAME);
    let priced = cost(flow, len);
    let cost = if walked > priced { walked } else { priced };
    let more = cost.saturating_sub(len);
    // A refused one comes again, in smaller parts, whose frames are not counted then.
    let refused = more > MOST_SURPLUS;
    let sent = if refused { 0 } else { len };
    let first = First { wanted: len, sent, cost, more: 0, latest: 0 };
    if budgets::grant_first(flow, millis(now), first) == len && !refused {
        flow.hold.granted = flow.hold.granted.saturating_add(len);
        return 0;
    }
    report::count(Counter::DroppedPoliced);
    1
}

/// Pass the segment that the server waits for at a minimum rate.
/// With an empty bucket, which a source's connections share, nothing else would pass. The same
/// after a window was cut.
#[inline(always)]
fn is_due(flow: &mut Flow, segment: &Segment, now_ms: u32) -> bool {
    if segment.seq != flow.acked {
        return false;
    }
    let len = segment.len;
    let (bytes, more) = surplus(flow);
    let dense = dense(bytes, more);
    let patience = budgets::patience(flow, now_ms, dense);
    let due = locked(
        flow,
        #[inline(always)]
        |flow| flow.hold.due(len, now_ms, patience, dense),
    );
    if due {
        let cost = if dense { Hold::cost(len, bytes, more) } else { len };
        budgets::owe_due(flow, now_ms, len, cost, dense);
    }
    due
}
