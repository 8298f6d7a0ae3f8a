//! The client's side: what becomes of a segment.
//!
//! Plan, walk, commit, charge: the flow says how to look at the segment, the tracker walks it
//! without a lock, the flow takes the result under its lock if nothing changed meanwhile, and only
//! then is the source charged, so that no ping is charged twice.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_ktime_get_coarse_ns,
    programs::{TcContext, XdpContext},
};
use ws_guard_common::{
    flow::{self, Action, Flow, Plan},
    maps::{Counter, EventKind, LIMITS_CLASSES, MAY_BAN},
    seq::{after, later},
    tracker::Walk,
    verifier::forget,
};

use crate::{
    commit::{commit, count_walk, recommit, settle},
    debug, floods,
    handshake::{self, Request},
    held, identify, joining,
    maps::{self, FLOWS, locked},
    options, pace,
    packet::{self, ACK, FIN, Packet, Parsed, RST, SYN, Segment, URG},
    quick::{self, came_to},
    report::{self, Side},
    rewalk::again,
    role,
    scene::{Outcome, Scene, Verdict, finished, run_out},
    skb::{SkbPayload, parse_skb},
    sources, tls,
    trail::{self, TRAIL},
    unreadable,
    walk::{self, Walker},
    xdp::{XdpPayload, parse_xdp},
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
        // To pass is to let the next program decide: TC_ACT_OK would end the chain.
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => {
            debug::dropped(ctx);
            TC_ACT_SHOT
        }
    }
}

/// Any TCP segment.
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
    // SAFETY: no arguments, no effects.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let key = &segment.key;
    let mut flow = FLOWS.get_ptr_mut(key).filter(|_| segment.flags & SYN == 0);
    let account = match flow {
        // SAFETY: a part of a map value, which stays mapped while a program runs.
        Some(flow) => unsafe { &raw const (*flow).account },
        None => match identify::peer() {
            Some(peer) => &raw const *peer,
            None => return Verdict::Pass,
        },
    };
    let mut scene = Scene { segment, policy, now, account };
    if policy.flags & MAY_BAN != 0 && is_banned(&scene) {
        return Verdict::Drop;
    }
    if let Some(flow) = flow {
        // SAFETY: as above; single words are read whole.
        let flow = unsafe { &mut *flow };
        if flow.is_over_limit(now) && (pace::drops(&scene, flow) || pace::refuses(now)) {
            return Verdict::Drop;
        }
    }
    if segment.flags & URG != 0 {
        // The byte that the urgent pointer names does not reach the server's application in its
        // place (RFC 6093, 3.1): the frames would be other ones than those on the wire.
        return scene.drop(Counter::DroppedUrgent);
    }
    if flow.is_none() {
        match without_flow(&scene, &payload) {
            Stray::Pass => return Verdict::Pass,
            Stray::Drop => return Verdict::Drop,
            Stray::Joined => flow = FLOWS.get_ptr_mut(key),
        }
    }
    let Some(flow) = flow else {
        return Verdict::Pass;
    };
    // SAFETY: a part of a map value, which stays mapped while a program runs.
    scene.account = unsafe { &raw const (*flow).account };
    // SAFETY: map values stay mapped while a program runs. What is read without the lock is
    // compared with what stands there under it before anything is changed.
    let flow = unsafe { &mut *flow };
    if !role::claims(&mut flow.owner) {
        return Verdict::Pass;
    }
    if segment.flags & (RST | FIN) != 0 {
        ending(&scene, flow);
    }
    if segment.flags & RST != 0 {
        // Nobody reads data out of it.
        return Verdict::Pass;
    }
    // No TCP takes data without an acknowledgement (RFC 9293, 3.10.7.4).
    if segment.flags & ACK == 0 || !flow.is_credible(segment.ack) {
        return if segment.len == 0 { Verdict::Pass } else { scene.drop(Counter::DroppedForged) };
    }
    flow.hear(segment.ack);
    if segment.len == 0 || flow.state == flow::state::CLOSED && !reopens(&scene, flow) {
        return Verdict::Pass;
    }
    // Looked up once more: the stack has no room for the pointer.
    report::count(Counter::Tracked);
    data(&scene, flow, &payload)
}

