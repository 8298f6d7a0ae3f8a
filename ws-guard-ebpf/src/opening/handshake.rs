//! Upgrade requests and their answers; the answer opens the flow.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{
    flow,
    frame::MASK,
    handshake::{
        END, GET, HeadScanner, MAX_HEAD, MINOR, PERMESSAGE_DEFLATE, PROXY, SWITCHING,
        UPGRADE_WEBSOCKET, has_control, is_method,
    },
    maps::{ANSWERED, Counter, FAR, LOST, MAY_BAN, Pending, RESTARTED, is_frame, judged},
    offer::unread::FEW,
    seq::after,
    tracker::GUESSED,
    verifier::forget,
};

use crate::{
    context::{Context, Verdict, throttled},
    cpu,
    limits::{sources, unread},
    opening::{
        identify, merged,
        pending_upgrades::{self, Body},
        pieces, role,
    },
    packet::{self, FIN, Packet, Segment, skb::SkbPayload},
    report,
    stream::walk::Walker,
    tables,
};

/// Turns of the loop over a segment after which it reads no further request: what follows passes unread.
/// About ten requests of a browser, or a hundred of six bytes.
const PIPELINED: u32 = 400;

/// Words that [`skip_line`] reads per turn of the loop.
const SKIPPED_WORDS: u32 = 7;

/// Read an answer's head from offset `at` of the state to its end or the segment's, whichever comes
/// first, but no more than `most` bytes. The result is in the state: `head`, and `at` behind it.
#[inline(always)]
pub fn read_head<P: Packet>(walker: &mut Walker<P>, head: HeadScanner, most: u32) {
    walker.state.reading.head = head;
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = read_byte::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(most, turn as *mut c_void, core::ptr::from_mut(walker).cast(), 0);
    }
}

unsafe extern "C" fn read_byte<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `read_head`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let Some(byte) = walker.packet.u8_at(walker.state.reading.at) else {
        return 1;
    };
    walker.state.reading.at += 1;
    (forget(ws_guard_answer_byte(byte.into()), byte.into()) != 0) as c_long
}

/// Take a byte of an answer's head; 1 for its last one. A global function: the verifier checks it once, not
/// in each loop.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_answer_byte(byte: u32) -> u32 {
    cpu::resume().is_some_and(|state| state.reading.head.push(byte as u8)) as u32
}

/// Context of the loop over a request's bytes.
struct Reading<'a, 'b, P> {
    walker: Walker<P>,
    context: &'a Context<'b>,
}

/// Continue reading the request in [`pending_upgrades::scratch`] from offset `from` of the segment. In
/// the state: `at` is the offset behind what was read, and `read` the last result of
/// [`identify::read`].
#[inline(always)]
fn read_request<P: Packet>(reading: &mut Reading<P>, from: u32, patience: u32) {
    reading.walker.state.reading.at = from;
    reading.walker.state.reading.patience = patience;
    reading.walker.state.reading.read = identify::MORE;
    let turn: unsafe extern "C" fn(u32, *mut Reading<P>) -> c_long = request_word::<P>;
    // SAFETY: the callback gets `reading` back, which outlives the loop.
    unsafe {
        bpf_loop(MAX_HEAD, turn as *mut c_void, core::ptr::from_mut(reading).cast(), 0);
    }
}

unsafe extern "C" fn request_word<P: Packet>(index: u32, reading: *mut Reading<P>) -> c_long {
    // SAFETY: passed by `read_request`, with no other user during the loop.
    let reading = unsafe { &mut *reading };
    let (packet, state) = (&reading.walker.packet, &mut *reading.walker.state);
    state.reading.at += identify::skip_fields(packet.bytes().saturating_sub(state.reading.at));
    let (word, count) = match packet.u64_at(state.reading.at) {
        Some(word) => (word, 8),
        None => match packet.u8_at(state.reading.at) {
            Some(byte) => (u64::from(byte) << 56, 1),
            None => return 1,
        },
    };
    let taken = identify::read(word, count, reading.context.policy);
    state.reading.at += taken.bytes();
    state.reading.read = taken.came_to();
    if state.reading.patience >= taken.costs() {
        state.reading.patience -= taken.costs();
    } else {
        state.reading.patience = give_up_client();
        if state.reading.patience == 0 {
            state.reading.read = identify::TOO_COSTLY;
        }
    }
    if taken.at_once() {
        skip_line(packet, state);
    }
    if state.reading.read != identify::END {
        return (state.reading.read != identify::MORE) as c_long;
    }
    let Some(pending) = pending_upgrades::scratch() else {
        return 1;
    };
    let upgrade = pending.head.found & UPGRADE_WEBSOCKET != 0;
    let next =
        pending.head.body() == Some(0) && state.reading.at < packet.bytes() && index < PIPELINED;
    if !upgrade && next {
        // The next request follows immediately (RFC 9112, 9.3.2).
        pending.begin_next();
        pending_upgrades::doubt();
        state.reading.read = identify::MORE;
        return 0;
    }
    1
}

