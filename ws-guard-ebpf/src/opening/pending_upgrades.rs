//! Pending upgrade requests, in two tables.
//!
//! Spoofed requests can evict others from [`PENDING`]. A request moves on to [`PROVEN`] once the
//! server has sent something on its connection that it never sends on a spoofed one:
//!
//! - data: it sends that only after its SYN-ACK was acknowledged with the right number;
//! - an acknowledgement with the sequence number that the request has named, out of 2^32: the
//!   server acknowledges also segments of no connection, and a spoofing attacker does not see the
//!   SYN-ACK with that number.
//!
//! From then on the connection keeps its entry, also between two requests.
//!
//! All of it is about the connection of the current segment. Functions with a name in the object's
//! BTF are global ones: the verifier checks each once, not at each call.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns};
use ws_guard_common::{
    chunks::Chunks,
    forwarded::preface,
    maps::{ANSWER_ROOM, FlowKey, Old, Pending, RESTARTED, Unopened, judged, stage},
    offer::unread,
    seq::after,
    source::millis,
};

use crate::{
    maps::{BEGINNINGS, NEW_PENDING, PENDING, PROVEN},
    opening::{identify, role},
    packet::{self, ACK, FIN, RST, SYN, Segment},
};

/// This CPU's scratch value, which [`keep`] stores.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Pending> {
    // SAFETY: no other user while the program runs.
    NEW_PENDING.get_ptr_mut(0).map(|new| unsafe { &mut *new })
}

/// Copy a value, word by word: LLVM would take it over the stack, which has no room for it.
///
/// # Safety
/// Both point to values of maps.
#[inline(always)]
unsafe fn copy(from: *const Pending, to: *mut Pending) {
    const { assert!(size_of::<Pending>().is_multiple_of(8) && align_of::<Pending>() == 8) };
    let mut i = 0;
    while i < size_of::<Pending>() / 8 {
        // SAFETY: inside the values, which the caller vouches for.
        unsafe {
            let word = from.cast::<u64>().add(i).read_volatile();
            to.cast::<u64>().add(i).write_volatile(word);
        }
        i += 1;
    }
}

/// Find the pending request, copied to [`scratch`].
/// `None` where there is none: [`scratch`] then holds what is known of the connection, or an empty
/// value.
#[inline(always)]
pub fn find() -> Option<&'static mut Pending> {
    if is_under_way() { scratch() } else { None }
}

/// Check whether a request is pending. Changes [`scratch`].
#[inline(always)]
pub fn is_under_way() -> bool {
    ws_guard_find_request() != 0
}

/// Store the content of [`scratch`].
#[inline(always)]
pub fn keep() {
    ws_guard_keep_request();
}

/// End the pending request in [`scratch`]. A proven connection keeps its entry for the next one.
#[inline(always)]
pub fn answered() {
    ws_guard_end_request();
}

/// Remove the connection's entries: it has ended, begins again, or has a flow.
#[inline(always)]
pub fn forget() {
    if let Some(segment) = packet::segment() {
        let _ = PENDING.remove(&segment.key);
        let _ = PROVEN.remove(&segment.key);
    }
}

/// Take over the client's FIN or RST, see [`Unopened::end_by_client`]. `false` where it must not pass.
#[inline(always)]
pub fn end_by_client(generation: u32) -> bool {
    ws_guard_end_by_client(generation) != 0
}

/// [`end_by_client`], as a global function.
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_end_by_client(generation: u32) -> u32 {
    let Some((segment, unopened)) = unopened() else {
        return 1;
    };
    let resets = segment.flags & RST != 0;
    if !resets && segment.flags & (SYN | ACK) != ACK {
        return 1;
    }
    let Segment { seq, ack, len, .. } = *segment;
    let may = unopened.end_by_client(seq, len, ack, resets);
    // What was not followed has other numbers.
    (may || !unopened.is_under(generation)) as u32
}

/// Take over the ends of a flow that is none, see [`Unopened::ends`].
#[inline(always)]
pub fn give_back(ends: u8) {
    if let Some((_, unopened)) = unopened() {
        unopened.take_over(ends);
    }
}

