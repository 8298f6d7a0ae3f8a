//! The client's side: what becomes of a segment.
//!
//! Plan, walk, commit, charge: the flow says how to look at the segment, the tracker walks it
//! without a lock, the flow takes the result under its lock if nothing changed meanwhile, and only
//! then is the source charged, so that no ping is charged twice.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    programs::{TcContext, XdpContext},
};
use ws_guard_common::{
    flow::{self, Action, Flow, Rewalk},
    maps::{Counter, EventKind, FlowKey, LIMITS_CLASSES, MAY_DROP, Policy, action},
    seq::{after, later},
    source::millis,
    tracker::{Step, Tracker, Walk},
};

use crate::{
    borders::{self, BORDER},
    debug, floods,
    handshake::{self, Request},
    joining,
    maps::{self, FLOWS, locked},
    packet::{self, ACK, FIN, Packet, Parsed, RST, SYN, Segment, URG},
    quick::{self, came_to},
    report::{self, Side},
    role,
    skb::{SkbPayload, parse_skb},
    sources, unreadable,
    walk::{self, State, Walker},
    xdp::{XdpPayload, parse_xdp},
};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
}

/// What a program knows when it looks at a segment of a flow.
pub struct Scene<'a> {
    pub key: &'a FlowKey,
    pub segment: &'a Segment,
    pub policy: &'a Policy,
    /// Nanoseconds of the coarse clock.
    pub now: u64,
}

impl Scene<'_> {
    /// Under `observe`, and for who is allowed, nothing is ever dropped or changed.
    #[inline(always)]
    pub fn enforces(&self) -> bool {
        match self.policy.rules {
            0 => self.policy.action != action::OBSERVE,
            _ => sources::acts_on(&self.key.client, self.policy),
        }
    }

    /// Other frames than pings have limits as well: then each frame is looked at by its class.
    #[inline(always)]
    pub fn limits_classes(&self) -> bool {
        self.policy.flags & LIMITS_CLASSES != 0
    }

    /// Drop for a reason, unless the policy only observes.
    #[inline(always)]
    pub fn drop(&self, reason: Counter) -> Verdict {
        if !self.enforces() {
            return Verdict::Pass;
        }
        report::count(reason);
        Verdict::Drop
    }
}

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
    let may_drop = policy.action == action::DROP || policy.flags & MAY_DROP != 0;
    if may_drop && sources::any_throttled(now) && sources::drop(&segment.key.client, policy, now) {
        return Verdict::Drop;
    }
    let key = &segment.key;
    let scene = Scene { key, segment, policy, now };
    if segment.flags & URG != 0 {
        // The byte that the urgent pointer names does not reach the server's application in its
        // place (RFC 6093, 3.1): the frames would be other ones than those on the wire.
        return scene.drop(Counter::DroppedUrgent);
    }
    let mut flow = FLOWS.get_ptr_mut(key).filter(|_| segment.flags & SYN == 0);
    if flow.is_none() {
        if segment.len == 0 {
            return Verdict::Pass;
        }
        match handshake::request(&scene, payload(segment)) {
            Request::Head => return Verdict::Pass,
            Request::Early => return scene.drop(Counter::DroppedEarly),
            Request::Stranger => {}
        }
        let joins = segment.flags & SYN == 0 && joining::find(&scene, payload(segment));
        if !joins || !joining::open(&scene) {
            return Verdict::Pass;
        }
        flow = FLOWS.get_ptr_mut(key);
    }
    let Some(flow) = flow else {
        return Verdict::Pass;
    };
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
    // A single word, written by this side only.
    flow.client_ack = later(flow.client_ack, segment.ack);
    if segment.len == 0 || flow.state == flow::state::CLOSED && !reopens(&scene, flow) {
        return Verdict::Pass;
    }
    counters.events[Counter::Tracked as usize] += 1;
    data(&scene, flow, || payload(segment))
}

