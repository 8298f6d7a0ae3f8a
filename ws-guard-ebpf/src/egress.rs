//! The server's side: acknowledgements and answers.

use aya_ebpf::{
    bindings::{BPF_ANY, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use ws_guard_common::{
    flow::{Acknowledged, Flow, LONGEST_UNSEEN, hidden, paced, state},
    maps::{Beginning, Counter, End, EventKind, FlowKey, Unopened, syns},
    search::LONGEST,
    seq::{after, later},
    source::millis,
    tracker::{GUESSED, RSV1_AGREED, Segment, Step, Tracker, Walk},
};

use crate::{
    clock,
    context::{Context, Verdict},
    cpu, debug,
    limits::{at_hand, charge},
    maps::{self, BEGINNINGS, FLOWS, MIDSTREAM, locked},
    opening::{handshake, identify, pending_upgrades, role, scale},
    packet::{
        self, ACK, FIN, Parsed, RST, SYN, options,
        skb::{self, SkbPayload, parse_skb},
    },
    report::{self, Side},
    servers,
    stream::{heartbeat, midstream, tls, walk::Walker},
};

/// First bytes of every HTTP/1.1 response.
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
        begins(ctx, key, segment, policy.generation);
        return Verdict::Pass;
    }
    let now = clock::now();
    let flow = FLOWS.get_ptr_mut(key);
    let account = match flow {
        // SAFETY: a part of a map value, which stays mapped while a program runs.
        Some(flow) => unsafe { &raw const (*flow).account },
        None => match identify::peer() {
            Some(peer) => &raw const *peer,
            None => return Verdict::Pass,
        },
    };
    let context = Context { segment, policy, now, account };
    if let Some(flow) = flow {
        // SAFETY: map values stay mapped while a program runs. What is read without the lock is
        // compared under it before anything is changed.
        let is_http = tracked(ctx, &context, unsafe { &mut *flow });
        // SAFETY: as above. A server that has ended the connection says no more on it.
        let ends = unsafe { (*flow).hidden };
        if !is_http || ends & (hidden::SERVER_FIN | hidden::GONE) != 0 {
            return Verdict::Pass;
        }
        pending_upgrades::give_back(ends);
        // The flow was opened not by an answer, but by text in the body of another one.
        let _ = FLOWS.remove(key);
    }
    scale::confirm();
    if segment.len == 0 {
        pending_upgrades::prove(context.policy.generation);
        return Verdict::Pass;
    }
    unknown(ctx, &context)
}

/// Handle payload without a flow: perhaps the answer that opens one, followed by the server's first
/// frames.
#[inline(always)]
fn unknown(ctx: &TcContext, context: &Context) -> Verdict {
    let generation = context.policy.generation;
    let packet = SkbPayload::new(ctx, context.segment, Side::Server);
    if !context.is_tls() && pending_upgrades::asks_nothing(generation) {
        let switches = context.segment.len != 0 && handshake::is_switching(&packet, 0);
        let other = switches && pending_upgrades::answers();
        if !other && !pending_upgrades::awaits_body() {
            // Text of a body may look like a 101.
            pending_upgrades::prove(generation);
            return Verdict::Pass;
        }
        if other {
            // The server has read other requests.
            pending_upgrades::doubt();
        }
    }
    let verdict = match context.is_tls() {
        true => tls::answer(context, packet),
        false => handshake::answer(context, packet),
    };
    if verdict == Verdict::Drop {
        return verdict;
    }
    let Some(flow) = FLOWS.get_ptr_mut(context.key()) else {
        if SkbPayload::new(ctx, context.segment, Side::Server).u64_at(0) == Some(HTTP) {
            pending_upgrades::turn();
        }
        pending_upgrades::prove(generation);
        midstream::remember(context, SkbPayload::new(ctx, context.segment, Side::Server));
        return Verdict::Pass;
    };
    debug::opened(ctx);
    // SAFETY: as in `follow`.
    let flow = unsafe { &mut *flow };
    if context.segment.flags & FIN != 0 {
        ws_guard_server_ends(context.now);
    }
    if !frames(ctx, context, flow) && !begins_anew(ctx, context, flow) {
        let _ = FLOWS.remove(context.key());
        pending_upgrades::prove(generation);
        return Verdict::Pass;
    }
    charge_unseen(context);
    Verdict::Pass
}

