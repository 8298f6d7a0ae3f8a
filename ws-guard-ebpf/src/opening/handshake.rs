//! Upgrade requests and their answers; the answer opens the flow.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{
    flow,
    handshake::{
        END, GET, HeadScanner, INTERIM, MAX_HEAD, METHODS, PERMESSAGE_DEFLATE, PROXY, SWITCHING,
        UPGRADE_WEBSOCKET, has_line_end,
    },
    maps::{Counter, LOST, MAY_BAN, Pending, judged},
};

use crate::{
    context::{Context, Verdict, throttled},
    limits::sources,
    opening::{identify, pending_upgrades, role},
    packet::{self, Packet, Segment},
    report,
    stream::walk::{self, Walker},
    tables,
};

/// Words that [`skip_line`] reads per turn of the loop.
const SKIPPED_WORDS: u32 = 7;

/// Read an answer's head from the segment's start to its end or the segment's, whichever comes
/// first. The result is in the state: `head`, and in `at` the number of bytes read.
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
    // SAFETY: passed by `read_head`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let Some(byte) = walker.packet.u8_at(walker.state.at) else {
        return 1;
    };
    walker.state.at += 1;
    walker.state.head.push(byte) as c_long
}

/// Context of the loop over a request's bytes.
struct Reading<'a, 'b, P> {
    walker: Walker<P>,
    context: &'a Context<'b>,
}

/// Continue reading the request in [`pending_upgrades::scratch`] from the segment's start. In the
/// state: `at` is the number of bytes read, and `read` the last result of [`identify::read`].
#[inline(always)]
fn read_request<P: Packet>(reading: &mut Reading<P>, patience: u32) {
    reading.walker.state.at = 0;
    reading.walker.state.patience = patience;
    reading.walker.state.read = identify::MORE;
    let turn: unsafe extern "C" fn(u32, *mut Reading<P>) -> c_long = request_word::<P>;
    // SAFETY: the callback gets `reading` back, which outlives the loop.
    unsafe {
        bpf_loop(MAX_HEAD, turn as *mut c_void, core::ptr::from_mut(reading).cast(), 0);
    }
}

unsafe extern "C" fn request_word<P: Packet>(_index: u32, reading: *mut Reading<P>) -> c_long {
    // SAFETY: passed by `read_request`, with no other user during the loop.
    let reading = unsafe { &mut *reading };
    let (packet, state) = (&reading.walker.packet, &mut *reading.walker.state);
    state.at += identify::skip_fields(packet.bytes().saturating_sub(state.at));
    let (word, count) = match packet.u64_at(state.at) {
        Some(word) => (word, 8),
        None => match packet.u8_at(state.at) {
            Some(byte) => (u64::from(byte) << 56, 1),
            None => return 1,
        },
    };
    let taken = identify::read(word, count, reading.context.policy);
    state.at += taken.bytes();
    state.read = taken.came_to();
    if state.patience >= taken.costs() {
        state.patience -= taken.costs();
    } else if !give_up_client() {
        state.read = identify::TOO_COSTLY;
    }
    if taken.at_once() {
        skip_line(packet, state);
    }
    if state.read != identify::END {
        return (state.read != identify::MORE) as c_long;
    }
    let Some(pending) = pending_upgrades::scratch() else {
        return 1;
    };
    let upgrade = pending.head.found & UPGRADE_WEBSOCKET != 0;
    if !upgrade && reading.walker.packet.u8_at(state.at) == Some(GET[0]) {
        // The next request follows immediately (RFC 9112, 9.3.2).
        pending.begin();
        state.read = identify::MORE;
        return 0;
    }
    1
}

/// Continue without the client of a request that takes too long to read, see
/// [`Pending::give_up_client`].
#[inline(always)]
fn give_up_client() -> bool {
    pending_upgrades::scratch().is_some_and(Pending::give_up_client)
}

/// Skip the next words of a line whose rest does not matter.
#[inline(always)]
fn skip_line<P: Packet>(packet: &P, state: &mut walk::State) {
    let mut i = 0;
    while i < SKIPPED_WORDS {
        match packet.u64_near(state.at) {
            Some(word) if !has_line_end(word) => state.at += 8,
            _ => return,
        }
        i += 1;
    }
}

/// Check whether the payload begins with these bytes.
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

/// Check whether the payload begins with these four bytes, or is a prefix of them.
#[inline(always)]
fn begins_word<P: Packet>(packet: &P, word: &[u8; 4]) -> bool {
    let bytes = packet.bytes();
    if bytes >= word.len() as u32 {
        return begins(packet, word);
    }
    let mut i = 0;
    while i < word.len() - 1 {
        if (i as u32) < bytes && packet.u8_at(i as u32) != Some(word[i]) {
            return false;
        }
        i += 1;
    }
    true
}

/// Check whether the payload begins a request: with [`GET`] or a prefix of it.
///
/// Empty lines in front are to be ignored (RFC 9112, 2.2). Version 2 of the PROXY protocol begins
/// like them.
#[inline(always)]
fn begins_request<P: Packet>(packet: &P) -> bool {
    if packet.u8_at(0).is_some_and(|byte| byte == b'\r' || byte == b'\n') {
        return true;
    }
    begins_word(packet, GET)
}

