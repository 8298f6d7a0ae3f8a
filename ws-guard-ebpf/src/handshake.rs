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
    maps::{Counter, EventKind, FLOWS_FAIL_CLOSED, FlowKey, LOST, Pending, SourceKey},
    tracker::{FROM_CLIENT, Step, Tracker, Walk},
};

use crate::{
    ingress::{Scene, Verdict, throttled},
    maps::{FLOWS, NEW_FLOW, NEW_PENDING, PENDING},
    packet::{Packet, Segment},
    report, sources, tables,
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

/// The payload is the beginning of a request: [`GET`], or as much of it as there is.
#[inline(always)]
fn begins_request<P: Packet>(packet: &P) -> bool {
    let bytes = packet.bytes();
    if bytes >= GET.len() as u32 {
        return begins(packet, GET);
    }
    let mut i = 0;
    while i < GET.len() - 1 {
        if (i as u32) < bytes && packet.u8_at(i as u32) != Some(GET[i]) {
            return false;
        }
        i += 1;
    }
    true
}

/// Payload of a client without a flow: it may be a request that asks for an upgrade, or what
/// follows one.
#[inline(always)]
pub fn request<P: Packet>(scene: &Scene, packet: impl Fn() -> P) -> Verdict {
    match head(scene, packet()) {
        Head::Passes => Verdict::Pass,
        Head::Early => scene.drop(Counter::DroppedEarly),
        // Not called from there: two such functions on top of each other are too much stack.
        Head::EndsHere => behind_head(scene, packet()),
    }
}

/// What [`head`] makes of a segment.
enum Head {
    Passes,
    /// It comes after the head, and before the answer.
    Early,
    /// The head ends in it, and more follows.
    EndsHere,
}

/// Read the head of a request.
///
/// Whatever is not the next piece of it is lost to us: old bytes may be other ones than the server
/// took, and nothing is known from there on but what the answer acknowledges.
#[cold]
#[inline(never)]
fn head<P: Packet>(scene: &Scene, packet: P) -> Head {
    let segment = scene.segment;
    let known = PENDING.get_ptr_mut(scene.key);
    let (scanner, length) = match known {
        None if begins_request(&packet) => (HeadScanner::default(), 0),
        None => return Head::Passes,
        Some(pending) => {
            // SAFETY: an LRU entry may be used again for another key meanwhile; then the sequence
            // numbers do not fit, and nothing worse than a missed request follows.
            let pending = unsafe { &mut *pending };
            if pending.flags & LOST != 0 {
                return Head::Passes;
            }
            if segment.seq != pending.next {
                pending.flags |= LOST;
                return Head::Passes;
            }
            if pending.head.found & END != 0 {
                return Head::Early;
            }
            (pending.head, pending.length)
        }
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
    let Some(new) = NEW_PENDING.get_ptr_mut(0) else {
        return Head::Passes;
    };
    // SAFETY: this CPU's scratch value.
    let new = unsafe { &mut *new };
    let next = segment.seq.wrapping_add(segment.len);
    *new = Pending { head, length, next, ..Pending::default() };
    if PENDING.insert(scene.key, &*new, BPF_ANY.into()).is_err() || read >= segment.len {
        return Head::Passes;
    }
    Head::EndsHere
}

/// Frames in the segment that ends the head: let no more of their pings pass than a connection's
/// share.
///
/// RFC 6455, 4.1 forbids them. They are taken off the server's hands here because the request
/// cannot go on without them; where the answer acknowledges, a connection's frames begin.
#[cold]
#[inline(never)]
fn behind_head<P: Packet>(scene: &Scene, packet: P) -> Verdict {
    let segment = scene.segment;
    let (Some(pending), Some(state)) = (PENDING.get_ptr_mut(scene.key), walk::resume()) else {
        return Verdict::Pass;
    };
    // SAFETY: as in `head`.
    let pending = unsafe { &mut *pending };
    let start = Tracker::new(segment.seq.wrapping_add(state.at), FROM_CLIENT);
    state.walk = Walk::new(start, &start, segment.seq, segment.len);
    state.walk.budget = if scene.enforces() { scene.policy.share } else { Walk::UNLIMITED };
    (state.even, state.odd) = (0, 0);
    let mut walker = Walker { state, packet };
    if !matches!(walker.run_on(), Step::Done) {
        return scene.drop(Counter::DroppedUnreadable);
    }
    let walk = &walker.state.walk;
    pending.frames = walk.frames;
    pending.pings = walk.pings;
    pending.passed = if walk.pings < walk.budget { walk.pings } else { walk.budget };
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
    let flags = if deflate { flow::DEFLATE } else { 0 };
    let mut early = 0;
    let pending = PENDING.get_ptr_mut(key);
    // SAFETY: as in `head`.
    let followed = pending.map(|pending| unsafe { &*pending }).filter(|pending| {
        pending.flags & LOST == 0 && pending.head.found & END != 0 && pending.next == segment.ack
    });
    if let Some(pending) = followed {
        flow.open(segment.ack, server_next, flags, now);
        flow.frames_in = pending.frames as u64;
        flow.pings_in = pending.pings as u64;
        flow.defused = (pending.pings - pending.passed) as u64;
        early = pending.pings;
    } else {
        report::count(Counter::RequestsUnseen);
        if throttled(scene) {
            // It may have sent pings that nobody saw, and the server has taken them.
            return scene.drop(Counter::DroppedUnseen);
        }
        flow.open(segment.ack, server_next, flags | flow::REQUEST_UNSEEN, now);
    }
    flow.server_high = segment.seq.wrapping_add(segment.len);
    let _ = PENDING.remove(key);
    let inserted = FLOWS.insert(key, &*flow, BPF_ANY.into()).is_ok()
        || (tables::reclaim_flows(now) && FLOWS.insert(key, &*flow, BPF_NOEXIST.into()).is_ok());
    if !inserted {
        report::count(Counter::FlowsRefused);
        let client = SourceKey { address: key.client, scope: policy.scope };
        report::source_event(EventKind::TableFull, &client, now, 0, 0);
        let closed = policy.flags & FLOWS_FAIL_CLOSED != 0 && scene.enforces();
        return if closed { Verdict::Drop } else { Verdict::Pass };
    }
    report::count(Counter::FlowsOpened);
    report::flow_event(EventKind::FlowOpened, key, now, 0);
    if early > 0 {
        report::add(Counter::Pings, early as u64);
        sources::charge(&key.client, policy, now, early, early);
    }
    Verdict::Pass
}
