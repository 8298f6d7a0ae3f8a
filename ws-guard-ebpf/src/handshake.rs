//! Requests on the client's side, answers on the server's; the answer opens the flow.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{
    flow,
    handshake::{
        END, GET, HeadScanner, MAX_HEAD, PERMESSAGE_DEFLATE, SWITCHING, UPGRADE_WEBSOCKET,
    },
    maps::{Counter, LOST, Pending},
};

use crate::{
    packet::{Packet, Segment},
    report, requests, role,
    scene::{Scene, Verdict, throttled},
    tables,
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
    let ends = walker.state.head.push(byte);
    let upgrade = walker.state.head.found & UPGRADE_WEBSOCKET != 0;
    if ends && !upgrade && walker.packet.u8_at(walker.state.at) == Some(GET[0]) {
        // The next request is right behind it (RFC 9112, 9.3.2).
        walker.state.head = HeadScanner::default();
        return 0;
    }
    ends as c_long
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
///
/// Empty lines in front are to be ignored (RFC 9112, 2.2).
#[inline(always)]
fn begins_request<P: Packet>(packet: &P) -> bool {
    let bytes = packet.bytes();
    if packet.u8_at(0).is_some_and(|byte| byte == b'\r' || byte == b'\n') {
        return true;
    }
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

/// What a client's segment on a connection without a flow is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A request, or a piece of it.
    Head,
    /// Data between a request and its answer, or a piece of the request that is not the next one.
    Early,
    /// Neither.
    Stranger,
}

/// Payload of a client without a flow: it may be a request that asks for an upgrade. Read its head.
///
/// It is read in order alone. What the guard lets by unread, further off, the server does not take:
/// its window is no larger at that time.
#[cold]
#[inline(never)]
pub fn request<P: Packet>(scene: &Scene, packet: P) -> Request {
    let segment = scene.segment;
    let mut known = requests::find();
    let (scanner, length) = match &mut known {
        None if begins_request(&packet) => (HeadScanner::default(), 0),
        None => return Request::Stranger,
        Some(pending) => {
            if pending.flags & LOST != 0 {
                return Request::Stranger;
            }
            if !role::claims(&mut pending.owner) {
                return Request::Head;
            }
            if segment.seq != pending.next {
                // Another piece of this request, or one of nobody knows what. The server may have old
                // bytes, or keep what comes behind a gap: only in order is certain what it reads.
                let distance = segment.seq.wrapping_sub(pending.next).wrapping_add(MAX_HEAD);
                return if distance < 2 * MAX_HEAD { Request::Early } else { Request::Stranger };
            }
            if pending.head.found & END != 0 {
                return Request::Early;
            }
            (pending.head, pending.length)
        }
    };
    let Some(state) = walk::state() else {
        return Request::Head;
    };
    let mut walker = Walker { state, packet };
    read_head(&mut walker, scanner);
    let (head, read) = (walker.state.head, walker.state.at);
    let length = length + read;
    let done = head.found & END != 0;
    let upgrade = head.found & UPGRADE_WEBSOCKET != 0;
    if length > MAX_HEAD {
        if let Some(pending) = known {
            pending.flags |= LOST;
            requests::keep();
        }
        return Request::Stranger;
    }
    if done && !upgrade {
        if known.is_some() {
            requests::answered();
        }
        return Request::Head;
    }
    let Some(new) = requests::scratch() else {
        return Request::Head;
    };
    if read < segment.len && scene.enforces() {
        // There is data behind the head: the request has to come again without it.
        return Request::Early;
    }
    let next = segment.seq.wrapping_add(segment.len);
    let (owner, claimed) = (role::own(), segment.ack);
    *new = Pending { head, length, next, owner, claimed, ..Pending::default() };
    requests::keep();
    Request::Head
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
    let segment = scene.segment;
    let mut length = 0;
    let scanner = if begins(&packet, SWITCHING) {
        HeadScanner::default()
    } else {
        let Some(pending) = requests::find() else {
            return false;
        };
        if pending.answer_length == 0 || pending.answer_next != segment.seq {
            // Any other answer: no upgrade.
            requests::answered();
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
        remember(segment, &head, length, read);
        return false;
    }
    if head.found & UPGRADE_WEBSOCKET == 0 {
        requests::answered();
        return false;
    }
    true
}

/// The head of a 101 goes on in the next segment.
#[inline(always)]
fn remember(segment: &Segment, scanner: &HeadScanner, length: u32, read: u32) {
    if length > MAX_HEAD {
        requests::answered();
        return;
    }
    let Some(new) = requests::scratch() else {
        return;
    };
    if !requests::is_under_way() {
        *new = Pending::default();
    }
    new.answer = *scanner;
    new.answer_length = length;
    new.answer_next = segment.seq.wrapping_add(read);
    requests::keep();
}

/// The server has answered: from here on the connection is followed.
#[cold]
#[inline(never)]
fn open(scene: &Scene) -> Verdict {
    let Scene { segment, now, .. } = *scene;
    let Some(state) = walk::resume() else {
        return Verdict::Pass;
    };
    let server_next = segment.seq.wrapping_add(state.at);
    let deflate = state.head.found & PERMESSAGE_DEFLATE != 0;
    let Some(flow) = tables::new_flow() else {
        return Verdict::Pass;
    };
    let flags = if deflate { flow::DEFLATE } else { 0 };
    let followed = requests::find().filter(|pending| {
        pending.flags & LOST == 0 && pending.head.found & END != 0 && pending.next == segment.ack
    });
    if followed.is_some() {
        flow.open(segment.ack, server_next, flags, now);
    } else {
        report::count(Counter::RequestsUnseen);
        if throttled(scene) {
            // It may have sent pings that nobody saw, and the server has taken them.
            return scene.drop(Counter::DroppedUnseen);
        }
        flow.open(segment.ack, server_next, flags | flow::REQUEST_UNSEEN, now);
    }
    flow.server_high = segment.seq.wrapping_add(segment.len);
    tables::admit(scene)
}
