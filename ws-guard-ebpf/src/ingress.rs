//! The client's side: the verdict about each segment.
//!
//! Plan, walk, commit, charge: the flow plans the treatment of the segment, the tracker walks it
//! without a lock, the flow commits the result under its lock if nothing changed meanwhile, and
//! only then is the source charged, so that no ping is charged twice.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::{TcContext, XdpContext},
};
use ws_guard_common::{
    flow::{self, Action, Flow, LEDGER, Reset},
    maps::{Beginning, Counter, End, EventKind, LIMITS_CLASSES, MAY_BAN, Old},
    seq::{after, before, later},
    tracker::Walk,
    verifier::forget,
};

use crate::{
    clock,
    context::{Context, Outcome, Verdict, finished, run_out},
    cpu, debug,
    limits::{frame_limits, pace, sources, unread},
    maps::{self, FLOWS, locked},
    opening::{
        chunks,
        handshake::{self, Request},
        identify, pending_upgrades, role,
    },
    packet::{
        self, ACK, FIN, Packet, Parsed, RST, SYN, Segment, URG, options,
        skb::{SkbPayload, parse_skb},
        unreadable,
        xdp::{XdpPayload, parse_xdp},
    },
    report::{self, Side},
    servers,
    stream::{
        commit::{commit, count_walk, recommit, settle},
        fast_path::{self, came_to},
        heartbeat, midstream, out_of_order,
        retransmit::{again, refuse},
        tls, trail,
        walk::Walker,
    },
};

/// The XDP program.
#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> u32 {
    let verdict = match parse_xdp(ctx) {
        Parsed::Tcp => guard(|segment| XdpPayload::new(ctx, segment)),
        other => unreadable::verdict(other),
    };
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => {
            debug::dropped(ctx);
            xdp_action::XDP_DROP
        }
    }
}

/// The TC program.
#[inline(always)]
pub fn tc(ctx: &TcContext) -> i32 {
    let verdict = match parse_skb(ctx, Side::Client) {
        Parsed::Tcp => guard(|segment| SkbPayload::new(ctx, segment, Side::Client)),
        other => unreadable::verdict(other),
    };
    match verdict {
        // Let the next program decide: TC_ACT_OK would end the chain.
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => {
            debug::dropped(ctx);
            TC_ACT_SHOT
        }
    }
}

/// Judge a TCP segment.
#[inline(always)]
fn guard<P: Packet>(payload: impl Fn(&Segment) -> P) -> Verdict {
    let (Some(counters), Some(segment)) = (report::counters(), packet::segment()) else {
        return Verdict::Pass;
    };
    counters.events[Counter::Seen as usize] += 1;
    let Some(policy) = maps::policy_of(segment.key.server_port) else {
        return Verdict::Pass;
    };
    counters.events[Counter::Protected as usize] += 1;
    let now = clock::now();
    let key = &segment.key;
    // Servers take a RST whatever other flags it has.
    let mut flow = FLOWS.get_ptr_mut(key).filter(|_| segment.flags & (SYN | RST) != SYN);
    let account = match flow {
        // SAFETY: a part of a map value, which stays mapped while a program runs.
        Some(flow) => unsafe { &raw const (*flow).account },
        None => match identify::peer() {
            Some(peer) => &raw const *peer,
            None => return Verdict::Pass,
        },
    };
    let mut context = Context { segment, policy, now, account };
    if policy.flags & MAY_BAN != 0 && is_banned(&context) {
        return Verdict::Drop;
    }
    if let Some(flow) = flow {
        // SAFETY: as above; single words are read whole.
        let flow = unsafe { &mut *flow };
        if flow.may_be_limited()
            && flow.is_over_limit(now)
            && (pace::drops(&context, flow) || pace::refuses(&context, flow))
        {
            return Verdict::Drop;
        }
    }
    if segment.flags & URG != 0 {
        // The application does not receive the urgent byte in its place (RFC 6093, 3.1), so that
        // its frames would differ from those on the wire.
        return context.drop(Counter::DroppedUrgent);
    }
    if flow.is_none() {
        match without_flow(&context, &payload) {
            Stray::Pass => return Verdict::Pass,
            Stray::Drop => return Verdict::Drop,
            Stray::Joined => flow = FLOWS.get_ptr_mut(key),
        }
    }
    let Some(flow) = flow else {
        return Verdict::Pass;
    };
    // SAFETY: a part of a map value, which stays mapped while a program runs.
    context.account = unsafe { &raw const (*flow).account };
    // SAFETY: map values stay mapped while a program runs. What is read without the lock is
    // compared under it before anything is changed.
    let flow = unsafe { &mut *flow };
    if !role::claims(&mut flow.owner) {
        return Verdict::Pass;
    }
    if segment.flags & (RST | FIN) != 0 && !ending(&context, flow) {
        return context.drop(Counter::DroppedForged);
    }
    if segment.flags & RST != 0 {
        // Receivers ignore its data.
        return Verdict::Pass;
    }
    if before(segment.seq, flow.acked) {
        let Segment { seq, ack, len, .. } = *segment;
        if !admits_old(&context, flow.began.judge_old(flow.acked, seq, ack, len), &payload) {
            return Verdict::Drop;
        }
    }
    // No TCP takes data without an acknowledgement (RFC 9293, 3.10.7.4), nor a FIN.
    if segment.flags & ACK == 0 || !flow.is_credible(segment.ack) {
        let empty = segment.len == 0 && segment.flags & FIN == 0;
        return if empty { Verdict::Pass } else { context.drop(Counter::DroppedForged) };
    }
    if segment.len != 0 && flow.is_out_of_reach(segment.seq) {
        return context.drop(Counter::DroppedForged);
    }
    flow.hear(segment.ack);
    flow.offers(segment.seq, segment.window);
    if segment.len == 0 {
        return Verdict::Pass;
    }
    if flow.hidden != 0 && !midstream::may_go_on(&context, flow) {
        return Verdict::Drop;
    }
    if flow.state == flow::state::CLOSED && !reopens(&context, flow) {
        return Verdict::Pass;
    }
    // Looked up once more: the stack has no room for the pointer.
    report::count(Counter::Tracked);
    data(&context, flow, &payload)
}

