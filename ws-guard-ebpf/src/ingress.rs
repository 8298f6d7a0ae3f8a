//! The client's side: what becomes of a segment.
//!
//! Plan, walk, commit, charge: the flow says how to look at the segment, the tracker walks it
//! without a lock, the flow takes the result under its lock if nothing changed meanwhile, and only
//! then is the source charged, so that no ping is charged twice.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_spin_lock, bpf_spin_unlock},
    programs::{TcContext, XdpContext},
};
use ws_guard_common::{
    flow::{self, Action, Flow, Plan, Rewalk, state},
    maps::{Counter, EventKind, FlowKey, Policy, action},
    seq::later,
    source::millis,
    tracker::{Step, Tracker, Walk},
};

use crate::{
    handshake,
    maps::{self, FLOWS},
    packet::{ACK, FIN, Packet, Parsed, RST, Segment, parse},
    report::{self, Side},
    skb::{SkbPayload, parse_skb},
    sources,
    walk::Walker,
    xdp::XdpPayload,
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
    /// Under `observe` nothing is ever dropped or changed.
    #[inline(always)]
    pub fn enforces(&self) -> bool {
        self.policy.action != action::OBSERVE
    }

    /// Drop for a reason, unless the policy only observes.
    #[inline(always)]
    fn drop(&self, reason: Counter) -> Verdict {
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
    let verdict = match parse(ctx.data(), ctx.data_end()) {
        Parsed::Tcp(segment) => guard(&segment, || XdpPayload::new(ctx, &segment)),
        other => unreadable(other),
    };
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// The TC program.
#[inline(always)]
pub fn tc(ctx: &TcContext) -> i32 {
    let verdict = match parse_skb(ctx) {
        Parsed::Tcp(segment) => guard(&segment, || SkbPayload::new(ctx, &segment, Side::Client)),
        other => unreadable(other),
    };
    match verdict {
        // To pass is to let the next program decide: TC_ACT_OK would end the chain.
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT as i32,
    }
}

#[inline(always)]
fn unreadable(parsed: Parsed) -> Verdict {
    report::count(Counter::Seen);
    if matches!(parsed, Parsed::Unreadable) {
        report::count(Counter::Unparsed);
    }
    Verdict::Pass
}

/// Any TCP segment.
#[inline(always)]
fn guard<P: Packet>(segment: &Segment, payload: impl FnOnce() -> P) -> Verdict {
    let Some(counters) = report::counters() else {
        return Verdict::Pass;
    };
    counters.events[Counter::Seen as usize] += 1;
    if !maps::is_protected(segment.destination_port) {
        return Verdict::Pass;
    }
    counters.events[Counter::Protected as usize] += 1;
    let Some(policy) = maps::policy() else {
        return Verdict::Pass;
    };
    // SAFETY: no arguments, no effects.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if policy.action == action::DROP && sources::any_throttled(now) {
        let key = sources::of(&segment.source, policy);
        if let Some(source) = sources::find(&key) {
            if sources::is_throttled(source, &segment.source, policy, now) {
                sources::dropped(source);
                return Verdict::Drop;
            }
        }
    }
    let key = FlowKey {
        client: segment.source,
        server: segment.destination,
        client_port: segment.source_port,
        server_port: segment.destination_port,
    };
    let scene = Scene { key: &key, segment, policy, now };
    let Some(flow) = FLOWS.get_ptr_mut(&key) else {
        if segment.len == 0 {
            return Verdict::Pass;
        }
        return handshake::request(&scene, payload());
    };
    // SAFETY: map values stay mapped while a program runs. What is read without the lock is
    // compared with what stands there under it before anything is changed.
    let flow = unsafe { &mut *flow };
    if flow.state == state::CLOSED {
        return Verdict::Pass;
    }
    if segment.flags & (RST | FIN) != 0 {
        ending(&scene, flow);
    }
    if segment.len == 0 {
        return Verdict::Pass;
    }
    counters.events[Counter::Tracked as usize] += 1;
    data(&scene, flow, payload())
}

/// A RST or a FIN of the client.
#[inline(always)]
fn ending(scene: &Scene, flow: &mut Flow) {
    let segment = scene.segment;
    let mut closed = false;
    // SAFETY: the lock guards the flow; nothing but plain code runs under it.
    unsafe {
        bpf_spin_lock((&raw mut flow.lock).cast());
        if segment.flags & RST != 0 {
            closed = flow.client_reset(segment.seq);
        } else if segment.flags & ACK != 0 {
            flow.fin = segment.seq.wrapping_add(segment.len);
            flow.flags |= flow::FIN_SEEN;
        }
        bpf_spin_unlock((&raw mut flow.lock).cast());
    }
    if closed {
        report::count(Counter::FlowsClosed);
        report::flow_event(EventKind::FlowClosed, scene.key, scene.now, flow.frames_in);
    }
}

/// A segment with payload on a tracked flow.
#[inline(always)]
fn data<P: Packet>(scene: &Scene, flow: &mut Flow, payload: P) -> Verdict {
    let segment = scene.segment;
    let plan = flow.plan(segment.seq, segment.len);
    match plan.action {
        Action::Pass => {
            // Only this side writes these two, and they only say how far things got.
            flow.high = later(flow.high, segment.seq.wrapping_add(segment.len));
            flow.last_ns = scene.now;
            Verdict::Pass
        }
        Action::Walk => {
            let walk = Walk::new(plan.start, &plan.start, segment.seq, segment.len);
            fresh(scene, flow, &plan, Walker::new(walk, payload))
        }
        Action::Rewalk => again(scene, flow, &plan, payload),
        Action::Gap => {
            report::count(Counter::Gaps);
            flow.gaps += 1;
            flow.flags |= flow::GAP;
            scene.drop(Counter::DroppedGap)
        }
        Action::NoCheckpoint => scene.drop(Counter::DroppedNoCheckpoint),
        Action::Probe => probe(scene, flow, payload),
    }
}

/// Bytes that come for the first time.
#[inline(always)]
fn fresh<P: Packet>(scene: &Scene, flow: &mut Flow, plan: &Plan, mut walker: Walker<P>) -> Verdict {
    let mut step = walker.run();
    let mut share = 0;
    if matches!(step, Step::Ask) {
        (walker.walk.budget, share) = budget(scene, flow);
        step = walker.run_on();
    }
    if !matches!(step, Step::Done) {
        return scene.drop(Counter::DroppedUnreadable);
    }
    let committed = commit(scene, flow, plan, &walker.walk);
    let Some(passed) = committed else {
        return scene.drop(Counter::DroppedUnreadable);
    };
    settle(scene, flow, &plan.start, walker, passed, share)
}

/// How many pings of this segment may pass, as far as can be told before they are counted; and how
/// many of them keep to the connection's share.
#[inline(always)]
fn budget(scene: &Scene, flow: &Flow) -> (u32, u32) {
    if !scene.enforces() {
        return (Walk::UNLIMITED, 0);
    }
    let policy = scene.policy;
    let share = flow.window.room(millis(scene.now), policy.share, policy.rate.window_ms);
    if !sources::any_throttled(scene.now) {
        return (Walk::UNLIMITED, share);
    }
    let key = sources::of(&scene.segment.source, policy);
    match sources::find(&key) {
        Some(source) if sources::is_throttled(source, &scene.segment.source, policy, scene.now) => {
            (share, share)
        }
        _ => (Walk::UNLIMITED, share),
    }
}

/// Take the walk's result into the flow, if the flow is still what the walk started from. Returns
/// how many pings the connection's own limit and the budget let pass.
#[inline(always)]
fn commit(scene: &Scene, flow: &mut Flow, plan: &Plan, walk: &Walk) -> Option<u32> {
    let pings = walk.pings;
    let mut passed = if pings < walk.budget { pings } else { walk.budget };
    let mut committed = false;
    // SAFETY: no arguments, no effects.
    let precise = if passed > 0 && flow.ping_ns == 0 { unsafe { bpf_ktime_get_ns() } } else { 0 };
    let now_ms = millis(scene.now);
    // SAFETY: the lock guards the flow; nothing but plain code runs under it.
    unsafe {
        bpf_spin_lock((&raw mut flow.lock).cast());
        if flow.client == plan.start && flow.state == state::OPEN {
            if pings > 0 {
                let kept = flow.charge(now_ms, scene.policy.connection_rate, pings);
                let enforced = scene.policy.action != action::OBSERVE;
                passed = if enforced && kept < passed { kept } else { passed };
                flow.ping_ns = if precise != 0 { precise } else { flow.ping_ns };
            }
            flow.commit(&plan.start, walk, passed);
            flow.last_ns = scene.now;
            committed = true;
        }
        bpf_spin_unlock((&raw mut flow.lock).cast());
    }
    if committed { Some(passed) } else { None }
}

/// The flow has taken the segment: charge the source for its pings, count, and let it go.
#[inline(always)]
fn settle<P: Packet>(
    scene: &Scene,
    flow: &mut Flow,
    start: &Tracker,
    mut walker: Walker<P>,
    passed: u32,
    share: u32,
) -> Verdict {
    let pings = walker.walk.pings;
    count_walk(scene, start, &walker.walk);
    if pings == 0 {
        finish(scene, &mut walker.packet);
        return Verdict::Pass;
    }
    let first = if pings < walker.walk.budget { pings } else { walker.walk.budget };
    let charged = sources::charge(&scene.segment.source, scene.policy, scene.now, pings, share);
    let kept = if charged.passed < passed { charged.passed } else { passed };
    let kept = if scene.enforces() { kept } else { pings };
    if kept < passed {
        take_back(flow, passed - kept);
    }
    if kept < pings {
        report::add(Counter::Defused, (pings - kept) as u64);
        if scene.policy.action == action::DROP && charged.passed < pings {
            return scene.drop(Counter::DroppedThrottled);
        }
    }
    if kept < first {
        // The walk let more pass than the charge does: go again with what is now known.
        let mut walk = Walk::new(*start, start, scene.segment.seq, scene.segment.len);
        walk.budget = kept;
        walker.walk = walk;
        walker.run_on();
    }
    finish(scene, &mut walker.packet);
    Verdict::Pass
}

/// Fewer pings pass than the flow was told.
#[inline(always)]
fn take_back(flow: &mut Flow, pings: u32) {
    // SAFETY: the lock guards the flow; nothing but plain code runs under it.
    unsafe {
        bpf_spin_lock((&raw mut flow.lock).cast());
        flow.take_back(pings);
        bpf_spin_unlock((&raw mut flow.lock).cast());
    }
}

/// Put the checksum right.
#[inline(always)]
fn finish<P: Packet>(scene: &Scene, packet: &mut P) {
    let rewritten = packet.seal(scene.segment);
    if rewritten > 0 {
        report::add(Counter::Rewritten, rewritten as u64);
    }
}

/// Count what a walk found.
#[inline(always)]
fn count_walk(scene: &Scene, start: &Tracker, walk: &Walk) {
    let Some(counters) = report::counters() else {
        return;
    };
    let events = &mut counters.events;
    events[Counter::Frames as usize] += walk.frames as u64;
    events[Counter::Pings as usize] += walk.pings as u64;
    events[Counter::Pongs as usize] += walk.pongs as u64;
    events[Counter::Coalesced as usize] += walk.coalesces() as u64;
    events[Counter::SplitHeaders as usize] += walk.splits_header(start) as u64;
    events[Counter::SplitFrames as usize] += walk.splits_frame() as u64;
    report::violation_event(Side::Client, scene.key, walk, scene.now);
}

/// A retransmission of bytes that the server has not acknowledged.
#[inline(always)]
fn again<P: Packet>(scene: &Scene, flow: &mut Flow, plan: &Plan, payload: P) -> Verdict {
    let segment = scene.segment;
    report::count(Counter::Rewalked);
    let known = flow.client;
    // First only look: nothing is rewritten as long as nobody knows what may pass.
    let mut dry = Walk::new(plan.start, &known, segment.seq, segment.len);
    dry.old_budget = Walk::UNLIMITED;
    dry.budget = Walk::UNLIMITED;
    let mut walker = Walker::new(dry, payload);
    if !matches!(walker.run_on(), Step::Done) {
        return scene.drop(Counter::DroppedUnreadable);
    }
    match flow.rewalk_budget(plan.checkpoint, &walker.walk) {
        Rewalk::Refuse => scene.drop(Counter::DroppedChanged),
        Rewalk::New => {
            if !rewind(flow, &known, plan) {
                return scene.drop(Counter::DroppedUnreadable);
            }
            walker.walk = Walk::new(plan.start, &plan.start, segment.seq, segment.len);
            fresh(scene, flow, plan, walker)
        }
        Rewalk::Same(old) => {
            let mut walk = Walk::new(plan.start, &known, segment.seq, segment.len);
            let joined = walker.walk.joined;
            walk.old_budget = if scene.enforces() { old } else { Walk::UNLIMITED };
            walker.walk = walk;
            let mut step = walker.run_on();
            let mut share = 0;
            if matches!(step, Step::Ask) {
                (walker.walk.budget, share) = budget(scene, flow);
                step = walker.run_on();
            }
            if !matches!(step, Step::Done) {
                return scene.drop(Counter::DroppedUnreadable);
            }
            if !joined {
                finish(scene, &mut walker.packet);
                return Verdict::Pass;
            }
            let plan = Plan { start: known, ..*plan };
            match commit(scene, flow, &plan, &walker.walk) {
                Some(passed) => settle(scene, flow, &known, walker, passed, share),
                None => scene.drop(Counter::DroppedUnreadable),
            }
        }
    }
}

/// Other bytes take the place of those from the plan's checkpoint on.
#[inline(always)]
fn rewind(flow: &mut Flow, known: &Tracker, plan: &Plan) -> bool {
    // SAFETY: the lock guards the flow; nothing but plain code runs under it.
    unsafe {
        bpf_spin_lock((&raw mut flow.lock).cast());
        let unchanged = flow.client == *known && flow.starts_at(plan.checkpoint, &plan.start);
        if unchanged {
            flow.rewind(plan.checkpoint);
        }
        bpf_spin_unlock((&raw mut flow.lock).cast());
        unchanged
    }
}

/// The flow lost step: look whether headers start in this segment.
#[inline(always)]
fn probe<P: Packet>(scene: &Scene, flow: &mut Flow, payload: P) -> Verdict {
    let segment = scene.segment;
    if scene.enforces() && sources::any_throttled(scene.now) {
        let key = sources::of(&segment.source, scene.policy);
        if let Some(source) = sources::find(&key) {
            if sources::is_throttled(source, &segment.source, scene.policy, scene.now) {
                // What cannot be followed cannot be defused either.
                return scene.drop(Counter::DroppedUnsynced);
            }
        }
    }
    let start = flow.probe_start(segment.seq, segment.len);
    let mut walk = Walk::new(start, &start, segment.seq, segment.len);
    walk.budget = Walk::UNLIMITED;
    let mut walker = Walker::new(walk, payload);
    if !matches!(walker.run_on(), Step::Done) {
        return Verdict::Pass;
    }
    let mut resynced = false;
    // SAFETY: the lock guards the flow; nothing but plain code runs under it.
    unsafe {
        bpf_spin_lock((&raw mut flow.lock).cast());
        if flow.state == state::UNSYNCED {
            resynced = flow.probed(&start, &walker.walk);
            flow.last_ns = scene.now;
        }
        bpf_spin_unlock((&raw mut flow.lock).cast());
    }
    if resynced {
        report::count(Counter::FlowsResynced);
    }
    Verdict::Pass
}
