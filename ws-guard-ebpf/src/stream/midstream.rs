//! Midstream pickup: connections older than the guard, those whose handshake was not read, and
//! flows out of sync.
//!
//! State is made only when the *server* sends data on a protected port, so that spoofed packets do
//! not fill the table. No more is done until the client's stream has proved where its frames begin.

use aya_ebpf::bindings::BPF_ANY;
use ws_guard_common::{
    flow::{self, Flow, hidden},
    maps::{Counter, EventKind, Midstream},
    offer::unread::{GONE, PASSES, REFUSED},
    record,
    search::{Candidate, Search},
    seq::{after, later},
    source::millis,
    tracker::{GUESSED, RSV1_AGREED, Tracker},
};

use crate::{
    context::{Context, Outcome, Verdict, throttled},
    cpu,
    limits::{charge, unread},
    maps::{MIDSTREAM, locked},
    opening::{pending_upgrades, role},
    packet::{self, Packet, Segment},
    report,
    stream::walk::Walker,
    tables,
};

/// Record a server's data on a connection without a flow, after it opened none.
///
/// Only if it looks like WebSocket. On a TLS port: only if the segment begins with a record of
/// application data.
#[cold]
#[inline(never)]
pub fn remember<P: Packet>(context: &Context, packet: P) {
    let segment = context.segment;
    let server_high = segment.seq.wrapping_add(segment.len);
    if let Some(known) = MIDSTREAM.get_ptr_mut(context.key()) {
        // SAFETY: an LRU entry may be reused for another key meanwhile, whose search then begins with a
        // wrong candidate and detects that.
        unsafe { (*known).hear(segment.ack, server_high) };
        return;
    }
    let speaks = match context.is_tls() {
        true => record::data_at(&packet, 0) > 0,
        false => is_whole(context, packet),
    };
    if !speaks {
        return;
    }
    let new = Midstream { candidate: Candidate::default(), acked: segment.ack, server_high };
    let _ = MIDSTREAM.insert(context.key(), &new, BPF_ANY.into());
}

/// Check whether the server's segment consists of whole frames.
#[inline(always)]
fn is_whole<P: Packet>(context: &Context, packet: P) -> bool {
    let Some(state) = cpu::state() else {
        return false;
    };
    state.search = Search::of_server(context.segment.seq, context.segment.len);
    let mut walker = Walker { state, packet };
    walker.search();
    walker.state.search.is_whole()
}

/// Search for frames in a client's data without a flow. `true` when [`open`] is to follow them.
#[cold]
#[inline(never)]
pub fn find<P: Packet>(context: &Context, packet: P) -> bool {
    let segment = context.segment;
    let (Some(known), Some(state)) = (MIDSTREAM.get_ptr_mut(context.key()), cpu::state()) else {
        return false;
    };
    // SAFETY: as in `remember`.
    let known = unsafe { &mut *known };
    if !known.may_send(segment.seq, segment.len, segment.ack) {
        return false;
    }
    let search = Search::new(known.candidate, segment.seq, segment.len);
    state.search = search.of_records(context.is_tls());
    let mut walker = Walker { state, packet };
    walker.search();
    let search = &walker.state.search;
    let found = search.proven().is_some();
    if !found {
        known.candidate = search.known();
    }
    found
}

/// Open a flow where [`find`] found frames. `false` where the table has no room.
#[cold]
#[inline(never)]
pub fn open(context: &Context) -> bool {
    let (Some(known), Some(state)) = (MIDSTREAM.get_ptr_mut(context.key()), cpu::resume()) else {
        return false;
    };
    // SAFETY: as in `remember`.
    let known = unsafe { &*known };
    let Some(next) = state.search.proven() else {
        return false;
    };
    let Some(flow) = tables::new_flow() else {
        return false;
    };
    if context.is_tls() {
        flow.open_records(Tracker::new(next, 0), next, known.server_high, 0, context.now);
    } else {
        flow.open(next, known.server_high, 0, context.now);
        // The agreed extensions are unknown.
        flow.client.flags |= RSV1_AGREED;
        flow.server.flags |= RSV1_AGREED | GUESSED;
    }
    flow.join(next);
    flow.owner = role::own();
    if let Some(account) = packet::account() {
        flow.account = *account;
    }
    // The client of one that is older than the guard cannot have prepared for it.
    flow.may_hide(pending_upgrades::server_high().is_some());
    flow.acked = known.acked;
    flow.trace_anew();
    flow.oldest_ack = known.server_high.wrapping_sub(flow::OLDEST_ACK);
    let joined = tables::insert_flow(context);
    if joined {
        let _ = MIDSTREAM.remove(context.key());
        report::count(Counter::FlowsJoined);
        report::flow_event(EventKind::FlowOpened, context.key(), context.now, 0);
    }
    joined
}

/// Search for frames in a segment of a flow that is out of sync.
#[cold]
#[inline(never)]
pub fn search<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Outcome {
    let segment = context.segment;
    let Some(state) = cpu::state() else {
        return Outcome::Pass;
    };
    state.search = flow.search(segment.seq, segment.len);
    let mut walker = Walker { state, packet: payload(segment) };
    walker.search();
    let search = &walker.state.search;
    let (mut found, mut passed) = (false, PASSES);
    let now_ms = millis(context.now);
    locked(
        flow,
        #[inline(always)]
        |flow| {
            if flow.state == flow::state::UNSYNCED {
                found = flow.searched(search);
                passed = match found {
                    true => PASSES,
                    false if flow.is_past_unread(segment.seq) => REFUSED,
                    false => pass_unread(flow, segment, now_ms),
                };
                flow.last_ns = context.now;
            }
        },
    );
    if found {
        report::count(Counter::FlowsResynced);
        return Outcome::New;
    }
    // What cannot be followed cannot be defused either.
    let drops = !unread::admits(context.now, passed) || flow.is_over_limit(context.now);
    if drops && matches!(context.drop(Counter::DroppedUnsynced), Verdict::Drop) {
        return Verdict::Drop.into();
    }
    // Only this side writes it.
    flow.high = later(flow.high, segment.seq.wrapping_add(segment.len));
    Outcome::Pass
}

/// Check whether a segment of a [hidden](Flow::hidden) client may pass, see [`Flow::pass_unread`], or of one whose
/// connection may be gone, see [`Flow::is_gone`].
#[cold]
#[inline(never)]
pub fn may_go_on(context: &Context, flow: &mut Flow) -> bool {
    let segment = context.segment;
    let end = segment.seq.wrapping_add(segment.len);
    let now_ms = millis(context.now);
    let mut passed = PASSES;
    locked(
        flow,
        #[inline(always)]
        |flow| {
            let followed = flow.state != flow::state::UNSYNCED && after(end, flow.acked);
            if flow.is_gone(context.now) {
                passed = GONE;
            } else if flow.hidden & hidden::FRAMES != 0 && followed {
                passed = pass_unread(flow, segment, now_ms);
            }
        },
    );
    let passes = unread::admits(context.now, passed) && (passed != GONE || !throttled(context));
    passes || context.drop(Counter::DroppedUnsynced) == Verdict::Pass
}

/// [`Flow::pass_unread`] for the segment.
#[inline(always)]
fn pass_unread(flow: &mut Flow, segment: &Segment, now_ms: u32) -> u32 {
    flow.pass_unread(segment.seq, segment.ack, segment.window, segment.len, now_ms)
}

/// Charge unseen pings that the server has answered.
#[cold]
#[inline(never)]
pub fn witnessed(context: &Context, pings: u32) {
    report::add(Counter::Witnessed, pings.into());
    charge::charge(context.now, pings);
}