/// Check whether a connection's first payload begins with a header of the PROXY protocol.
#[inline(never)]
pub fn begins_preface<P: Packet>(packet: &P) -> bool {
    packet.u8_at(0) == Some(b'\r') || begins_word(packet, PROXY)
}

/// Kind of a client's segment on a connection without a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A request, or a piece of it.
    Head,
    /// Data between a request and its answer, or a piece of the request that is not the next one.
    Early,
    /// A request of a banned source.
    Banned,
    /// None of these.
    Stranger,
}

/// Read the head of a request for an upgrade, if a client's payload without a flow is one.
///
/// Only in order, and from the connection's first byte on: data in front of that is dropped. Unread
/// passes what is more than [`MAX_HEAD`] ahead of a pending request, and what follows an answer.
#[cold]
#[inline(never)]
pub fn request<P: Packet>(context: &Context, packet: P) -> Request {
    let segment = context.segment;
    let under_way = pending_upgrades::find().is_some();
    let judged = pending_upgrades::judge(context.policy.generation);
    if judged == judged::REFUSED {
        return Request::Early;
    }
    let Some(pending) = pending_upgrades::scratch() else {
        return Request::Stranger;
    };
    if under_way {
        match piece(context, pending, &packet) {
            Request::Head => {}
            // Its owner and its rest are of no interest.
            other => return other,
        }
        if !role::claims(&mut pending.owner) {
            return Request::Head;
        }
    } else if judged != judged::BEGINS || !begin(segment, pending, &packet) {
        return Request::Stranger;
    }
    let Some(state) = walk::state() else {
        return Request::Head;
    };
    let mut reading = Reading { walker: Walker { state, packet }, context };
    let trusted = identify::trusts(&segment.key.client, context.policy.proxies);
    read_request(&mut reading, pending.patience(segment.len, trusted));
    let (read, came_to) = (reading.walker.state.at, reading.walker.state.read);
    end(context, read, came_to)
}

/// Check whether the segment is the next piece of the pending request: then [`Request::Head`].
#[inline(always)]
fn piece<P: Packet>(context: &Context, pending: &mut Pending, packet: &P) -> Request {
    if pending.flags & LOST != 0 {
        return Request::Stranger;
    }
    if !role::follows(pending.owner) {
        return Request::Head;
    }
    let segment = context.segment;
    if segment.seq != pending.next {
        // Another piece of this request, or something unknown. The server may have old bytes, or
        // keep what follows a gap: only in order is it certain what it reads.
        let distance = segment.seq.wrapping_sub(pending.next).wrapping_add(MAX_HEAD);
        return if distance < 2 * MAX_HEAD { Request::Early } else { Request::Stranger };
    }
    let whole = pending.head.found & END != 0;
    if begins_another(packet, whole) && !pending_upgrades::is_first_request() {
        // No frame begins like this (RFC 6455, 5.1 and 5.2). Either what was taken for a request
        // was in the body of another one, or this is.
        pending.flags |= LOST;
        pending_upgrades::keep();
        return Request::Stranger;
    }
    if whole { Request::Early } else { Request::Head }
}

/// Check whether the payload begins with a request's method; GET counts only after a `whole`
/// request.
#[inline(always)]
fn begins_another<P: Packet>(packet: &P, whole: bool) -> bool {
    let (Some(high), Some(low)) = (packet.u16_at(0), packet.u16_at(2)) else {
        return false;
    };
    let word = (high as u32) << 16 | low as u32;
    let mut begins = whole && word == u32::from_be_bytes(*GET);
    let mut i = 0;
    while i < METHODS.len() {
        begins |= word == u32::from_be_bytes(*METHODS[i]);
        i += 1;
    }
    begins
}

/// Begin a request in the segment, or the preface of a connection's first one.
/// `false` where neither begins.
#[inline(always)]
fn begin<P: Packet>(segment: &Segment, pending: &mut Pending, packet: &P) -> bool {
    let request = begins_request(packet);
    // Only the first bytes of a connection are a preface: later ones may be the client's own.
    let first = (!request || packet.u8_at(0) == Some(b'\r')) && identify::is_first(segment);
    if !request && !(first && begins_preface(packet)) {
        return false;
    }
    pending.begin();
    if !first {
        pending.client.skip_preface();
    }
    true
}

/// Evaluate a segment after `read` bytes, the last of which returned `came_to`.
#[inline(never)]
fn end(context: &Context, read: u32, came_to: u32) -> Request {
    let segment = context.segment;
    let Some(pending) = pending_upgrades::scratch() else {
        return Request::Head;
    };
    pending.length += read;
    let done = came_to == identify::END;
    let upgrade = pending.head.found & UPGRADE_WEBSOCKET != 0;
    if pending.length > MAX_HEAD || came_to == identify::TOO_COSTLY {
        pending.flags |= LOST;
        pending_upgrades::keep();
        return Request::Stranger;
    }
    if came_to == identify::NO_REQUEST || done && !upgrade {
        pending_upgrades::answered();
        return if done { Request::Head } else { Request::Stranger };
    }
    if read < segment.len && context.enforces() {
        // Data follows the head: the request has to be retransmitted without it.
        return Request::Early;
    }
    if done && context.enforces() && pending_upgrades::comes_late() {
        // Data that was in front of it has passed: the server would read frames in it.
        return Request::Early;
    }
    if done && context.policy.flags & MAY_BAN != 0 && is_banned(context) {
        return Request::Banned;
    }
    pending.next = segment.seq.wrapping_add(segment.len);
    (pending.owner, pending.claimed) = (role::own(), segment.ack);
    pending_upgrades::keep();
    Request::Head
}

