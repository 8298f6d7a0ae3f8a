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

use aya_ebpf::bindings::BPF_ANY;
use ws_guard_common::{
    forwarded::preface,
    maps::{FlowKey, Pending, Unopened, judged, stage},
    seq::after,
};

use crate::{
    maps::{BEGINNINGS, NEW_PENDING, PENDING, PROVEN},
    opening::identify,
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
fn unopened() -> Option<(&'static Segment, &'static mut Unopened)> {
    let segment = packet::segment()?;
    let unopened = BEGINNINGS.get_ptr_mut(&segment.key)?;
    // SAFETY: a map value. An LRU entry may be reused for another key meanwhile: at worst that key's
    // connection has a segment sent again, or is no longer followed from its first byte on.
    Some((segment, unsafe { &mut *unopened }))
}

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
    if unopened.generation != generation {
        // It was not followed under another policy, until the server's next segment.
        return judged::BEGINS;
    }
    // No TCP takes data without an acknowledgement (RFC 9293, 3.10.7.4), except with a SYN, which is
    // not of the connection that began.
    match segment.flags & (SYN | ACK) {
        ACK => unopened.judge(segment.seq, segment.len, segment.ack),
        0 => judged::REFUSED,
        _ => judged::BEGINS,
    }
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

/// Note that the client's segment passes, see [`Unopened::pass`].
#[inline(always)]
pub fn passes() {
    ws_guard_passes();
}

/// [`passes`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_passes() -> u32 {
    if let Some((segment, unopened)) = unopened() {
        unopened.pass(segment.seq, segment.len);
    }
    0
}

/// Check whether data past the upgrade request that the segment ends has passed before it.
#[inline(always)]
pub fn comes_late() -> bool {
    ws_guard_comes_late() != 0
}

/// [`comes_late`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_comes_late() -> u32 {
    unopened().is_some_and(|(segment, unopened)| {
        unopened.passed_beyond(segment.seq.wrapping_add(segment.len))
    }) as u32
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
    } else if new.client.preface.said == preface::said::NOTHING {
        let _ = PENDING.remove(key);
    } else {
        // The preface of the first request holds for those that follow.
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
        let _ = PROVEN.remove(key);
    }
    let speaks = segment.len > 0 || segment.flags & FIN != 0;
    // A RST may answer a segment of no connection, with the numbers that this one has.
    if let (ACK, Some((_, unopened))) = (segment.flags & (ACK | RST), unopened()) {
        let end = segment.seq.wrapping_add(segment.len + (segment.flags & FIN));
        unopened.acknowledge(segment.ack, end, speaks, generation);
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