/// Check whether another 101 follows text that looked like one, in the same segment: where the server's frames
/// begin behind that is unknown.
#[inline(always)]
fn begins_anew(ctx: &TcContext, context: &Context, flow: &mut Flow) -> bool {
    let segment = context.segment;
    let found = SkbPayload::new(ctx, segment, Side::Server).find_merged();
    if found {
        let next = segment.seq.wrapping_add(segment.len);
        flow.server = Tracker::new(next, flow.server.flags | GUESSED);
    }
    found
}

/// Handle the server's packet on a flow. `true` when the server does not speak WebSocket there.
#[inline(always)]
fn tracked(ctx: &TcContext, context: &Context, flow: &mut Flow) -> bool {
    let segment = context.segment;
    if !role::follows(flow.owner) {
        return false;
    }
    report::count(Counter::EgressTracked);
    if segment.flags & (RST | FIN) != 0 || flow.hidden & hidden::SERVER_FIN != 0 {
        ws_guard_server_ends(context.now);
    }
    if segment.len > 0 {
        // Behind its FIN the server says nothing more.
        if flow.hidden & hidden::SERVER_FIN == 0 {
            // A single word.
            flow.server_ms = millis(context.now);
        }
        servers::in_place(Side::Server, segment.seq, flow.server_high);
    }
    let resets = segment.flags & RST != 0;
    let end = segment.seq.wrapping_add(segment.len + (segment.flags & FIN));
    // A RST sends nothing. Without a branch: the verifier would follow both sides.
    let high = flow.server_high;
    let end = high.wrapping_add(end.wrapping_sub(high) & (resets as u32).wrapping_sub(1));
    // A single word, and a connection's segments leave one after the other.
    flow.server_high = later(high, end);
    // Other RSTs answer segments that do not belong to this connection (RFC 9293, 3.10.7.4).
    let resets = resets && segment.seq == flow.server_high;
    if resets || segment.flags & FIN != 0 {
        let end = if resets { End::ServerReset } else { End::ServerFin };
        servers::ended(end);
    }
    if resets && flow.state != state::CLOSED {
        locked(
            flow,
            #[inline(always)]
            |flow| flow.state = state::CLOSED,
        );
        closed(context, flow);
        return false;
    }
    // Also on a closed flow: if the client's end was forged, the server's acknowledgement shows it.
    if after(segment.ack, flow.acked) {
        acknowledge(context, flow);
    } else if segment.ack == flow.acked && !flow.has_repeated() {
        // A single word, as above.
        flow.repeated_ns = context.now;
    }
    if flow.may_be_limited() && flow.paced != paced::NO {
        skb::hold(ctx, context.now);
    }
    if segment.len == 0 {
        return false;
    }
    // Also on a closed flow: if it is open after all, nothing else shows where the server's frames
    // begin.
    let follows = frames(ctx, context, flow);
    charge_unseen(context);
    !follows
}

/// Charge the unseen pings that the segment's pongs reveal.
/// Not where those are counted: the stack is too small for both.
#[inline(always)]
fn charge_unseen(context: &Context) {
    let unseen = cpu::resume().map_or(0, |state| state.unseen);
    if unseen > 0 {
        midstream::witnessed(context, unseen);
    }
}