/// Result for a segment without a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Stray {
    Pass,
    Drop,
    /// A flow was opened for it.
    Joined,
}

/// Handle a segment without a flow: of a handshake, or of a stream to be picked up midstream.
#[inline(always)]
fn without_flow<P: Packet>(context: &Context, payload: &impl Fn(&Segment) -> P) -> Stray {
    let segment = context.segment;
    // Listeners discard a SYN with any other of these flags.
    let (may_scale, old) = pending_upgrades::may_begin(context.policy.generation);
    if segment.flags & (SYN | ACK | RST | FIN) == SYN || may_scale {
        options::client(context, payload);
    }
    if !admits_old(context, old, payload) {
        return Stray::Drop;
    }
    if segment.flags & (RST | FIN) != 0 && !ends(context) {
        let drops = context.drop(Counter::DroppedForged) == Verdict::Drop;
        return if drops { Stray::Drop } else { Stray::Pass };
    }
    if segment.flags & RST != 0 {
        // Receivers ignore its data.
        return Stray::Pass;
    }
    if segment.len == 0 {
        pending_upgrades::hear();
        return Stray::Pass;
    }
    if !pending_upgrades::claims() {
        return Stray::Pass;
    }
    let begins = match context.is_tls() {
        true if tls::hello(context, payload(segment)) => Request::Head,
        true => Request::Other,
        // Not in there: the stack has no room.
        false => match handshake::request(context, payload(segment)) {
            Request::Chunks if chunks::follow(payload(segment)) => Request::Head,
            Request::Chunks => Request::Other,
            other => other,
        },
    };
    match begins {
        Request::Head | Request::Chunks => {
            if !admits(context, true) {
                return Stray::Drop;
            }
            pending_upgrades::passes(true, context.policy.generation);
            return Stray::Pass;
        }
        Request::Early => {
            if context.drop(Counter::DroppedEarly) == Verdict::Drop {
                return Stray::Drop;
            }
            pending_upgrades::passes(false, context.policy.generation);
            return Stray::Pass;
        }
        Request::Banned => return Stray::Drop,
        Request::Other => {
            if !admits(context, false) {
                return Stray::Drop;
            }
            pending_upgrades::passes(false, context.policy.generation);
        }
    }
    let joins = segment.flags & SYN == 0 && midstream::find(context, payload(segment));
    if joins && midstream::open(context) { Stray::Joined } else { Stray::Pass }
}