/// Record that the peer speaks the PROXY protocol to this server, as it will on each of its
/// connections: under port 0, which no connection has.
#[inline(always)]
pub fn prefaces(segment: &Segment) {
    let key = FlowKey { client_port: 0, ..segment.key };
    if let (None, Some(new)) = (PROVEN.get_ptr(&key), scratch()) {
        let _ = PROVEN.insert(&key, new, BPF_ANY.into());
    }
}

/// Check whether [`prefaces`] was recorded for the connection's end points.
#[inline(always)]
pub fn has_prefaces(segment: &Segment) -> bool {
    let key = FlowKey { client_port: 0, ..segment.key };
    PROVEN.get_ptr(&key).is_some()
}

/// Take the server's packet, on a connection without a flow, as a proof if it is one.
#[inline(always)]
pub fn prove(generation: u32) {
    ws_guard_prove_request(generation);
}

/// [`is_under_way`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_find_request() -> u32 {
    let (Some(segment), Some(new)) = (packet::segment(), scratch()) else {
        return 0;
    };
    let key = &segment.key;
    let proven = PROVEN.get_ptr(key);
    let Some(found) = proven.or_else(|| PENDING.get_ptr(key)) else {
        *new = Pending::default();
        new.real = answers_the_server(segment) as u8;
        return 0;
    };
    // SAFETY: map values stay mapped while a program runs. An LRU entry may be reused for another
    // key meanwhile; then the sequence numbers do not match, and at worst a request is missed.
    unsafe { copy(found, new) };
    let answers = answers_the_server(segment);
    let first = new.next != segment.seq && identify::is_first(segment);
    if proven.is_none() && answers && first && new.is_under_way() && new.claimed != segment.ack {
        // The pending one is of another sender, who did not see the server's SYN-ACK.
        *new = Pending::default();
    }
    new.real = (proven.is_some() || answers) as u8;
    new.is_under_way() as u32
}

/// The connection at hand, since its SYN-ACK.
#[inline(always)]
pub(super) fn unopened() -> Option<(&'static Segment, &'static mut Unopened)> {
    let segment = packet::segment()?;
    let unopened = BEGINNINGS.get_ptr_mut(&segment.key)?;
    // SAFETY: a map value. An LRU entry may be reused for another key meanwhile: at worst that key's
    // connection has a segment sent again, or is no longer followed from its first byte on.
    Some((segment, unsafe { &mut *unopened }))
}

/// Claim the connection, unless programs of the other role read its client's bytes.
#[inline(always)]
pub fn claims() -> bool {
    unopened().is_none_or(|(_, unopened)| role::claims(&mut unopened.owner))
}

/// Check whether the client's segment may begin the connection for the server, so that it may tell the scale of its
/// windows, see [`Unopened::may_scale`], or another one: [`Unopened::judge_old`].
#[inline(always)]
pub fn may_begin(generation: u32) -> (bool, Old) {
    match ws_guard_may_begin(generation) {
        0 => (false, Old::Pass),
        1 => (false, Old::Drop),
        2 => (false, Old::Disarm),
        _ => (true, Old::Pass),
    }
}

/// [`may_begin`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_may_begin(generation: u32) -> u32 {
    let Some((segment, unopened)) = unopened() else {
        return 0;
    };
    if segment.flags & (SYN | ACK | RST) != ACK {
        return 0;
    }
    if unopened.may_scale(segment.seq, segment.ack) {
        return MAY_SCALE;
    }
    let Segment { seq, ack, len, .. } = *segment;
    if unopened.is_under(generation) { unopened.judge_old(seq, ack, len) as u32 } else { 0 }
}

/// Result of [`ws_guard_may_begin`] besides [`Old`].
const MAY_SCALE: u32 = 3;

/// Judge the client's segment: one of [`judged`], see [`Unopened::judge`].
#[inline(always)]
pub fn judge(generation: u32) -> u32 {
    ws_guard_judge(generation)
}

