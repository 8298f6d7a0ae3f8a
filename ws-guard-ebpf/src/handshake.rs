//! Requests on the client's side, answers on the server's; the answer opens the flow.

use core::ffi::{c_long, c_void};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_prandom_u32, bpf_loop},
};
use ws_guard_common::{
    flow::{self, Flow},
    handshake::{
        END, GET, HeadScanner, MAX_HEAD, PERMESSAGE_DEFLATE, SWITCHING, UPGRADE_WEBSOCKET,
    },
    maps::{Counter, EventKind, FLOWS_FAIL_CLOSED, FlowKey, Pending},
    seq::{after, before},
    tracker::{FROM_CLIENT, Step, Tracker, Walk},
};

use crate::{
    ingress::{Scene, Verdict},
    maps::{FLOWS, NEW_FLOW, NEW_PENDING, PENDING},
    packet::{Packet, Segment},
    report, role, sources, tables,
    walk::{self, Walker},
};

/// Read a head from the segment's start, to its end or the segment's, whichever comes first. The
/// result is in the state: `head`, and in `at` how many bytes were read.
#[inline(always)]
fn read_head<P: Packet>(walker: &mut Walker<P>, head: HeadScanner) {
    walker.state.head = head;
    walker.state.at = 0;
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = read_byte::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(MAX_HEAD, turn as *mut c_void, core::ptr::from_mut(walker).cast(), 0);
    }
}

unsafe extern "C" fn read_byte<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: `read_head` passed it, and nobody else uses it during the loop.
    let walker = unsafe { &mut *walker };
    let Some(byte) = walker.packet.u8_at(walker.state.at) else {
        return 1;
    };
    walker.state.at += 1;
    walker.state.head.push(byte) as c_long
}

/// The payload begins with these bytes.
#[inline(always)]
fn begins<P: Packet, const N: usize>(packet: &P, text: &[u8; N]) -> bool {
    let mut i = 0;
    while i < N {
        match packet.u16_at(i as u32) {
            Some(word) if word == u16::from_be_bytes([text[i], text[i + 1]]) => {}
            _ => return false,
        }
        i += 2;
    }
    true
}

/// Payload of a client without a flow: it may be a request that asks for an upgrade, or what
/// follows one.
#[inline(always)]
pub fn request<P: Packet>(scene: &Scene, packet: impl Fn() -> P) -> Verdict {
    match head(scene, packet()) {
        Head::Passes => Verdict::Pass,
        Head::OutOfOrder => out_of_order(scene),
        // Not called from there: two such functions on top of each other are too much stack.
        Head::Early => early(scene, packet()),
    }
}

/// What [`head`] makes of a segment.
enum Head {
    Passes,
    /// It does not continue the request that it belongs to.
    OutOfOrder,
    /// There may be frames in it, behind the head or after it.
    Early,
}

/// Read the head of a request.
#[cold]
#[inline(never)]
fn head<P: Packet>(scene: &Scene, packet: P) -> Head {
    let segment = scene.segment;
    let known = PENDING.get_ptr_mut(scene.key);
    let (scanner, length) = if begins(&packet, GET) {
        (HeadScanner::default(), 0)
    } else {
        let Some(pending) = known else {
            return Head::Passes;
        };
        // SAFETY: an LRU entry may be used again for another key meanwhile; then the sequence
        // numbers do not fit, and nothing worse than a missed request follows.
        let pending = unsafe { &mut *pending };
        if pending.head.found & END != 0 {
            return Head::Early;
        }
        if segment.seq != pending.next {
            return Head::OutOfOrder;
        }
        (pending.head, pending.length)
    };
    let Some(state) = walk::state() else {
        return Head::Passes;
    };
    let mut walker = Walker { state, packet };
    read_head(&mut walker, scanner);
    let (head, read) = (walker.state.head, walker.state.at);
    let length = length + read;
    let done = head.found & END != 0;
    let upgrade = head.found & UPGRADE_WEBSOCKET != 0;
    if (done && !upgrade) || length > MAX_HEAD {
        if known.is_some() {
            let _ = PENDING.remove(scene.key);
        }
        return Head::Passes;
    }
    let read_to = segment.seq.wrapping_add(read);
    let Some(new) = NEW_PENDING.get_ptr_mut(0) else {
        return Head::Passes;
    };
    // SAFETY: this CPU's scratch value; the helper has no arguments and no effects.
    let (new, mark) = unsafe { (&mut *new, bpf_get_prandom_u32()) };
    *new = Pending {
        head,
        length,
        next: read_to,
        request_end: read_to,
        early: Tracker { mark, ..Tracker::new(read_to, FROM_CLIENT) },
        mark,
        ..Pending::default()
    };
    if PENDING.insert(scene.key, &*new, BPF_ANY.into()).is_err() || !done {
        return Head::Passes;
    }
    if read >= segment.len { Head::Passes } else { Head::Early }
}

