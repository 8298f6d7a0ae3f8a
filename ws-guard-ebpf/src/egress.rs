//! The server's side: what it acknowledges, what it answers.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    programs::TcContext,
};
use ws_guard_common::{
    flow::{Acknowledged, Flow, state},
    maps::{Counter, EventKind},
    seq::{after, later},
    tracker::{Segment, Step, Tracker, Walk},
};

use crate::{
    debug, handshake,
    ingress::{Scene, Verdict},
    maps::{self, FLOWS, PENDING, locked},
    packet::{self, ACK, FIN, Parsed, RST, SYN},
    report::{self, Side},
    skb::{SkbPayload, parse_skb},
    walk::{self, Walker},
};

/// How each HTTP/1.1 response begins.
const HTTP: u64 = u64::from_be_bytes(*b"HTTP/1.1");

/// The TC program.
#[inline(always)]
pub fn tc(ctx: &TcContext) -> i32 {
    report::count(Counter::EgressSeen);
    let verdict = match parse_skb(ctx, Side::Server) {
        Parsed::Tcp => follow(ctx),
        _ => Verdict::Pass,
    };
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn follow(ctx: &TcContext) -> Verdict {
    let Some(segment) = packet::segment() else {
        return Verdict::Pass;
    };
    let Some(policy) = maps::policy_of(segment.key.server_port) else {
        return Verdict::Pass;
    };
    let key = &segment.key;
    if segment.flags & (SYN | ACK) == SYN | ACK {
        // The server begins a new connection with these end points: the old one is gone.
        let _ = FLOWS.remove(key);
        let _ = PENDING.remove(key);
        return Verdict::Pass;
    }
    // SAFETY: no arguments, no effects.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let scene = Scene { key, segment, policy, now };
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        // SAFETY: map values stay mapped while a program runs. What is read without the lock is
        // compared with what stands there under it before anything is changed.
        let is_http = tracked(ctx, &scene, unsafe { &mut *flow });
        if !is_http {
            return Verdict::Pass;
        }
        // What opened the flow was no answer, but text in another one's body.
        let _ = FLOWS.remove(key);
    }
    if segment.len == 0 {
        return Verdict::Pass;
    }
    unknown(ctx, &scene)
}

/// Payload without a flow: it may be the 101 that opens one, with the server's first frames behind
/// it.
#[inline(always)]
fn unknown(ctx: &TcContext, scene: &Scene) -> Verdict {
    let verdict = handshake::answer(scene, SkbPayload::new(ctx, scene.segment, Side::Server));
    if verdict == Verdict::Pass
        && let Some(flow) = FLOWS.get_ptr_mut(scene.key)
    {
        debug::opened(ctx);
        // SAFETY: as in `follow`.
        frames(ctx, scene, unsafe { &mut *flow });
    }
    verdict
}

/// A packet of the server on a flow. `true` when the server does not speak WebSocket there.
#[inline(always)]
fn tracked(ctx: &TcContext, scene: &Scene, flow: &mut Flow) -> bool {
    let segment = scene.segment;
    report::count(Counter::EgressTracked);
    let end = segment.seq.wrapping_add(segment.len + (segment.flags & FIN));
    // A single word, and a connection's segments leave one after the other.
    flow.server_high = later(flow.server_high, end);
    if flow.state == state::CLOSED {
        return false;
    }
    if segment.flags & RST != 0 {
        locked(flow, |flow| {
            flow.state = state::CLOSED;
        });
        closed(scene, flow);
        return false;
    }
    if after(segment.ack, flow.acked) {
        acknowledge(scene, flow);
    }
    segment.len > 0 && !frames(ctx, scene, flow)
}

/// The server acknowledges more of the client's bytes.
#[inline(never)]
fn acknowledge(scene: &Scene, flow: &mut Flow) {
    let outcome = locked(flow, |flow| flow.acknowledge(scene.segment.ack));
    match outcome {
        Acknowledged::Fine => {}
        Acknowledged::Closed => closed(scene, flow),
        Acknowledged::Unsynced => {
            report::count(Counter::FlowsUnsynced);
            let unseen = scene.segment.ack.wrapping_sub(flow.client.resume());
            report::flow_event(EventKind::Unsynced, scene.key, scene.now, unseen as u64);
        }
    }
}

#[inline(always)]
fn closed(scene: &Scene, flow: &Flow) {
    report::count(Counter::FlowsClosed);
    report::flow_event(EventKind::FlowClosed, scene.key, scene.now, flow.frames_in);
}

/// Follow the server's frames. `false` when there is an HTTP response where one should begin.
#[inline(never)]
fn frames(ctx: &TcContext, scene: &Scene, flow: &mut Flow) -> bool {
    let segment = scene.segment;
    let start = flow.server;
    let end = segment.seq.wrapping_add(segment.len);
    if !after(end, start.resume()) {
        return true;
    }
    // The server is not hostile, and its segments leave in order. If some went another way, follow
    // it from here on: servers write whole frames.
    let start = if after(segment.seq, start.resume()) {
        Tracker::new(segment.seq, start.flags)
    } else {
        start
    };
    let Some(state) = walk::state() else {
        return true;
    };
    state.walk = Walk::new(start, &start, segment.seq, segment.len);
    state.walk.budget = Walk::UNLIMITED;
    let mut walker = Walker { state, packet: SkbPayload::new(ctx, segment, Side::Server) };
    if !matches!(walker.run(), Step::Done) {
        return true;
    }
    let walk = &walker.state.walk;
    // Read as a header, `HT` is a close frame with a bit that nothing defines.
    if walk.violations > 0 && walker.packet.u64_at(0) == Some(HTTP) {
        return false;
    }
    let mut asked = 0;
    // SAFETY: no arguments, no effects.
    let precise = if walk.pongs > 0 { unsafe { bpf_ktime_get_ns() } } else { 0 };
    locked(flow, |flow| {
        flow.server = walk.tracker;
        flow.frames_out += walk.frames as u64;
        flow.pongs_out += walk.pongs as u64;
        flow.violations += walk.violations as u64;
        if walk.pongs > 0 && flow.ping_ns != 0 && flow.ping_ns < precise {
            asked = flow.ping_ns;
            flow.ping_ns = 0;
            flow.heartbeat_rtt_us = ((precise - asked) / 1000) as u32;
        }
    });
    if asked != 0 {
        report::heartbeat(precise - asked);
    }
    report::add(Counter::FramesOut, walk.frames as u64);
    report::add(Counter::PongsOut, walk.pongs as u64);
    report::violation_event(Side::Server, scene.key, walk, scene.now);
    true
}