/// Data on a closed flow: whether there is anything new in it.
#[cold]
#[inline(never)]
fn reopens(scene: &Scene, flow: &mut Flow) -> bool {
    let end = scene.segment.seq.wrapping_add(scene.segment.len);
    let mut goes_on = false;
    locked(flow, |flow| goes_on = flow.reopen(end));
    if goes_on {
        report::count(Counter::FlowsReopened);
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
        report::flow_event(EventKind::FlowClosed, scene.key, scene.now, flow.frames_in);
    }
}

/// What a walk came to.
pub enum Outcome {
    /// Nothing more to do.
    Pass,
    Drop,
    /// It came to its end, and the flow has yet to take over what is in this CPU's state.
    Walked,
    /// The same, from a checkpoint.
    Rewalked,
    /// The flow stands before these bytes: they are to be walked as new ones.
    Rewound,
}

impl From<Verdict> for Outcome {
    #[inline(always)]
    fn from(verdict: Verdict) -> Outcome {
        match verdict {
            Verdict::Pass => Outcome::Pass,
            Verdict::Drop => Outcome::Drop,
        }
    }
}

/// A segment with payload on a tracked flow.
///
/// Each way to go on is a function of its own: a program's stack is 512 bytes for all that is
/// called from it, and only one of these is on it at a time.
#[inline(always)]
fn data<P: Packet>(scene: &Scene, flow: &mut Flow, packet: impl Fn() -> P) -> Verdict {
    let segment = scene.segment;
    let plan = flow.plan(segment.seq, segment.len);
    let mut outcome = match plan.action {
        Action::Pass => {
            if after(segment.seq, flow.high) {
                note(scene, flow, Noted::Hole);
            }
            // Only this side writes these two, and they only say how far things got.
            flow.high = later(flow.high, segment.seq.wrapping_add(segment.len));
            flow.last_ns = scene.now;
            if flow.is_ahead(segment.seq) {
                borders::keep(flow, segment.seq, &flow.client);
            }
            return Verdict::Pass;
        }
        Action::Walk if scene.limits_classes() => Outcome::Rewound,
        Action::Walk => {
            let came_to = walk::forget(quick::pass(scene, flow, &packet()), segment.seq);
            if came_to & came_to::PING != 0 {
                return quick::ping(scene, flow, &mut packet(), came_to);
            }
            if came_to != came_to::NOTHING {
                return Verdict::Pass;
            }
            Outcome::Rewound
        }
        Action::Rewalk | Action::NoCheckpoint => {
            let at_border = plan.action as u8 == Action::NoCheckpoint as u8;
            if at_border && borders::find(flow, segment.seq).is_none() {
                return scene.drop(Counter::DroppedNoCheckpoint);
            }
            walk::from_checkpoint(if at_border { BORDER } else { plan.checkpoint });
            again(scene, flow, &packet)
        }
        Action::Gap => {
            report::count(Counter::Gaps);
            note(scene, flow, Noted::Gap);
            return scene.drop(Counter::DroppedGap);
        }
        Action::Search => joining::search(scene, flow, packet()),
    };
    // Not called from where the outcome came about: two of these on top of each other are too much
    // stack, and two calls of one are twice the work for the verifier.
    if matches!(outcome, Outcome::Rewound) {
        outcome = first(scene, flow, packet());
    }
    let committed = match outcome {
        Outcome::Walked => commit(scene, flow),
        Outcome::Rewalked => recommit(scene, flow),
        Outcome::Pass => return Verdict::Pass,
        _ => return Verdict::Drop,
    };
    if !committed {
        return scene.drop(Counter::DroppedUnreadable);
    }
    count_walk(scene);
    if scene.limits_classes() && floods::charge(scene.now) {
        return Verdict::Drop;
    }
    settle(scene, flow, packet())
}

