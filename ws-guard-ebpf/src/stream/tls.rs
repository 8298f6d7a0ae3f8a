//! TLS ports: only records are visible there, no frames.
//!
//! The server's ServerHello opens a flow, as a 101 does elsewhere. The client's records are
//! followed from its ClientHello on. Until the server answers, that costs an entry in the table of
//! requests and proves nothing.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{
    flow,
    handshake::MAX_HEAD,
    maps::{Counter, LOST, PREFACE},
    record::{self, content},
    seq::later,
    tracker::{FROM_CLIENT, RECORDS, Tracker, Walk},
};

use crate::{
    context::{Context, Verdict},
    cpu,
    opening::{handshake, identify, pending_upgrades, role},
    packet::{self, Packet},
    report,
    stream::walk::Walker,
    tables,
};

/// First bytes of a record of handshake messages.
const HELLO: u16 = (content::HANDSHAKE as u16) << 8 | record::MAJOR as u16;

/// Follow a client's records from its ClientHello on, in payload without a flow.
/// `false` when it is no such beginning.
///
/// Only in order. Other segments before the server's answer make it uncertain where the records
/// begin ([`flow::REQUEST_UNSEEN`]); they are not held back, because TLS 1.3 lets a client send
/// data before the answer (RFC 8446, 2.3).
#[cold]
#[inline(never)]
pub fn hello<P: Packet>(context: &Context, packet: P) -> bool {
    let segment = context.segment;
    let under_way = pending_upgrades::find().is_some();
    let Some(new) = pending_upgrades::scratch() else {
        return true;
    };
    let is_preface = new.flags & PREFACE != 0 || !under_way && begins_preface(context, &packet);
    if is_preface {
        return preface(context, packet);
    }
    let (start, length) = match under_way.then_some(&mut *new) {
        None if is_hello(&packet, 0) => (Tracker::new(segment.seq, FROM_CLIENT | RECORDS), 0),
        None => return false,
        Some(pending) => {
            if !role::claims(&mut pending.owner) {
                return true;
            }
            let length = pending.length + segment.len;
            if segment.seq != pending.next || length > MAX_HEAD {
                pending.flags |= LOST;
                pending_upgrades::keep();
            }
            if pending.flags & LOST != 0 {
                return false;
            }
            (pending.records, pending.length)
        }
    };
    follow(context, packet, start, length)
}

/// Follow the client's records from `start`, in the segment or before it.
#[inline(never)]
fn follow<P: Packet>(context: &Context, mut packet: P, start: Tracker, length: u32) -> bool {
    let segment = context.segment;
    let (Some(state), Some(new)) = (cpu::state(), pending_upgrades::scratch()) else {
        return true;
    };
    state.walk = Walk::new(start, &start, segment.seq, segment.len);
    let followed = state.walk.few_records(&mut packet);
    new.records = state.walk.tracker;
    new.next = segment.seq.wrapping_add(segment.len);
    new.length = length + segment.len;
    new.flags = if followed { 0 } else { LOST };
    (new.owner, new.claimed) = (role::own(), segment.ack);
    pending_upgrades::keep();
    true
}

/// Check whether a ClientHello begins at payload offset `at`.
#[inline(always)]
fn is_hello<P: Packet>(packet: &P, at: u32) -> bool {
    packet.u16_at(at) == Some(HELLO) && packet.u8_at(at + 5) == Some(record::CLIENT_HELLO)
}

/// Check whether the connection begins here, with a header of the PROXY protocol.
#[inline(always)]
fn begins_preface<P: Packet>(context: &Context, packet: &P) -> bool {
    handshake::begins_preface(packet) && identify::is_first(context.segment)
}

/// Read the header of the PROXY protocol, or a piece of it. `false` where it turns out to be none.
#[inline(never)]
fn preface<P: Packet>(context: &Context, packet: P) -> bool {
    let segment = context.segment;
    let (Some(state), Some(pending)) = (cpu::state(), pending_upgrades::scratch()) else {
        return true;
    };
    let is_next = pending.flags & PREFACE == 0 || pending.next == segment.seq;
    if !is_next {
        return true;
    }
    state.reading.at = 0;
    let mut walker = Walker { state, packet };
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = preface_byte::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(MAX_HEAD, turn as *mut c_void, (&raw mut walker).cast(), 0);
    }
    let at = walker.state.reading.at;
    pending.next = segment.seq.wrapping_add(at);
    (pending.owner, pending.claimed) = (role::own(), segment.ack);
    // Until the ClientHello only this flag makes the request a pending one.
    (pending.flags, pending.length) = (PREFACE, 1);
    if pending.client.preface.is_over() {
        (pending.flags, pending.length) = (0, 0);
        if at < segment.len {
            let start = Tracker::new(pending.next, FROM_CLIENT | RECORDS);
            return is_hello(&walker.packet, at) && follow(context, walker.packet, start, 0);
        }
    }
    pending_upgrades::keep();
    true
}

/// Read one byte of it, or its fields; 1 ends the loop.
unsafe extern "C" fn preface_byte<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `preface`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let left = walker.packet.bytes().saturating_sub(walker.state.reading.at);
    walker.state.reading.at += identify::skip_fields(left);
    let Some(byte) = walker.packet.u8_at(walker.state.reading.at) else {
        return 1;
    };
    let none = identify::read_preface(byte) != identify::MORE;
    walker.state.reading.at += !none as u32;
    let over = pending_upgrades::scratch().is_none_or(|pending| pending.client.preface.is_over());
    (none | over) as c_long
}

/// Open a flow at a ServerHello in the server's payload. [`Verdict::Drop`] refuses the connection.
#[cold]
#[inline(never)]
pub fn answer<P: Packet>(context: &Context, packet: P) -> Verdict {
    if packet.u16_at(0) != Some(HELLO) || packet.u8_at(5) != Some(record::SERVER_HELLO) {
        return Verdict::Pass;
    }
    let segment = context.segment;
    let Some(flow) = tables::new_flow() else {
        return Verdict::Pass;
    };
    let mut start = Tracker::new(segment.ack, 0);
    let (mut flags, mut high) = (flow::REQUEST_UNSEEN, segment.ack);
    if let Some(pending) = pending_upgrades::find() {
        // The server may read unacknowledged bytes differently.
        let ahead = pending.next.wrapping_sub(segment.ack);
        if pending.flags & LOST == 0 && ahead < MAX_HEAD {
            (start, high) = (pending.records, pending.next);
            flags = if ahead == 0 { 0 } else { flags };
        }
    }
    identify::conclude(true);
    if let Some(account) = packet::account() {
        flow.account = *account;
    }
    report::add(Counter::RequestsUnseen, (flags != 0).into());
    let sent = segment.seq.wrapping_add(segment.len);
    flow.open_records(start, segment.ack, sent, flags, context.now);
    flow.high = later(flow.high, high);
    tables::admit(context)
}