/// A segment that does not continue a pending request: old bytes pass, a gap has to be filled
/// first.
#[inline(always)]
fn out_of_order(scene: &Scene) -> Verdict {
    let Some(pending) = PENDING.get_ptr_mut(scene.key) else {
        return Verdict::Pass;
    };
    // SAFETY: as in `head`.
    let pending = unsafe { &*pending };
    let end = scene.segment.seq.wrapping_add(scene.segment.len);
    if !after(end, pending.next) || !scene.enforces() {
        return Verdict::Pass;
    }
    report::count(Counter::DroppedEarly);
    Verdict::Drop
}

/// Frames that a client sends before the server's answer (which RFC 6455, 4.1 forbids): follow
/// them, and let no more pings pass than a connection's share.
#[cold]
#[inline(never)]
fn early<P: Packet>(scene: &Scene, packet: P) -> Verdict {
    let Some(pending) = PENDING.get_ptr_mut(scene.key) else {
        return Verdict::Pass;
    };
    // SAFETY: as in `head`.
    let pending = unsafe { &mut *pending };
    let segment = scene.segment;
    let end = segment.seq.wrapping_add(segment.len);
    if after(segment.seq, pending.next) || !after(end, pending.next) {
        return out_of_order(scene);
    }
    // A retransmitted request with frames behind it that differ from the first ones' would have to
    // be walked again: it is not, the bytes before `next` are taken for what they were.
    if before(segment.seq, pending.next) && pending.frames > 0 {
        return out_of_order(scene);
    }
    let Some(state) = walk::state() else {
        return Verdict::Pass;
    };
    state.walk = Walk::new(pending.early, &pending.early, segment.seq, segment.len);
    let share = scene.policy.share;
    let room = share.saturating_sub(pending.pings);
    state.walk.budget = if scene.enforces() { room } else { Walk::UNLIMITED };
    let mut walker = Walker { state, packet };
    if !matches!(walker.run_on(), Step::Done) {
        return scene.drop(Counter::DroppedUnreadable);
    }
    let walk = &walker.state.walk;
    let passed = if walk.pings < walk.budget { walk.pings } else { walk.budget };
    pending.early = walk.tracker;
    pending.next = end;
    pending.frames += walk.frames;
    pending.pings += walk.pings;
    pending.passed += passed;
    pending.violations += walk.violations;
    let (even, odd) = (walker.state.even, walker.state.odd);
    if even + odd > 0 {
        walker.packet.seal(segment, even, odd);
        report::add(Counter::Rewritten, (even + odd) as u64);
    }
    Verdict::Pass
}

/// Payload of the server without a flow. [`Verdict::Drop`] refuses the connection.
#[inline(always)]
pub fn answer<P: Packet>(scene: &Scene, packet: P) -> Verdict {
    if switches(scene, packet) { open(scene) } else { Verdict::Pass }
}