/// Take over the server's FIN or RST, see [`Flow::hear_server_end`], or what it sends behind its FIN:
/// [`Flow::hear_behind_end`].
///
/// A global function: the verifier checks it once, on its own.
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_server_ends(now: u64) -> u32 {
    let (Some((flow, _)), Some(segment)) = (at_hand(), packet::segment()) else {
        return 0;
    };
    let end = segment.seq.wrapping_add(segment.len + (segment.flags & FIN));
    locked(
        flow,
        #[inline(always)]
        |flow| {
            // Before what it takes now begins the wait anew: another connection may take it.
            flow.is_gone(now);
            if flow.hidden & hidden::SERVER_FIN != 0 && segment.len > 0 {
                flow.hear_behind_end(end, segment.len);
            }
            if segment.flags & (RST | FIN) != 0 {
                flow.hear_server_end(segment.seq, segment.flags & RST != 0, now);
            }
        },
    );
    0
}

/// Handle the server's SYN-ACK: a new connection, and the end of an older one with these end
/// points. Unless it is a repetition, as the server sends while the client is silent (RFC 7413).
#[cold]
#[inline(never)]
fn begins(ctx: &TcContext, key: &FlowKey, segment: &packet::Segment, generation: u32) {
    let (seq, ack) = (segment.seq, segment.ack);
    let options = skb::options(ctx);
    let (scale, stamps) = (options & 0xFF, (options >> 8) as u16);
    let again = match FLOWS.get_ptr(key) {
        // SAFETY: single words of a value that stays mapped while the program runs.
        Some(flow) => unsafe { (*flow).begins_again(seq, ack) },
        None => repeats(key, (seq, ack), scale, stamps),
    };
    // What passed before a repetition has passed.
    if !again {
        servers::ended(End::Silence);
        let _ = FLOWS.remove(key);
        pending_upgrades::forget();
        let _ = MIDSTREAM.remove(key);
        let (client_next, server_next) = (ack, seq);
        let syn = options::syn(ack, scale);
        let client_scale = syn as u8;
        let scale = scale as u8;
        let began = Beginning { client_next, server_next, scale, client_scale, stamps };
        let mut new = Unopened::new(began, generation);
        // Data of a SYN is not followed (RFC 7413).
        new.unread = (syn & syns::HAS_DATA != 0) as u8;
        let _ = BEGINNINGS.insert(key, &new, BPF_ANY.into());
    }
}

/// Check whether the SYN-ACK is one of a connection without a flow again, and take it over then.
#[inline(always)]
fn repeats(key: &FlowKey, (seq, ack): (u32, u32), scale: u32, stamp: u16) -> bool {
    let Some(unopened) = BEGINNINGS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: a map value. An LRU entry may be reused for another key meanwhile, and then the numbers do not match.
    let unopened = unsafe { &mut *unopened };
    let again = unopened.is_begun_by(seq, ack);
    if again {
        unopened.begins_again(scale, stamp);
    }
    again
}

/// Take over an acknowledgement of more of the client's bytes.
#[inline(never)]
fn acknowledge(context: &Context, flow: &mut Flow) {
    let now_ms = millis(context.now);
    let outcome = locked(flow, |flow| {
        // Without a branch, as above.
        let ended = u32::from((flow.hidden & hidden::SERVER_FIN) / hidden::SERVER_FIN);
        flow.server_ms ^= (flow.server_ms ^ now_ms) & ended.wrapping_neg();
        flow.acknowledge(context.segment.ack)
    });
    match outcome {
        Acknowledged::Fine => {}
        Acknowledged::Closed => closed(context, flow),
        Acknowledged::Unsynced => {
            report::count(Counter::FlowsUnsynced);
            let unseen = context.segment.ack.wrapping_sub(flow.client.resume());
            report::flow_event(EventKind::Unsynced, context.key(), context.now, unseen as u64);
        }
    }
}

#[inline(always)]
fn closed(context: &Context, flow: &mut Flow) {
    if flow.dropped != 0 {
        charge::settle_dropped(context, flow);
    }
    report::count(Counter::FlowsClosed);
    report::flow_event(EventKind::FlowClosed, context.key(), context.now, flow.frames_in);
}