/// Check whether the request's client is banned.
#[inline(always)]
fn is_banned(context: &Context) -> bool {
    identify::conclude(false);
    sources::any_banned(context.now) && sources::drop_banned(context)
}

/// Judge the server's payload without a flow. [`Verdict::Drop`] refuses the connection.
#[inline(always)]
pub fn answer<P: Packet>(context: &Context, packet: P) -> Verdict {
    if switches(context, packet) { open(context) } else { Verdict::Pass }
}

/// Check whether the payload continues, after `from` bytes, an answer that may be a 101, however
/// few bytes it has.
#[inline(never)]
fn is_switching<P: Packet>(packet: &P, from: u32) -> bool {
    let bytes = packet.bytes();
    let mut i = 0;
    while i < SWITCHING.len() {
        let at = (i as u32).wrapping_sub(from);
        if at < bytes && packet.u8_at(at) != Some(SWITCHING[i]) {
            return false;
        }
        i += 1;
    }
    true
}

/// Check whether the segment ends the head of a 101 that switches to WebSocket.
/// The result of reading the head is then in this CPU's state.
#[cold]
#[inline(never)]
fn switches<P: Packet>(context: &Context, packet: P) -> bool {
    let segment = context.segment;
    let under_way = pending_upgrades::is_under_way();
    let (Some(pending), Some(state)) = (pending_upgrades::scratch(), walk::state()) else {
        return false;
    };
    let goes_on = pending.answer_length != 0 && pending.answer_next == segment.seq;
    if !goes_on && pending.has_of_answer(segment.seq, segment.len) {
        return false;
    }
    let mut length = if goes_on { pending.answer_length } else { 0 };
    if !is_switching(&packet, length) {
        if under_way && !begins(&packet, INTERIM) {
            // Any other answer refuses the upgrade. An interim one is no answer (RFC 9110, 15.2).
            pending_upgrades::answered();
        }
        return false;
    }
    let scanner = if goes_on { pending.answer } else { HeadScanner::default() };
    let mut walker = Walker { state, packet };
    read_head(&mut walker, scanner);
    let (head, read) = (walker.state.head, walker.state.at);
    length += read;
    if head.found & END == 0 {
        remember(segment, &head, length, read);
        return false;
    }
    if head.found & UPGRADE_WEBSOCKET == 0 {
        pending_upgrades::answered();
        return false;
    }
    true
}

/// Keep the scanner of a 101 whose head continues in the next segment.
#[inline(always)]
fn remember(segment: &Segment, scanner: &HeadScanner, length: u32, read: u32) {
    if length > MAX_HEAD {
        pending_upgrades::answered();
        return;
    }
    let Some(new) = pending_upgrades::scratch() else {
        return;
    };
    pending_upgrades::is_under_way();
    new.answer = *scanner;
    new.answer_length = length;
    new.answer_next = segment.seq.wrapping_add(read);
    pending_upgrades::keep();
}

/// Open a flow for the answered request.
#[cold]
#[inline(never)]
fn open(context: &Context) -> Verdict {
    let Context { segment, now, .. } = *context;
    let Some(state) = walk::resume() else {
        return Verdict::Pass;
    };
    let server_next = segment.seq.wrapping_add(state.at);
    let deflate = state.head.found & PERMESSAGE_DEFLATE != 0;
    let Some(flow) = tables::new_flow() else {
        return Verdict::Pass;
    };
    let flags = if deflate { flow::DEFLATE } else { 0 };
    let known = pending_upgrades::find();
    let followed = known.as_ref().is_some_and(|pending| {
        pending.flags & LOST == 0 && pending.head.found & END != 0 && pending.next == segment.ack
    });
    if let (Some(pending), false) = (known, followed) {
        // Its headers were not read completely.
        pending.client.spoil();
    }
    identify::conclude(true);
    if followed {
        flow.open(segment.ack, server_next, flags, now);
        identify::suspect(context);
    } else {
        report::count(Counter::RequestsUnseen);
        if throttled(context) {
            // Pings may have passed unseen, and the server has taken them.
            let verdict = context.drop(Counter::DroppedUnseen);
            pending_upgrades::refuse(verdict == Verdict::Drop);
            return verdict;
        }
        pending_upgrades::refuse(false);
        flow.open(segment.ack, server_next, flags | flow::REQUEST_UNSEEN, now);
    }
    if let Some(account) = packet::account() {
        flow.account = *account;
    }
    flow.server_high = segment.seq.wrapping_add(segment.len);
    tables::admit(context)
}