/// A walk was taken to its end, if `done`.
#[inline(always)]
fn finished(scene: &Scene, done: bool, outcome: Outcome) -> Outcome {
    if done { outcome } else { scene.drop(Counter::DroppedUnreadable).into() }
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
fn first<P: Packet>(scene: &Scene, flow: &mut Flow, packet: P) -> Outcome {
    let Some(state) = walk::state() else {
        return Outcome::Pass;
    };
    state.start = flow.client;
    state.walk = Walk::new(state.start, &state.start, scene.segment.seq, scene.segment.len);
    state.tiny_bytes = scene.policy.tiny_bytes;
    let mut walker = Walker { state, packet };
    walker.packet.classify(scene.policy.flags & LIMITS_CLASSES);
    let step = walker.run();
    finished(scene, run_out(scene, flow, &mut walker, step), Outcome::Walked)
}

/// A walk that came to `step` is taken to its end, with a budget for new pings if it asks for one.
#[inline(always)]
fn run_out<P: Packet>(scene: &Scene, flow: &Flow, walker: &mut Walker<P>, step: Step) -> bool {
    if !matches!(step, Step::Ask) {
        return matches!(step, Step::Done);
    }
    grant(scene, flow);
    matches!(walker.run_on(), Step::Done)
}

/// Set the budget for new pings of the walk in this CPU's state.
///
/// A function: its caller's stack is that of the walk, too.
#[inline(never)]
fn grant(scene: &Scene, flow: &Flow) {
    let Some(state) = walk::resume() else {
        return;
    };
    state.enforces = scene.enforces() as u32;
    let window_ms = scene.policy.rate.share_window_ms();
    state.share = flow.window.room(millis(scene.now), scene.policy.share, window_ms);
    state.walk.budget = if throttled(scene) { state.share } else { Walk::UNLIMITED };
    state.asked_ns = flow.ping_ns;
    if flow.ping_ns == 0 && state.walk.budget > 0 {
        // A ping may wait for its pong from now on.
        // SAFETY: no arguments, no effects.
        state.asked_ns = unsafe { bpf_ktime_get_ns() };
    }
}

/// The segment's source is throttled, and something may be done about it.
#[inline(never)]
pub fn throttled(scene: &Scene) -> bool {
    if !scene.enforces() || !sources::any_throttled(scene.now) {
        return false;
    }
    let address = &scene.segment.key.client;
    match sources::find(&sources::of(address, scene.policy)) {
        Some(source) => source.is_throttled(address, scene.policy, scene.now),
        None => false,
    }
}

/// Let the flow take over a walk of new bytes.
#[inline(never)]
fn commit(scene: &Scene, flow: &mut Flow) -> bool {
    let committed = take_over(scene, flow, |_, _| true, Flow::commit);
    if let (true, Some(state)) = (committed, walk::resume()) {
        borders::keep(flow, scene.segment.seq, &state.start);
    }
    committed
}

/// Let the flow take over a walk from a checkpoint.
#[cold]
#[inline(never)]
fn recommit(scene: &Scene, flow: &mut Flow) -> bool {
    let checkpoint = walk::resume().map_or(0, |state| state.checkpoint as u8);
    take_over(
        scene,
        flow,
        // An acknowledgement on another CPU may have moved the checkpoints up.
        |flow, state| checkpoint == BORDER || flow.starts_at(checkpoint, &state.from),
        |flow, known, walk, passed| {
            flow.let_through(walk.base(), walk.len());
            if checkpoint != BORDER {
                flow.rewalked(checkpoint, known, walk, passed);
            }
        },
    )
}

/// Let the flow take over the walk's result with `take`, if it still stands where it stood when the
/// walk began, and is `valid` otherwise; and see how many new pings the budget and the connection's own limit let pass.
#[inline(always)]
fn take_over(
    scene: &Scene,
    flow: &mut Flow,
    valid: impl FnOnce(&Flow, &State) -> bool,
    take: impl FnOnce(&mut Flow, &Tracker, &Walk, u32),
) -> bool {
    let Some(state) = walk::resume() else {
        return false;
    };
    let walk = &state.walk;
    let pings = walk.pings;
    let mut passed = if pings < walk.budget { pings } else { walk.budget };
    let (mut committed, mut lost) = (false, false);
    let enforces = state.enforces != 0;
    let now_ms = millis(scene.now);
    locked(flow, |flow| {
        if flow.client == state.start && flow.state == flow::state::OPEN && valid(flow, state) {
            if pings > 0 {
                let kept = flow.charge(now_ms, scene.policy.connection_rate, pings);
                passed = if enforces && kept < passed { kept } else { passed };
                flow.ping_ns = state.asked_ns;
            }
            take(flow, &state.start, walk, passed);
            flow.last_ns = scene.now;
            lost = flow.state != flow::state::OPEN;
            committed = true;
        }
    });
    state.passed = passed;
    if lost {
        report::count(Counter::FlowsUnsynced);
    }
    committed
}

/// The flow has taken the segment over: charge the source for its pings, and put the packet right.
#[inline(never)]
fn settle<P: Packet>(scene: &Scene, flow: &mut Flow, packet: P) -> Verdict {
    let Some(state) = walk::resume() else {
        return Verdict::Pass;
    };
    let mut walker = Walker { state, packet };
    if walker.state.walk.pings > 0 && !charge(scene, flow, &mut walker) {
        return Verdict::Drop;
    }
    finish(scene, &mut walker);
    Verdict::Pass
}

/// Charge the source for the segment's pings. `false` to drop the segment.
#[inline(always)]
fn charge<P: Packet>(scene: &Scene, flow: &mut Flow, walker: &mut Walker<P>) -> bool {
    let (pings, passed, share) = (walker.state.walk.pings, walker.state.passed, walker.state.share);
    let segment = scene.segment;
    let answer = sources::charge(&segment.key.client, scene.policy, scene.now, pings, share);
    if answer & sources::OBSERVED != 0 {
        return true;
    }
    let charged = answer & sources::PASSED;
    let kept = if charged < passed { charged } else { passed };
    if kept < passed {
        take_back(flow, passed - kept);
    }
    if kept == pings {
        return true;
    }
    if answer & sources::DROP != 0 {
        return false;
    }
    report::add(Counter::Defused, (pings - kept) as u64);
    let state = &mut *walker.state;
    if kept < state.walk.budget {
        // The walk let more pass than the charge does: go again, now that it is known how many.
        let known = state.walk.tracker;
        state.walk = Walk::new(state.start, &known, segment.seq, segment.len);
        state.walk.old_budget = kept;
        state.walk.budget = 0;
        walker.run_on();
    }
    true
}

/// Fewer pings pass than the flow was told.
#[inline(always)]
pub fn take_back(flow: &mut Flow, pings: u32) {
    locked(flow, |flow| {
        flow.take_back(pings);
    });
}

/// Put the checksum right.
#[inline(always)]
fn finish<P: Packet>(scene: &Scene, walker: &mut Walker<P>) {
    let (even, odd) = (walker.state.even, walker.state.odd);
    if even + odd > 0 {
        walker.packet.seal(scene.segment, even, odd);
        report::add(Counter::Rewritten, (even + odd) as u64);
    }
}

/// Count what a walk found.
#[inline(never)]
fn count_walk(scene: &Scene) {
    let (Some(counters), Some(state)) = (report::counters(), walk::resume()) else {
        return;
    };
    let walk = &state.walk;
    let events = &mut counters.events;
    events[Counter::Frames as usize] += walk.frames as u64;
    events[Counter::Pings as usize] += walk.pings as u64;
    events[Counter::Pongs as usize] += walk.pongs as u64;
    events[Counter::Coalesced as usize] += walk.coalesces() as u64;
    events[Counter::SplitHeaders as usize] += walk.splits_header(&state.start) as u64;
    events[Counter::SplitFrames as usize] += walk.splits_frame() as u64;
    report::violation_event(Side::Client, scene.key, walk, scene.now);
}

/// A retransmission of bytes that the server has not acknowledged: look, judge, and walk it again.
#[inline(always)]
fn again<P: Packet>(scene: &Scene, flow: &mut Flow, packet: impl Fn() -> P) -> Outcome {
    report::count(Counter::Rewalked);
    if !look(scene, flow, packet()) {
        return scene.drop(Counter::DroppedChanged).into();
    }
    match judge(scene, flow) {
        Outcome::Rewalked => rewalk(scene, flow, packet()),
        outcome => outcome,
    }
}

/// Walk from the checkpoint without changing anything: nobody knows yet what may pass. `false` when
/// the bytes differ from what is carried of a cut header, or cannot be read.
#[cold]
#[inline(never)]
fn look<P: Packet>(scene: &Scene, flow: &mut Flow, packet: P) -> bool {
    let Some(state) = walk::state() else {
        return false;
    };
    let border = || borders::find(flow, scene.segment.seq).copied();
    let Some(from) = flow.checkpoint(state.checkpoint as u8).or_else(border) else {
        return false;
    };
    state.start = flow.client;
    state.from = from;
    state.walk = Walk::new(from, &state.start, scene.segment.seq, scene.segment.len);
    state.walk.budget = Walk::UNLIMITED;
    let mut walker = Walker { state, packet };
    walker.packet.only_look(true);
    matches!(walker.run_on(), Step::Done)
        && walker.state.walk.agrees(&walker.packet, &walker.state.start)
}

/// See what the retransmission may let pass, and set the state for the walk that follows.
#[cold]
#[inline(never)]
fn judge(scene: &Scene, flow: &mut Flow) -> Outcome {
    let Some(state) = walk::resume() else {
        return Outcome::Pass;
    };
    let (checkpoint, from) = (state.checkpoint as u8, state.from);
    let settled = scene.now.saturating_sub(flow.last_ns) > flow::SETTLED_NS;
    let judged = match checkpoint {
        BORDER => Rewalk::Refuse,
        checkpoint => flow.rewalk_budget(checkpoint, &state.walk, settled),
    };
    let old_budget = match judged {
        Rewalk::Refuse if borders::joins(flow, &state.walk.tracker) => {
            state.checkpoint = BORDER.into();
            if scene.enforces() { 0 } else { Walk::UNLIMITED }
        }
        Rewalk::Refuse => return scene.drop(Counter::DroppedChanged).into(),
        Rewalk::New if rewind(flow, &state.start, checkpoint, &from) => return Outcome::Rewound,
        Rewalk::New => return scene.drop(Counter::DroppedUnreadable).into(),
        Rewalk::Same(passed) if scene.enforces() => passed,
        Rewalk::Same(_) => Walk::UNLIMITED,
    };
    state.walk = Walk::new(from, &state.start, scene.segment.seq, scene.segment.len);
    state.walk.old_budget = old_budget;
    Outcome::Rewalked
}

/// Walk it again, now that it is known what may pass.
#[cold]
#[inline(never)]
fn rewalk<P: Packet>(scene: &Scene, flow: &mut Flow, packet: P) -> Outcome {
    let Some(state) = walk::resume() else {
        return Outcome::Pass;
    };
    state.tiny_bytes = scene.policy.tiny_bytes;
    let mut walker = Walker { state, packet };
    walker.packet.classify(scene.policy.flags & LIMITS_CLASSES);
    let step = walker.run_on();
    finished(scene, run_out(scene, flow, &mut walker, step), Outcome::Rewalked)
}

/// Other bytes take the place of those from a checkpoint on.
#[inline(always)]
fn rewind(flow: &mut Flow, known: &Tracker, checkpoint: u8, from: &Tracker) -> bool {
    locked(flow, |flow| {
        let unchanged = flow.client == *known && flow.starts_at(checkpoint, from);
        if unchanged {
            flow.rewind(checkpoint);
        }
        unchanged
    })
}