/// [`judge`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_judge(generation: u32) -> u32 {
    let Some((segment, unopened)) = unopened() else {
        return judged::BEGINS;
    };
    // No TCP takes data without an acknowledgement (RFC 9293, 3.10.7.4), except with a SYN. One that
    // begins another connection between the same end points comes again without data (RFC 7413, 4.2.1).
    if segment.flags & (SYN | ACK) != ACK {
        return judged::REFUSED;
    }
    if !unopened.is_under(generation) {
        // It was not followed under another policy, until the server's next segment.
        return judged::BEGINS;
    }
    unopened.judge(segment.seq, segment.len, segment.ack)
}

/// End of the server's bytes that were sent. `None` where the connection's beginning was not seen.
#[inline(always)]
pub fn server_high() -> Option<u32> {
    unopened().map(|(_, unopened)| unopened.server_high)
}

/// Ends of the client's bytes that the server has acknowledged, and of those that passed.
#[inline(always)]
pub fn reached() -> (u32, u32) {
    unopened().map_or((0, 0), |(_, unopened)| (unopened.acked, unopened.high))
}

/// Record that the server's 101 was dropped, or that it passes after all.
#[inline(always)]
pub fn refuse(refused: bool) {
    ws_guard_refuse(refused as u32);
}

/// [`refuse`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_refuse(refused: u32) -> u32 {
    if let Some((_, unopened)) = unopened() {
        unopened.stage = if refused != 0 { stage::REFUSED } else { stage::SPOKEN };
    }
    0
}

/// Note that the client's segment passes, see [`Unopened::pass`]. Not of one that [`judge`] does not
/// judge: its numbers are anybody's.
#[inline(always)]
pub fn passes(read: bool, generation: u32) {
    ws_guard_passes(read as u32, generation);
}

/// [`passes`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_passes(read: u32, generation: u32) -> u32 {
    if let Some((segment, unopened)) = unopened()
        && segment.flags & (SYN | ACK) == ACK
        && unopened.is_under(generation)
    {
        unopened.pass(segment.seq, segment.len, read != 0);
    }
    0
}

/// Decide whether the client's segment passes, which was `read` or not: one of [`unread`], see
/// [`Unopened::pass_read`] and [`Unopened::pass_unread`].
#[inline(always)]
pub fn decide(read: bool, generation: u32) -> u32 {
    ws_guard_decide(read as u32, generation)
}

/// [`decide`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_decide(read: u32, generation: u32) -> u32 {
    let Some((segment, unopened)) = unopened() else {
        return unread::PASSES;
    };
    // What is not followed has no place among the client's bytes.
    if segment.flags & (SYN | ACK) != ACK || !unopened.is_under(generation) {
        return unread::PASSES;
    }
    // SAFETY: the helper has no preconditions.
    let now_ms = millis(unsafe { bpf_ktime_get_ns() });
    let Segment { seq, ack, window, len, .. } = *segment;
    if unopened.is_gone(now_ms) {
        return unread::GONE;
    }
    match read {
        0 => unopened.pass_unread(seq, ack, window, len, now_ms),
        _ => unopened.pass_read(seq, ack, window, len, now_ms),
    }
}

/// Note that the server's segment begins an answer that is no 101, see [`Unopened::turn`].
#[inline(always)]
pub fn turn() {
    ws_guard_turn();
}

/// [`turn`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_turn() -> u32 {
    if let Some((segment, unopened)) = unopened() {
        unopened.turn(segment.seq, segment.seq.wrapping_add(segment.len), segment.ack);
    }
    0
}

/// Number of bytes that have passed as read behind the client's segment, see [`Unopened::behind`].
#[inline(always)]
pub fn behind() -> u32 {
    unopened()
        .map_or(0, |(segment, unopened)| unopened.behind(segment.seq.wrapping_add(segment.len)))
}

/// Note that they were paid.
#[inline(always)]
pub fn pay_behind() {
    ws_guard_pay_behind();
}

/// [`pay_behind`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_pay_behind() -> u32 {
    if let Some((segment, unopened)) = unopened() {
        unopened.pay_behind(segment.seq.wrapping_add(segment.len));
    }
    0
}