/// Follow the server's frames; its records are of no interest.
/// `false` when an HTTP response begins where a frame should, or the first frame is none, on a connection
/// that may not be WebSocket.
#[inline(never)]
fn frames(ctx: &TcContext, context: &Context, flow: &mut Flow) -> bool {
    let Some(state) = cpu::resume() else {
        return true;
    };
    state.unseen = 0;
    if flow.in_records() || !has_news(context, flow) {
        return true;
    }
    let mut walker = Walker { state, packet: SkbPayload::new(ctx, context.segment, Side::Server) };
    // Inside a frame the client may have made the server send it.
    let begins = flow.may_be_http() && walker.state.walk.tracker.begins_at(context.segment.seq);
    if begins && walker.packet.u64_at(0) == Some(HTTP) {
        return false;
    }
    if matches!(walker.run(), Step::Done) {
        if !answered(context, flow) {
            return false;
        }
        heartbeat::server_walked(&walker.packet, flow);
    }
    true
}

/// Prepare a walk through the server's segment in this CPU's state, if a header may be in it.
#[inline(never)]
fn has_news(context: &Context, flow: &Flow) -> bool {
    let segment = context.segment;
    let mut start = flow.server;
    // Another connection has other numbers.
    let anew = flow.hidden & hidden::GONE != 0 && segment.seq != start.resume();
    let end = segment.seq.wrapping_add(segment.len);
    if !anew && !after(end, start.resume()) {
        return false;
    }
    if anew || after(segment.seq, start.resume()) {
        // The server is not hostile, and its segments leave in order. After a gap, because some
        // took another route, follow it from here on: servers write whole frames.
        start = Tracker::new(segment.seq, start.flags | GUESSED);
    }
    let Some(state) = cpu::state() else {
        return false;
    };
    state.walk = Walk::new(start, &start, segment.seq, segment.len);
    state.walk.budget = Walk::UNLIMITED;
    true
}

/// Commit a walk through the server's frames. `false` where its first one violates the protocol, on a
/// connection that may not be WebSocket: what opened the flow was text.
#[inline(never)]
fn answered(context: &Context, flow: &mut Flow) -> bool {
    let Some(state) = cpu::resume() else {
        return true;
    };
    let walk = &state.walk;
    let guessed = walk.tracker.flags & GUESSED != 0;
    // A server followed from its first frame may send long ones, but the client may have made it send what
    // looks like that.
    let followed = if guessed { LONGEST } else { u32::MAX >> 2 };
    let most = if flow.may_be_http() { LONGEST_UNSEEN } else { followed };
    // So it may behind a gap in the server's stream.
    let uncertain = flow.is_uncertain() || flow.hidden & hidden::GONE != 0 || guessed;
    if uncertain && (walk.violations > 0 || walk.claims_more_than(most)) {
        if flow.may_be_http() && walk.violations > 0 && flow.frames_out == 0 && !guessed {
            return false;
        }
        // The guess where its frames begin was wrong.
        let next = Tracker::new(walk.end(), walk.tracker.flags & RSV1_AGREED | GUESSED);
        locked(
            flow,
            #[inline(always)]
            |flow| flow.server = next,
        );
        return true;
    }
    let mut unseen = 0;
    locked(flow, |flow| {
        flow.server = walk.tracker;
        flow.frames_out += walk.frames as u64;
        flow.pongs_out += walk.pongs as u64;
        flow.violations += walk.violations as u64;
        unseen = flow.unseen_pings();
    });
    state.unseen = unseen;
    report::add(Counter::FramesOut, walk.frames as u64);
    report::add(Counter::PongsOut, walk.pongs as u64);
    report::violation_event(Side::Server, context.key(), walk, context.now);
    let splits_header = walk.tracker.carried != 0;
    servers::walked(Side::Server, walk.coalesces(), splits_header, walk.violations);
    true
}