/// The segment ends the head of a 101 that switches to WebSocket. What was read of the head is then
/// in this CPU's state.
#[cold]
#[inline(never)]
fn switches<P: Packet>(scene: &Scene, packet: P) -> bool {
    let (key, segment) = (scene.key, scene.segment);
    let known = PENDING.get_ptr_mut(key);
    let mut length = 0;
    let scanner = if begins(&packet, SWITCHING) {
        HeadScanner::default()
    } else {
        let Some(pending) = known else {
            return false;
        };
        // SAFETY: as in `head`.
        let pending = unsafe { &*pending };
        if pending.answer_length == 0 || pending.answer_next != segment.seq {
            // Any other answer: no upgrade.
            let _ = PENDING.remove(key);
            return false;
        }
        length = pending.answer_length;
        pending.answer
    };
    let Some(state) = walk::state() else {
        return false;
    };
    let mut walker = Walker { state, packet };
    read_head(&mut walker, scanner);
    let (head, read) = (walker.state.head, walker.state.at);
    length += read;
    if head.found & END == 0 {
        remember(key, segment, &head, length, read);
        return false;
    }
    if head.found & UPGRADE_WEBSOCKET == 0 {
        let _ = PENDING.remove(key);
        return false;
    }
    true
}

/// The head of a 101 goes on in the next segment.
#[inline(always)]
fn remember(key: &FlowKey, segment: &Segment, scanner: &HeadScanner, length: u32, read: u32) {
    if length > MAX_HEAD {
        let _ = PENDING.remove(key);
        return;
    }
    let Some(new) = NEW_PENDING.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's scratch value.
    let new = unsafe { &mut *new };
    *new = match PENDING.get_ptr_mut(key) {
        // SAFETY: as in `head`.
        Some(pending) => unsafe { *pending },
        None => Pending::default(),
    };
    new.answer = *scanner;
    new.answer_length = length;
    new.answer_next = segment.seq.wrapping_add(read);
    let _ = PENDING.insert(key, &*new, BPF_ANY.into());
}

/// The server has answered: from here on the connection is followed.
#[cold]
#[inline(never)]
fn open(scene: &Scene) -> Verdict {
    let Scene { key, segment, policy, now } = *scene;
    let Some(state) = walk::resume() else {
        return Verdict::Pass;
    };
    let server_next = segment.seq.wrapping_add(state.at);
    let deflate = state.head.found & PERMESSAGE_DEFLATE != 0;
    let Some(new) = NEW_FLOW.get_ptr_mut(0) else {
        return Verdict::Pass;
    };
    // SAFETY: this CPU's scratch value, of a flow's size and alignment; all zero is a flow.
    let flow = unsafe {
        *new = [0; size_of::<Flow>() / 8];
        &mut *new.cast::<Flow>()
    };
    // SAFETY: no arguments, no effects.
    flow.generation = unsafe { bpf_get_prandom_u32() };
    flow.owner = role::own();
    let flags = if deflate { flow::DEFLATE } else { 0 };
    let mut early_pings = 0;
    match PENDING.get_ptr_mut(key) {
        // SAFETY: as in `head`.
        Some(pending) if unsafe { (*pending).head.found } & END != 0 => {
            // SAFETY: as in `head`.
            let pending = unsafe { &*pending };
            flow.open(pending.request_end, server_next, flags, now);
            flow.adopt_early(pending, segment.ack);
            early_pings = pending.pings;
        }
        _ => {
            report::count(Counter::RequestsUnseen);
            flow.open(segment.ack, server_next, flags | flow::REQUEST_UNSEEN, now);
        }
    }
    let _ = PENDING.remove(key);
    let inserted = FLOWS.insert(key, &*flow, BPF_ANY.into()).is_ok()
        || (tables::reclaim_flows(now) && FLOWS.insert(key, &*flow, BPF_NOEXIST.into()).is_ok());
    if !inserted {
        report::count(Counter::FlowsRefused);
        report::source_event(EventKind::TableFull, &key.client, now, 0, 0);
        let closed = policy.flags & FLOWS_FAIL_CLOSED != 0 && scene.enforces();
        return if closed { Verdict::Drop } else { Verdict::Pass };
    }
    report::count(Counter::FlowsOpened);
    report::flow_event(EventKind::FlowOpened, key, now, 0);
    if early_pings > 0 {
        report::add(Counter::Pings, early_pings as u64);
        sources::charge(&key.client, policy, now, early_pings, early_pings);
    }
    Verdict::Pass
}
