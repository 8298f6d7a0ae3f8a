//! TLS ports: no frames are to be seen there, only the records they are in.
//!
//! A flow is opened by the server's ServerHello, as it is elsewhere by a 101. The client's records are
//! followed from its ClientHello on, which nobody has to believe: it takes a place in the table of
//! requests, and nothing else.

use ws_guard_common::{
    flow,
    handshake::MAX_HEAD,
    maps::{Counter, LOST, Pending},
    record::{self, content},
    seq::later,
    tracker::{FROM_CLIENT, RECORDS, Tracker, Walk},
};

use crate::{
    packet::Packet,
    report, requests, role,
    scene::{Scene, Verdict},
    tables, walk,
};

/// How a record of handshake messages begins.
const HELLO: u16 = (content::HANDSHAKE as u16) << 8 | record::MAJOR as u16;

/// Payload of a client without a flow: from its ClientHello on its records are followed. `false` when
/// it is none of such a beginning.
///
/// In order alone. Whatever else comes before the server's answer makes the place uncertain where its
/// records begin ([`flow::REQUEST_UNSEEN`]); it is not held back, because TLS 1.3 lets a client send
/// data before the answer (RFC 8446, 2.3).
#[cold]
#[inline(never)]
pub fn hello<P: Packet>(scene: &Scene, mut packet: P) -> bool {
    let segment = scene.segment;
    let (start, length) = match requests::find() {
        None if packet.u16_at(0) == Some(HELLO)
            && packet.u8_at(5) == Some(record::CLIENT_HELLO) =>
        {
            (Tracker::new(segment.seq, FROM_CLIENT | RECORDS), 0)
        }
        None => return false,
        Some(pending) => {
            if !role::claims(&mut pending.owner) {
                return true;
            }
            let length = pending.length + segment.len;
            if segment.seq != pending.next || length > MAX_HEAD {
                pending.flags |= LOST;
                requests::keep();
            }
            if pending.flags & LOST != 0 {
                return false;
            }
            (pending.records, pending.length)
        }
    };
    let Some(state) = walk::state() else {
        return true;
    };
    state.walk = Walk::new(start, &start, segment.seq, segment.len);
    let followed = state.walk.few_records(&mut packet);
    let Some(new) = requests::scratch() else {
        return true;
    };
    *new = Pending {
        records: state.walk.tracker,
        next: segment.seq.wrapping_add(segment.len),
        length: length + segment.len,
        flags: if followed { 0 } else { LOST },
        owner: role::own(),
        claimed: segment.ack,
        ..Pending::default()
    };
    requests::keep();
    true
}

/// Payload of the server without a flow: a ServerHello opens one. [`Verdict::Drop`] refuses the
/// connection.
#[cold]
#[inline(never)]
pub fn answer<P: Packet>(scene: &Scene, packet: P) -> Verdict {
    if packet.u16_at(0) != Some(HELLO) || packet.u8_at(5) != Some(record::SERVER_HELLO) {
        return Verdict::Pass;
    }
    let segment = scene.segment;
    let Some(flow) = tables::new_flow() else {
        return Verdict::Pass;
    };
    let mut start = Tracker::new(segment.ack, 0);
    let (mut flags, mut high) = (flow::REQUEST_UNSEEN, segment.ack);
    if let Some(pending) = requests::find() {
        // What the server has yet to acknowledge it may also take otherwise than it was read.
        let ahead = pending.next.wrapping_sub(segment.ack);
        if pending.flags & LOST == 0 && ahead < MAX_HEAD {
            (start, high) = (pending.records, pending.next);
            flags = if ahead == 0 { 0 } else { flags };
        }
    }
    report::add(Counter::RequestsUnseen, (flags != 0).into());
    let sent = segment.seq.wrapping_add(segment.len);
    flow.open_records(start, segment.ack, sent, flags, scene.now);
    flow.high = later(flow.high, high);
    tables::admit(scene)
}