/// What becomes of a segment without a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Stray {
    Pass,
    Drop,
    /// It has one from now on.
    Joined,
}

/// A segment without a flow: of a handshake, or of a stream that may be joined.
#[inline(always)]
fn without_flow<P: Packet>(scene: &Scene, payload: &impl Fn(&Segment) -> P) -> Stray {
    let segment = scene.segment;
    if segment.flags & (SYN | ACK) == SYN {
        options::refuse_mptcp(scene, payload);
    }
    if segment.len == 0 {
        return Stray::Pass;
    }
    let begins = match scene.is_tls() {
        true if tls::hello(scene, payload(segment)) => Request::Head,
        true => Request::Stranger,
        false => handshake::request(scene, payload(segment)),
    };
    match begins {
        Request::Head => return Stray::Pass,
        Request::Early => {
            let dropped = scene.drop(Counter::DroppedEarly) == Verdict::Drop;
            return if dropped { Stray::Drop } else { Stray::Pass };
        }
        Request::Banned => return Stray::Drop,
        Request::Stranger => {}
    }
    let joins = segment.flags & SYN == 0 && joining::find(scene, payload(segment));
    if joins && joining::open(scene) { Stray::Joined } else { Stray::Pass }
}

/// The source of the packet is banned.
#[cold]
#[inline(never)]
fn is_banned(scene: &Scene) -> bool {
    sources::any_banned(scene.now) && sources::drop_banned(scene)
}