/// Take over a RST or a FIN of the client, also for a flow that is inserted meanwhile. `false` where it must not pass.
#[cold]
#[inline(never)]
fn ends(context: &Context) -> bool {
    let may = pending_upgrades::end_by_client(context.policy.generation);
    match FLOWS.get_ptr_mut(context.key()) {
        // SAFETY: as in `guard`.
        Some(flow) if context.segment.flags & SYN == 0 => ending(context, unsafe { &mut *flow }),
        _ => may,
    }
}

/// Decide whether a segment passes in which frames may be hidden: less likely where it was `read`.
#[cold]
#[inline(never)]
fn admits(context: &Context, read: bool) -> bool {
    let passes = context.is_tls() || {
        let decided = pending_upgrades::decide(read, context.policy.generation);
        unread::admits_first(context, decided)
    };
    passes || context.drop(Counter::DroppedUnsynced) != Verdict::Drop
}

/// Check whether the packet's source is banned.
#[cold]
#[inline(never)]
fn is_banned(context: &Context) -> bool {
    sources::any_banned(context.now) && sources::drop_banned(context)
}

/// Reopen a closed flow if its client sends new data.
#[cold]
#[inline(never)]
fn reopens(context: &Context, flow: &mut Flow) -> bool {
    let end = context.segment.seq.wrapping_add(context.segment.len);
    let mut goes_on = false;
    let mut lost = false;
    locked(flow, |flow| {
        goes_on = flow.reopen(end);
        lost = goes_on & (flow.state == flow::state::UNSYNCED);
    });
    if goes_on {
        report::count(Counter::FlowsReopened);
        report::add(Counter::FlowsUnsynced, lost as u64);
    }
    goes_on
}

/// Handle a RST or a FIN of the client. `false` where it must not pass.
#[cold]
#[inline(never)]
fn ending(context: &Context, flow: &mut Flow) -> bool {
    let segment = context.segment;
    let mut reset = Reset::Ignored;
    let mut closed = false;
    locked(flow, |flow| {
        if segment.flags & RST != 0 {
            reset = flow.hear_reset(segment.seq, segment.len, segment.ack);
            closed = reset as u8 == Reset::Closed as u8;
        } else if segment.flags & ACK != 0 && flow.is_credible(segment.ack) {
            flow.hear_fin(segment.seq.wrapping_add(segment.len));
        }
        if closed {
            // The time since its end counts from here.
            flow.last_ns = context.now;
        }
    });
    if closed || flow.flags & flow::FIN_SEEN != 0 {
        let end = if closed { End::ClientReset } else { End::ClientFin };
        servers::ended(end);
    }
    if closed {
        report::count(Counter::FlowsClosed);
        report::flow_event(EventKind::FlowClosed, context.key(), context.now, flow.frames_in);
    }
    reset as u8 != Reset::Forged as u8
}

/// Treat a segment that begins with a byte which the server has. `false` where it must not pass.
#[inline(always)]
fn admits_old<P: Packet>(context: &Context, old: Old, payload: &impl Fn(&Segment) -> P) -> bool {
    match old {
        Old::Drop => return context.drop(Counter::DroppedForged) == Verdict::Pass,
        Old::Disarm if context.enforces() => {
            payload(context.segment).acknowledge_less(Beginning::LESS)
        }
        _ => {}
    }
    true
}

/// Judge a segment with payload on a tracked flow.
#[inline(always)]
fn data<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Verdict {
    let segment = context.segment;
    servers::in_place(Side::Client, segment.seq, flow.high);
    if flow.format != LEDGER {
        adopt(flow);
    }
    let plan = flow.plan(segment.seq, segment.len);
    match plan {
        Action::Pass => {
            if after(segment.seq, flow.high) {
                note(context, flow, Noted::Hole);
            }
            // Only this side writes these two, and they only record progress.
            flow.high = later(flow.high, segment.seq.wrapping_add(segment.len));
            flow.last_ns = context.now;
            return Verdict::Pass;
        }
        Action::Walk if flow.held == 0 => {
            let came_to = match context.limits_classes() {
                true => fast_path::pass::<_, true>(context, flow, payload),
                false => fast_path::pass::<_, false>(context, flow, payload),
            };
            let came_to = forget(came_to, segment.seq);
            if came_to & came_to::PING != 0 {
                return fast_path::ping(context, flow, payload, came_to);
            }
            if came_to & came_to::PONG != 0 {
                let at = came_to >> came_to::AT;
                payload(segment).heartbeat(at, heartbeat::CLIENT_ANSWERS, flow);
                return Verdict::Pass;
            }
            if came_to != came_to::NOTHING {
                return Verdict::Pass;
            }
        }
        Action::Gap => {
            report::count(Counter::Gaps);
            note(context, flow, Noted::Gap);
            if !out_of_order::enter(context, flow) {
                return context.drop(Counter::DroppedGap);
            }
        }
        _ => {}
    }
    let is_gap = matches!(plan, Action::Gap);
    if flow.held != 0 && !is_gap && !out_of_order::enter(context, flow) {
        return context.drop(Counter::DroppedGap);
    }
    let len = if is_gap { u32::MAX } else { segment.len };
    let verdict = match trail::enter(context.now, len) {
        true => stream(context, flow, plan, payload),
        false => context.drop(Counter::DroppedUntraced),
    };
    trail::leave();
    out_of_order::leave(flow);
    verdict
}