/// Continue without the client of a request that takes too long to read, see
/// [`Pending::give_up_client`].
#[inline(always)]
fn give_up_client() -> u32 {
    pending_upgrades::scratch().map_or(0, Pending::give_up_client)
}

/// Skip the next words of a line whose rest does not matter.
#[inline(always)]
fn skip_line<P: Packet>(packet: &P, state: &mut cpu::State) {
    let mut i = 0;
    while i < SKIPPED_WORDS {
        match packet.u64_near(state.reading.at) {
            Some(word) if !has_control(word) => state.reading.at += 8,
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
///
/// A function of its own: where LLVM keeps the payload's offset on the stack, verifiers before Linux
/// 6.12 lose its bound.
#[inline(never)]
fn begins_request<P: Packet>(packet: &P) -> bool {
    if packet.u8_at(0).is_some_and(|byte| byte == b'\r' || byte == b'\n') {
        return true;
    }
    begins_word(packet, GET)
}

/// Check whether the payload begins a request of any method, of which less than eight bytes may be there
/// only with [`GET`].
#[inline(always)]
fn begins_any<P: Packet>(packet: &P) -> bool {
    begins_request(packet) || packet.u64_at(0).is_some_and(begins_method)
}

/// Check whether a connection's first payload begins with a header of the PROXY protocol.
#[inline(never)]
pub fn begins_preface<P: Packet>(packet: &P) -> bool {
    packet.u8_at(0) == Some(b'\r') || begins_word(packet, PROXY)
}

/// Kind of a client's segment on a connection without a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A request, or a piece of it, or a body.
    Head,
    /// The same, if the framing of its chunked body says so: [`super::chunks::follow`].
    Chunks,
    /// Data between a request and its answer, or a piece of the request that is not the next one.
    Early,
    /// A request of a banned source.
    Banned,
    /// None of these.
    Other,
}

/// Read the head of a request for an upgrade, if a client's payload without a flow is one.
///
/// Only in order, and from the connection's first byte on: data in front of that is dropped. Unread
/// passes what follows an answer.
#[cold]
#[inline(never)]
pub fn request<P: Packet>(context: &Context, packet: P) -> Request {
    let segment = context.segment;
    let judged = pending_upgrades::judge(context.policy.generation);
    if judged == judged::REFUSED {
        return Request::Early;
    }
    if judged == judged::BODY {
        return Request::Head;
    }
    if judged == judged::CHUNKS {
        return Request::Chunks;
    }
    // Without a request there may be the beginning of an answer.
    let mut under_way = pending_upgrades::find().is_some_and(|pending| pending.length != 0);
    let (Some(pending), Some(state)) = (pending_upgrades::scratch(), cpu::state()) else {
        return Request::Other;
    };
    let mut walker = Walker { state, packet };
    let answered = under_way && pending.flags & ANSWERED != 0 && segment.seq == pending.next;
    if answered && begins_frame(&walker.packet) {
        // The 101 is yet to come.
        return Request::Early;
    }
    if answered || under_way && pending_upgrades::is_outrun() {
        // The upgrade was refused, and HTTP goes on; or this is to be taken for its end. Or else these
        // bytes are discarded, and the 101 is yet to come.
        pending_upgrades::doubt();
        pending_upgrades::answered();
        under_way = false;
    }
    let (mut known, mut restarts_now) = (0, false);
    if under_way {
        known = pieces::repeated(segment, pending, &mut walker);
        if known == segment.len {
            return Request::Head;
        }
        if known == 0 && restarts(segment, pending, &walker.packet, judged) {
            pending.begin();
            pending_upgrades::begin();
            restarts_now = true;
        } else {
            match piece(context, pending, &walker.packet, judged, known) {
                Request::Head => {}
                // Its owner and its rest are of no interest.
                other => return other,
            }
        }
        if !role::claims(&mut pending.owner) {
            return Request::Head;
        }
    } else if pieces::repeated(segment, pending, &mut walker) == segment.len {
        return Request::Head;
    } else if judged == judged::REACHES && hides_request(segment, &walker.packet) {
        return Request::Early;
    } else if judged != judged::BEGINS || !begin(segment, pending, &walker.packet) {
        return Request::Other;
    }
    let mut reading = Reading { walker, context };
    let trusted = identify::trusts(&segment.key.client, context.policy.proxies);
    if restarts_now && !trusted {
        pending.flags |= RESTARTED;
    }
    read_request(&mut reading, known, pending.patience(segment.len, trusted));
    let (read, came_to) = (reading.walker.state.reading.at, reading.walker.state.reading.read);
    pieces::add(segment, pending, &mut reading.walker, known);
    pending.length = pending.length.wrapping_add(read).wrapping_sub(known);
    end(context, read, came_to)
}

/// Check whether the segment begins the pending request anew: the server has none of it, and its sender
/// cuts it otherwise.
#[inline(always)]
fn restarts<P: Packet>(segment: &Segment, pending: &Pending, packet: &P, judged: u32) -> bool {
    let pieces = &pending.pieces;
    judged == judged::BEGINS
        && pieces.count > 0
        && segment.seq == pieces.from
        && segment.seq != pending.next
        && begins_any(packet)
}

/// Check whether the segment is the next piece of the pending request, perhaps behind `known` bytes:
/// then [`Request::Head`].
#[inline(always)]
fn piece<P: Packet>(
    context: &Context,
    pending: &mut Pending,
    packet: &P,
    judged: u32,
    known: u32,
) -> Request {
    if pending.flags & LOST != 0 {
        return Request::Other;
    }
    if !role::follows(pending.owner) {
        return Request::Head;
    }
    let segment = context.segment;
    let whole = pending.head.found & END != 0;
    if known > 0 {
        return if whole { Request::Early } else { Request::Head };
    }
    if segment.seq != pending.next {
        let end = segment.seq.wrapping_add(segment.len);
        let pieces = &pending.pieces;
        let before = pieces.count > 0 && !after(end, pieces.from) && judged == judged::BEGINS;
        if before && !begins_request(packet) {
            // A part of an upload was lost, in which a request seemed to begin later.
            return Request::Other;
        }
        // Another piece of this request, or something unknown. The server may have old bytes, or
        // keep what follows a gap: only in order is it certain what it reads.
        let distance = segment.seq.wrapping_sub(pending.next).wrapping_add(MAX_HEAD);
        return if distance < MAX_HEAD + FAR { Request::Early } else { Request::Other };
    }
    if begins_another(packet, whole) && !pending_upgrades::is_first_request() {
        // No frame begins like this (RFC 6455, 5.1 and 5.2). Either what was taken for a request
        // was in the body of another one, or this is.
        pending.flags |= LOST;
        pending_upgrades::keep();
        return Request::Other;
    }
    if whole { Request::Early } else { Request::Head }
}

/// Check whether a request begins in the segment, where the server's bytes end or those that passed.
#[inline(always)]
fn hides_request<P: Packet>(segment: &Segment, packet: &P) -> bool {
    let (acked, high) = pending_upgrades::reached();
    [acked, high].into_iter().any(|from| {
        let at = from.wrapping_sub(segment.seq);
        at < segment.len && begins_at(packet, at)
    })
}

/// Check whether a method is at `at`, behind up to two empty lines. Prefixes of methods and lines alone
/// may be text.
#[inline(always)]
fn begins_at<P: Packet>(packet: &P, mut at: u32) -> bool {
    let mut i = 0;
    while i < 4 && matches!(packet.u8_at(at), Some(b'\r' | b'\n')) {
        (at, i) = (at + 1, i + 1);
    }
    let Some(word) = packet.u64_at(at) else {
        return false;
    };
    begins_method(word) || is_get(word)
}

/// [`is_method`], as a global function: the verifier follows its comparisons once.
#[inline(always)]
fn begins_method(word: u64) -> bool {
    ws_guard_is_method(word) != 0
}

/// [`begins_method`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_is_method(word: u64) -> u32 {
    is_method(word) as u32
}

/// Check whether these eight bytes, the first one in the high byte, begin with [`GET`].
#[inline(always)]
const fn is_get(word: u64) -> bool {
    (word >> 32) as u32 == u32::from_be_bytes(*GET)
}

/// Check whether the payload may begin with a client's frame, see [`is_frame`].
#[inline(always)]
fn begins_frame<P: Packet>(packet: &P) -> bool {
    match (packet.u16_at(0), packet.u8_at(0)) {
        (Some(word), _) => is_frame(word),
        (None, Some(byte)) => is_frame((byte as u16) << 8 | MASK as u16),
        (None, None) => false,
    }
}

/// Check whether the payload begins with a request's method; GET counts only after a `whole`
/// request.
#[inline(never)]
fn begins_another<P: Packet>(packet: &P, whole: bool) -> bool {
    packet.u64_at(0).is_some_and(|word| begins_method(word) || whole && is_get(word))
}

/// Begin a request in the segment, or the preface of a connection's first one.
/// `false` where neither begins.
#[inline(always)]
fn begin<P: Packet>(segment: &Segment, pending: &mut Pending, packet: &P) -> bool {
    let request = begins_any(packet);
    // Only the first bytes of a connection are a preface: later ones may be the client's own.
    let first = (!request || packet.u8_at(0) == Some(b'\r')) && identify::is_first(segment);
    if !request && !(first && begins_preface(packet)) {
        return false;
    }
    pending.begin();
    pending_upgrades::begin();
    if !first {
        pending.client.skip_preface();
    }
    true
}

/// Evaluate a segment after its first `read` bytes, the last of which returned `came_to`.
#[inline(never)]
fn end(context: &Context, read: u32, came_to: u32) -> Request {
    let segment = context.segment;
    let Some(pending) = pending_upgrades::scratch() else {
        return Request::Head;
    };
    let done = came_to == identify::END;
    // Behind a body, servers answer, or go on with HTTP; or the body is none to them, nor to be followed.
    let upgrade = pending.head.found & UPGRADE_WEBSOCKET != 0 && !pending.head.has_body();
    if pending.length > MAX_HEAD || came_to == identify::TOO_COSTLY {
        pending.flags |= LOST;
        pending_upgrades::keep();
        return Request::Other;
    }
    // Empty lines may be a part of an upload; a request behind them begins again.
    let blank = pending.client.preface.is_over() && pending.head.is_blank();
    if came_to == identify::NO_REQUEST || done && !upgrade || blank {
        // Another request may be hidden in what follows.
        let ended = came_to != identify::NO_REQUEST && done;
        let body = if ended { pending_upgrades::completes(read) } else { Body::Unknown };
        pending.next = segment.seq.wrapping_add(segment.len);
        pending.owner = role::own();
        pending_upgrades::answered();
        return match body {
            Body::Unknown => Request::Other,
            Body::Known => Request::Head,
            Body::Chunked => Request::Chunks,
        };
    }
    if read < segment.len && context.enforces() {
        // Data follows the head: the request has to be retransmitted without it.
        return Request::Early;
    }
    if context.enforces() && pending_upgrades::comes_late(done) {
        // Unread data has passed before: the server would read frames in it.
        if pending.client.preface.is_over() {
            return Request::Early;
        }
        // Not behind the first bytes of another method, which may have been a preface's.
        pending_upgrades::answered();
        return Request::Other;
    }
    if done && context.policy.flags & MAY_BAN != 0 && is_banned(context) {
        return Request::Banned;
    }
    let replaces = pending.flags & RESTARTED != 0 || pending_upgrades::behind() > 0;
    if replaces && context.enforces() && !unread::admits_first(context, FEW) {
        return Request::Early;
    }
    pending.next = segment.seq.wrapping_add(segment.len);
    (pending.owner, pending.claimed) = (role::own(), segment.ack);
    pending_upgrades::keep();
    pending_upgrades::asks();
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
pub fn answer(context: &Context, packet: SkbPayload) -> Verdict {
    if switches(context, packet) { open(context) } else { Verdict::Pass }
}

/// Check whether the payload continues, after `from` bytes, an answer that may be a 101, however
/// few bytes it has.
#[inline(never)]
pub fn is_switching<P: Packet>(packet: &P, from: u32) -> bool {
    let bytes = packet.bytes();
    let mut i = 0;
    while i < SWITCHING.len() {
        let at = (i as u32).wrapping_sub(from);
        // A minor version of 0 counts as 1.
        let even = (i == MINOR) as u8;
        if at < bytes && packet.u8_at(at).map(|byte| byte | even) != Some(SWITCHING[i]) {
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
fn switches(context: &Context, packet: SkbPayload) -> bool {
    let segment = context.segment;
    let under_way = pending_upgrades::is_under_way();
    let (Some(pending), Some(state)) = (pending_upgrades::scratch(), cpu::state()) else {
        return false;
    };
    let goes_on = pending.answer_length != 0 && pending.answer_next == segment.seq;
    if !goes_on && pending.has_of_answer(segment.seq, segment.len) {
        return false;
    }
    let anywhere =
        under_way || pending_upgrades::may_answer_hidden() || pending_upgrades::awaits_body();
    let (scanner, before) = match goes_on {
        true => (pending.answer, pending.answer_length),
        false => (HeadScanner::default(), 0),
    };
    (state.reading.at, state.reading.until, state.reading.read) = (0, before.wrapping_neg(), 0);
    let mut found = is_switching(&packet, before);
    let mut walker = Walker { state, packet };
    if found {
        read_head(&mut walker, scanner, MAX_HEAD);
        found = walker.state.reading.head.found & (END | UPGRADE_WEBSOCKET) != END;
    }
    if !found && !(anywhere && walker.packet.find_merged()) {
        if under_way {
            other_answer(pending);
        }
        return false;
    }
    let Some(state) = cpu::resume() else {
        return false;
    };
    let (head, read) = (state.reading.head, state.reading.at);
    if head.found & END == 0 {
        let merged = state.reading.read != 0;
        remember(segment, &head, read.wrapping_sub(state.reading.until), read, merged);
        return false;
    }
    true
}

/// Handle something else that the server says while the request in [`pending_upgrades::scratch`] has
/// no answer: a refusal, an interim answer (RFC 9110, 15.2), or the answer to an earlier request,
/// which a 101 may follow in the same segment.
#[inline(always)]
fn other_answer(pending: &mut Pending) {
    if pending.flags & LOST != 0 {
        pending_upgrades::answered();
        return;
    }
    let whole = pending.head.found & END != 0;
    if whole && pending.flags & ANSWERED == 0 || pending.answer_length != 0 {
        if whole {
            pending.flags |= ANSWERED;
        }
        pending.answer_length = 0;
        pending_upgrades::keep();
    }
}

/// Keep the scanner of a 101 whose head continues in the next segment; `merged` where it is behind something
/// else.
#[inline(always)]
fn remember(segment: &Segment, scanner: &HeadScanner, length: u32, read: u32, merged: bool) {
    if length > MAX_HEAD {
        pending_upgrades::answered();
        return;
    }
    let Some(new) = pending_upgrades::scratch() else {
        return;
    };
    pending_upgrades::is_under_way();
    new.flags |= if merged { ANSWERED } else { 0 };
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
    let Some(state) = cpu::resume() else {
        return Verdict::Pass;
    };
    let server_next = segment.seq.wrapping_add(state.reading.at);
    let deflate = state.reading.head.found & PERMESSAGE_DEFLATE != 0;
    let begins_answer = state.reading.read == 0;
    let Some(flow) = tables::new_flow() else {
        return Verdict::Pass;
    };
    let flags = if deflate { flow::DEFLATE } else { 0 };
    let known = pending_upgrades::find();
    let followed = known.as_ref().is_some_and(|pending| {
        // Behind anything else that the server has said, it may be text.
        pending.flags & (LOST | RESTARTED | ANSWERED) == 0
            && begins_answer
            && pending.head.found & END != 0
            && pending.next == segment.ack
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
    if state.reading.read == merged::ASSUMED {
        flow.server.flags |= GUESSED;
    }
    flow.server_high = segment.seq.wrapping_add(segment.len + (segment.flags & FIN));
    flow.may_hide(!followed || pending_upgrades::may_hide_another());
    tables::admit(context)
}