/// Take over the window of the client's segment without data, where it may be too small for an answer.
#[inline(always)]
pub fn hear() {
    ws_guard_hear();
}

/// [`hear`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_hear() -> u32 {
    let small = packet::segment().is_some_and(|segment| segment.window < ANSWER_ROOM);
    if small
        && let Some((segment, unopened)) = unopened()
        && segment.flags & (SYN | ACK | RST) == ACK
        && unopened.is_credible(segment.seq, 0, segment.ack)
    {
        unopened.offers(segment.seq, segment.ack, segment.window);
    }
    0
}

/// Note that a request begins with the segment, see [`Unopened::begin`].
#[inline(always)]
pub fn begin() {
    ws_guard_begin();
}

/// [`begin`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_begin() -> u32 {
    if let Some((segment, unopened)) = unopened() {
        unopened.begin(segment.seq);
    }
    0
}

/// Note that a request may be hidden in what passed.
#[inline(always)]
pub fn doubt() {
    ws_guard_doubt();
}

/// [`doubt`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_doubt() -> u32 {
    if let Some((_, unopened)) = unopened() {
        unopened.unread = 1;
    }
    0
}

/// Note that the connection's latest request is not complete, or asks for an upgrade.
#[inline(always)]
pub fn asks() {
    ws_guard_asks();
}

/// [`asks`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_asks() -> u32 {
    if let Some((_, unopened)) = unopened() {
        unopened.asks = 1;
    }
    0
}

/// Body of a request that asks for no upgrade, in the segment that ends its head.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Body {
    /// Not all of the rest of the segment belongs to it, or where it ends is not known.
    Unknown = 0,
    /// The rest of the segment belongs to it.
    Known = 1,
    /// It is chunked: [`super::chunks::follow`].
    Chunked = 2,
}

/// Note that the request in [`scratch`], which asks for no upgrade, ends behind the segment's first
/// `read` bytes.
#[inline(always)]
pub fn completes(read: u32) -> Body {
    match ws_guard_completes(read) {
        0 => Body::Unknown,
        1 => Body::Known,
        _ => Body::Chunked,
    }
}

/// [`completes`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_completes(read: u32) -> u32 {
    let (Some((segment, unopened)), Some(pending)) = (unopened(), scratch()) else {
        return Body::Unknown as u32;
    };
    let from = segment.seq.wrapping_add(read);
    let anew = pending.flags & RESTARTED != 0;
    if !anew && pending.head.is_chunked() {
        unopened.complete_chunked(from);
        return Body::Chunked as u32;
    }
    let length = if anew { None } else { pending.head.body() };
    unopened.complete(from, length);
    length.is_some_and(|length| segment.len.wrapping_sub(read) <= length) as u32
}

/// Reader of the chunked body's framing, and the offset in the segment of its next byte.
#[inline(always)]
pub fn chunks() -> Option<(Chunks, u32)> {
    let (segment, unopened) = unopened()?;
    let (reader, next) = unopened.reader(segment.seq, segment.seq.wrapping_add(segment.len));
    Some((reader, next.wrapping_sub(segment.seq)))
}

/// Store the reader, which has read the segment from offset `from` up to `framed`, and whose next byte is at
/// `at`. `false` where other framing was read there before.
#[inline(always)]
pub fn keep_chunks(from: u32, framed: u32, chunks: Chunks, at: u32) -> bool {
    unopened().is_some_and(|(segment, unopened)| {
        let place = |at: u32| segment.seq.wrapping_add(at);
        unopened.read_chunks(place(from), place(framed), chunks, place(at))
    })
}

/// Check whether the server's segment may answer a request in another one's body, see
/// [`Unopened::awaits_body`].
#[inline(always)]
pub fn awaits_body() -> bool {
    ws_guard_awaits_body() != 0
}

/// [`awaits_body`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_awaits_body() -> u32 {
    unopened().is_some_and(|(segment, unopened)| unopened.awaits_body(segment.ack)) as u32
}