/// Judge a segment that has to be walked.
///
/// Each branch is a function of its own: a program's stack is 512 bytes for all nested calls, and
/// only one of these is on it at a time.
#[inline(always)]
fn stream<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    plan: Action,
    payload: &impl Fn(&Segment) -> P,
) -> Verdict {
    let mut outcome = match plan {
        Action::Rewalk => again(context, flow, payload),
        Action::Untraced => return refuse(context, flow, Counter::DroppedUntraced),
        Action::Gap if out_of_order::keep(context, flow, payload) => return Verdict::Pass,
        Action::Gap => return context.drop(Counter::DroppedGap),
        Action::Search => midstream::search(context, flow, payload),
        Action::Walk | Action::Pass => Outcome::New,
    };
    // Called only here: two of these on top of each other need too much stack, and two calls double
    // the verifier's work.
    if matches!(outcome, Outcome::New) {
        outcome = first(context, flow, payload);
    }
    let rewalked = match outcome {
        Outcome::Walked => false,
        Outcome::Rewalked => true,
        Outcome::Pass => return Verdict::Pass,
        _ => return Verdict::Drop,
    };
    if !out_of_order::judge(context, flow, payload) {
        return context.drop(Counter::DroppedGap);
    }
    let committed = if rewalked { recommit(context, flow) } else { commit(context, flow) };
    if !committed {
        out_of_order::uncount();
        return context.drop(Counter::DroppedUnreadable);
    }
    count_walk(context);
    // After the commit: what is dropped for its frames is not charged again when it is
    // retransmitted. TCP would merge more and more frames into one segment, which alone would
    // exceed the limit for good.
    let was_over = flow.is_over_limit(context.now);
    let over = context.limits_classes() && frame_limits::charge(context, flow);
    let verdict = if over { Verdict::Drop } else { settle(context, flow, payload) };
    out_of_order::follow(context, flow);
    if !was_over && flow.is_over_limit(context.now) && pace::refuses_first(context.now) {
        return Verdict::Drop;
    }
    if matches!(verdict, Verdict::Drop) {
        return verdict;
    }
    heartbeat::client_walked(&payload(context.segment), flow);
    Verdict::Pass
}

/// Take over a flow from programs of an earlier schema.
#[cold]
#[inline(never)]
fn adopt(flow: &mut Flow) {
    locked(flow, |flow| flow.adopt());
}

/// Record of a segment that is not walked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noted {
    /// It skips payload.
    Hole,
    /// It starts past the cursor.
    Gap,
}

/// Note it in the flow.
#[cold]
#[inline(never)]
fn note(context: &Context, flow: &mut Flow, what: Noted) {
    let segment = context.segment;
    locked(flow, |flow| match what {
        Noted::Hole => flow.let_through(segment.seq, segment.len),
        Noted::Gap => {
            flow.gaps += 1;
            flow.flags |= flow::GAP;
        }
    });
}

/// Walk new bytes.
#[inline(never)]
fn first<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Outcome {
    let Some(state) = cpu::state() else {
        return Outcome::Pass;
    };
    state.known = flow.client;
    state.start = if state.rewind.replaces == 0 { state.known } else { state.rewind.from };
    state.traces.left = 0;
    state.walk = Walk::new(state.start, &state.start, context.segment.seq, context.segment.len);
    state.small_as(context.policy);
    let mut walker = Walker { state, packet: payload(context.segment) };
    walker.packet.classify(context.policy.flags & LIMITS_CLASSES);
    let step = walker.run();
    finished(context, run_out(context, flow, &mut walker, step), Outcome::Walked)
}