/// Data on a closed flow: whether there is anything new in it.
#[cold]
#[inline(never)]
fn reopens(scene: &Scene, flow: &mut Flow) -> bool {
    let end = scene.segment.seq.wrapping_add(scene.segment.len);
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

/// A RST or a FIN of the client.
#[cold]
#[inline(never)]
fn ending(scene: &Scene, flow: &mut Flow) {
    let segment = scene.segment;
    let mut closed = false;
    locked(flow, |flow| {
        if segment.flags & RST != 0 {
            closed = flow.client_reset(segment.seq);
        } else if segment.flags & ACK != 0 && flow.is_credible(segment.ack) {
            flow.fin = segment.seq.wrapping_add(segment.len);
            flow.flags |= flow::FIN_SEEN;
        }
        if closed {
            // How long ago it ended counts from here.
            flow.last_ns = scene.now;
        }
    });
    if closed {
        report::count(Counter::FlowsClosed);
        report::flow_event(EventKind::FlowClosed, scene.key(), scene.now, flow.frames_in);
    }
}

/// A segment with payload on a tracked flow.
#[inline(always)]
fn data<P: Packet>(scene: &Scene, flow: &mut Flow, payload: &impl Fn(&Segment) -> P) -> Verdict {
    let segment = scene.segment;
    let plan = flow.plan(segment.seq, segment.len);
    match plan.action {
        Action::Pass => {
            if after(segment.seq, flow.high) {
                note(scene, flow, Noted::Hole);
            }
            // Only this side writes these two, and they only say how far things got.
            flow.high = later(flow.high, segment.seq.wrapping_add(segment.len));
            flow.last_ns = scene.now;
            return Verdict::Pass;
        }
        Action::Walk if flow.held == 0 => {
            let came_to = match scene.limits_classes() {
                true => quick::pass::<_, true>(scene, flow, payload),
                false => quick::pass::<_, false>(scene, flow, payload),
            };
            let came_to = forget(came_to, segment.seq);
            if came_to & came_to::PING != 0 {
                return quick::ping(scene, flow, payload, came_to);
            }
            if came_to != came_to::NOTHING {
                return Verdict::Pass;
            }
        }
        Action::Gap => {
            report::count(Counter::Gaps);
            note(scene, flow, Noted::Gap);
            if !held::enter(scene, flow) {
                return scene.drop(Counter::DroppedGap);
            }
        }
        _ => {}
    }
    if flow.held != 0 && !matches!(plan.action, Action::Gap) && !held::enter(scene, flow) {
        return scene.drop(Counter::DroppedGap);
    }
    let verdict = match trail::enter(scene.now) {
        true => stream(scene, flow, plan, payload),
        false => scene.drop(Counter::DroppedNoCheckpoint),
    };
    trail::leave();
    held::leave(flow);
    verdict
}

/// A segment that has to be looked at.
///
/// Each way to go on is a function of its own: a program's stack is 512 bytes for all that is
/// called from it, and only one of these is on it at a time.
#[inline(always)]
fn stream<P: Packet>(
    scene: &Scene,
    flow: &mut Flow,
    plan: Plan,
    payload: &impl Fn(&Segment) -> P,
) -> Verdict {
    let mut outcome = match plan.action {
        Action::Rewalk | Action::NoCheckpoint => {
            let on_trail = plan.action as u8 == Action::NoCheckpoint as u8;
            if on_trail && !trail::finds(scene.segment.seq) {
                return scene.drop(Counter::DroppedNoCheckpoint);
            }
            walk::from_checkpoint(if on_trail { TRAIL } else { plan.checkpoint });
            again(scene, flow, payload)
        }
        Action::Gap if held::keep(scene, flow, payload) => return Verdict::Pass,
        Action::Gap => return scene.drop(Counter::DroppedGap),
        Action::Search => joining::search(scene, flow, payload),
        Action::Walk | Action::Pass => Outcome::Rewound,
    };
    // Not called from where the outcome came about: two of these on top of each other are too much
    // stack, and two calls of one are twice the work for the verifier.
    if matches!(outcome, Outcome::Rewound) {
        outcome = first(scene, flow, payload);
    }
    let rewalked = match outcome {
        Outcome::Walked => false,
        Outcome::Rewalked => true,
        Outcome::Pass => return Verdict::Pass,
        _ => return Verdict::Drop,
    };
    if !held::judge(scene, flow, payload) {
        return scene.drop(Counter::DroppedGap);
    }
    let committed = if rewalked { recommit(scene, flow) } else { commit(scene, flow) };
    if !committed {
        held::uncount();
        return scene.drop(Counter::DroppedUnreadable);
    }
    count_walk(scene);
    // Behind it: what is dropped for its frames is not judged again when it comes again. TCP would put more
    // and more of them into one segment, which alone would be over the limit for good.
    let over = scene.limits_classes() && floods::charge(scene, flow);
    let verdict = if over { Verdict::Drop } else { settle(scene, flow, payload) };
    // Behind the settling, which corrects the newest checkpoint: the filler's.
    held::follow(scene, flow);
    verdict
}

/// What a flow has to know of a segment that is not walked.
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
fn note(scene: &Scene, flow: &mut Flow, what: Noted) {
    let segment = scene.segment;
    locked(flow, |flow| match what {
        Noted::Hole => flow.let_through(segment.seq, segment.len),
        Noted::Gap => {
            flow.gaps += 1;
            flow.flags |= flow::GAP;
        }
    });
}

/// Bytes that come for the first time.
#[inline(never)]
fn first<P: Packet>(scene: &Scene, flow: &mut Flow, payload: &impl Fn(&Segment) -> P) -> Outcome {
    let Some(state) = walk::state() else {
        return Outcome::Pass;
    };
    state.start = flow.client;
    state.traces = 0;
    state.walk = Walk::new(state.start, &state.start, scene.segment.seq, scene.segment.len);
    state.small_as(scene.policy);
    let mut walker = Walker { state, packet: payload(scene.segment) };
    walker.packet.classify(scene.policy.flags & LIMITS_CLASSES);
    let step = walker.run();
    finished(scene, run_out(scene, flow, &mut walker, step), Outcome::Walked)
}