/// Check whether the server can have no request for an upgrade, see [`Unopened::asks_nothing`].
#[inline(always)]
pub fn asks_nothing(generation: u32) -> bool {
    ws_guard_asks_nothing(generation) != 0
}

/// [`asks_nothing`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_asks_nothing(generation: u32) -> u32 {
    unopened().is_some_and(|(segment, unopened)| unopened.asks_nothing(segment.ack, generation))
        as u32
}

/// Check whether the server's segment may begin an answer, see [`Unopened::may_answer`].
#[inline(always)]
pub fn answers() -> bool {
    ws_guard_answers() != 0
}

/// [`answers`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_answers() -> u32 {
    unopened().is_some_and(|(segment, unopened)| unopened.may_answer(segment.ack)) as u32
}

/// Check whether a request may be hidden in what passed: not all of it was read, or the connection's
/// beginning was not seen.
#[inline(always)]
pub fn may_hide_another() -> bool {
    ws_guard_may_hide_another() != 0
}

/// [`may_hide_another`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_may_hide_another() -> u32 {
    unopened().is_none_or(|(_, unopened)| unopened.unread != 0) as u32
}

/// Check whether the server's segment may answer a request that was not read, see [`super::merged`].
/// Not where the connection's beginning was not seen: midstream pickup finds its frames.
#[inline(always)]
pub fn may_answer_hidden() -> bool {
    ws_guard_may_answer_hidden() != 0
}

/// [`may_answer_hidden`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_may_answer_hidden() -> u32 {
    unopened().is_some_and(|(_, unopened)| unopened.unread != 0) as u32
}

/// Number of bytes of a 101 that the server's data in front of the segment ends with.
#[inline(always)]
pub fn begun() -> u32 {
    ws_guard_begun()
}

/// [`begun`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_begun() -> u32 {
    unopened().map_or(0, |(segment, unopened)| {
        if segment.seq == unopened.server_high { unopened.begun as u32 } else { 0 }
    })
}

/// Record how many bytes of a 101 the segment ends with, unless it is an old one.
#[inline(always)]
pub fn begins(bytes: u32) {
    ws_guard_begins(bytes);
}

/// [`begins`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_begins(bytes: u32) -> u32 {
    if let Some((segment, unopened)) = unopened()
        && after(segment.seq.wrapping_add(segment.len), unopened.server_high)
    {
        unopened.begun = bytes as u8;
    }
    0
}

/// Check whether data has passed before a request that the segment ends, or a piece of it where it is not
/// `whole`, see [`Unopened::passed_beyond`].
#[inline(always)]
pub fn comes_late(whole: bool) -> bool {
    ws_guard_comes_late(whole as u32) != 0
}

/// [`comes_late`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_comes_late(whole: u32) -> u32 {
    unopened().is_some_and(|(segment, unopened)| {
        unopened.passed_beyond(segment.seq.wrapping_add(segment.len), whole != 0)
    }) as u32
}

/// Check whether the server has the rest of the pending request, which was read only in part: its
/// beginning came again, see [`Unopened::took_more`].
#[inline(always)]
pub fn is_outrun() -> bool {
    ws_guard_is_outrun() != 0
}

/// [`is_outrun`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_is_outrun() -> u32 {
    let (Some((_, unopened)), Some(pending)) = (unopened(), scratch()) else {
        return 0;
    };
    (pending.length != 0 && unopened.took_more(pending.next)) as u32
}

/// Check whether the server has sent nothing so far: then the pending request is the connection's
/// first one.
#[inline(always)]
pub fn is_first_request() -> bool {
    ws_guard_is_first_request() != 0
}

/// [`is_first_request`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_is_first_request() -> u32 {
    unopened().is_some_and(|(_, unopened)| unopened.stage == stage::SILENT) as u32
}

/// Check whether the segment acknowledges the server's SYN-ACK, and nothing more.
#[inline(always)]
fn answers_the_server(segment: &Segment) -> bool {
    // SAFETY: a single word. An LRU entry may be reused for another key meanwhile: then the number
    // does not match.
    BEGINNINGS
        .get_ptr(&segment.key)
        .is_some_and(|unopened| unsafe { (*unopened).began.server_next == segment.ack })
}

/// [`keep`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_keep_request() -> u32 {
    let (Some(segment), Some(new)) = (packet::segment(), scratch()) else {
        return 0;
    };
    match PROVEN.get_ptr_mut(&segment.key) {
        // Written in place: an insertion takes a free entry first, and may evict another
        // connection's for it.
        // SAFETY: as in `ws_guard_find_request`.
        Some(proven) => unsafe { copy(new, proven) },
        None => {
            let _ = PENDING.insert(&segment.key, new, BPF_ANY.into());
        }
    }
    0
}

/// [`answered`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_end_request() -> u32 {
    let (Some(segment), Some(new)) = (packet::segment(), scratch()) else {
        return 0;
    };
    let key = &segment.key;
    new.end();
    if let Some(proven) = PROVEN.get_ptr_mut(key) {
        let _ = PENDING.remove(key);
        // SAFETY: as in `ws_guard_find_request`.
        unsafe { copy(new, proven) };
    } else if new.client.preface.said == preface::said::NOTHING && new.pieces.count == 0 {
        let _ = PENDING.remove(key);
    } else {
        // The preface of the first request holds for those that follow; its segments may come again.
        let _ = PENDING.insert(key, new, BPF_ANY.into());
    }
    0
}

/// [`prove`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_prove_request(generation: u32) -> u32 {
    let Some(segment) = packet::segment() else {
        return 0;
    };
    let key = &segment.key;
    if segment.flags & FIN != 0 {
        // Not for the next connection between the same end points.
        let _ = PROVEN.remove(key);
        let _ = PENDING.remove(key);
    }
    if segment.flags & (FIN | RST) != 0
        && let Some((_, unopened)) = unopened()
    {
        // SAFETY: the helper has no preconditions.
        let now_ms = millis(unsafe { bpf_ktime_get_ns() });
        unopened.end_by_server(segment.seq, segment.flags & RST != 0, now_ms);
    }
    if let Some((_, unopened)) = unopened()
        && unopened.ends() != 0
    {
        // Before what it takes now begins the wait anew: another connection may take it.
        // SAFETY: the helper has no preconditions.
        unopened.is_gone(millis(unsafe { bpf_ktime_get_ns() }));
    }
    let speaks = segment.len > 0 || segment.flags & FIN != 0;
    // A RST may answer a segment of no connection, with the numbers that this one has.
    if let (ACK, Some((_, unopened))) = (segment.flags & (ACK | RST), unopened()) {
        let end = segment.seq.wrapping_add(segment.len + (segment.flags & FIN));
        if unopened.acknowledge(segment.ack, end, segment.window, speaks, generation) {
            // SAFETY: the helper has no preconditions.
            unopened.spoke_ms = millis(unsafe { bpf_ktime_get_ns() });
        }
    }
    // A RST answers segments of no connection (RFC 9293, 3.10.7.1).
    if segment.flags & (ACK | FIN | RST) != ACK {
        return 0;
    }
    let proven = PROVEN.get_ptr(key);
    let Some(pending) = PENDING.get_ptr(key) else {
        // An entry in advance, for the request that may come.
        if let (None, true, Some(new)) = (proven, segment.len > 0, scratch()) {
            *new = Pending::default();
            let _ = PROVEN.insert(key, new, BPF_ANY.into());
        }
        return 0;
    };
    // SAFETY: as in `ws_guard_find_request`.
    let pending = unsafe { &*pending };
    if segment.len == 0 && segment.seq != pending.claimed {
        return 0;
    }
    // The proven entry may be an older copy, if the client's side added to the other one at the
    // same time.
    // SAFETY: as in `ws_guard_find_request`.
    let known = proven.map(|proven| unsafe { &*proven });
    if known.is_none_or(|known| !known.is_under_way() || after(pending.next, known.next)) {
        let _ = PROVEN.insert(key, pending, BPF_ANY.into());
    }
    0
}
