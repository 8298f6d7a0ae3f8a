//! Streams that are joined in the middle: connections older than the guard, those whose handshake
//! went by unread, and flows that lost step.
//!
//! State is made when the *server* sends data on a protected port: nobody fills the table with
//! packets of his own. Until the client's stream has proved where its frames begin, that is all.

use aya_ebpf::bindings::BPF_ANY;
use ws_guard_common::{
    flow::{self, Flow},
    maps::{Counter, EventKind, Stranger},
    record,
    search::{Candidate, Search},
    source::millis,
    tracker::{GUESSED, RSV1_AGREED, Tracker},
};

use crate::{
    maps::{STRANGERS, locked},
    packet::{self, Packet, Segment},
    report, role,
    scene::{Outcome, Scene},
    sources, tables,
    walk::{self, Walker},
};

/// Data of a server on a connection without a flow, which opened none: keep its place.
///
/// Only of one that speaks WebSocket by its looks, or was `asked` to: then its 101 may be further on.
/// On a TLS port: of one whose segment begins with a record of application data.
#[cold]
#[inline(never)]
pub fn remember<P: Packet>(scene: &Scene, packet: P, asked: bool) {
    let segment = scene.segment;
    let server_high = segment.seq.wrapping_add(segment.len);
    if let Some(known) = STRANGERS.get_ptr_mut(scene.key()) {
        // SAFETY: single words; an LRU entry may be used again for another key meanwhile, whose
        // search then begins with a wrong idea and finds that out.
        unsafe {
            ((*known).acked, (*known).server_high) = (segment.ack, server_high);
        }
        return;
    }
    let speaks = match scene.is_tls() {
        true => record::data_at(&packet, 0) > 0,
        false => asked || is_whole(scene, packet),
    };
    if !speaks {
        return;
    }
    let new = Stranger { candidate: Candidate::default(), acked: segment.ack, server_high };
    let _ = STRANGERS.insert(scene.key(), &new, BPF_ANY.into());
}

/// The server's segment is made of whole frames.
#[inline(always)]
fn is_whole<P: Packet>(scene: &Scene, packet: P) -> bool {
    let Some(state) = walk::state() else {
        return false;
    };
    state.search = Search::of_server(scene.segment.seq, scene.segment.len);
    let mut walker = Walker { state, packet };
    walker.search();
    walker.state.search.is_whole()
}

/// Data of a client without a flow: look for frames in it. `true` when [`open`] is to follow them.
#[cold]
#[inline(never)]
pub fn find<P: Packet>(scene: &Scene, packet: P) -> bool {
    let segment = scene.segment;
    let (Some(known), Some(state)) = (STRANGERS.get_ptr_mut(scene.key()), walk::state()) else {
        return false;
    };
    // SAFETY: as in `remember`.
    let known = unsafe { &mut *known };
    let search = Search::new(known.candidate, segment.seq, segment.len);
    state.search = search.of_records(scene.is_tls());
    let mut walker = Walker { state, packet };
    walker.search();
    let search = &walker.state.search;
    let found = search.proven().is_some();
    if !found {
        known.candidate = search.known();
    }
    found
}

/// Open a flow for what [`find`] found. `false` where the table has no room.
#[cold]
#[inline(never)]
pub fn open(scene: &Scene) -> bool {
    let (Some(known), Some(state)) = (STRANGERS.get_ptr_mut(scene.key()), walk::resume()) else {
        return false;
    };
    // SAFETY: as in `remember`.
    let known = unsafe { &*known };
    let Some(next) = state.search.proven() else {
        return false;
    };
    let Some(flow) = tables::new_flow() else {
        return false;
    };
    if scene.is_tls() {
        flow.open_records(Tracker::new(next, 0), next, known.server_high, 0, scene.now);
    } else {
        flow.open(next, known.server_high, 0, scene.now);
        // Nobody knows what was agreed.
        flow.client.flags |= RSV1_AGREED;
        flow.server.flags |= RSV1_AGREED | GUESSED;
    }
    flow.join(next);
    flow.owner = role::own();
    if let Some(account) = packet::account() {
        flow.account = *account;
    }
    flow.acked = known.acked;
    let joined = tables::insert_flow(scene);
    if joined {
        let _ = STRANGERS.remove(scene.key());
        report::count(Counter::FlowsJoined);
        report::flow_event(EventKind::FlowOpened, scene.key(), scene.now, 0);
    }
    joined
}

/// The flow lost step: look whether frames begin in this segment.
#[cold]
#[inline(never)]
pub fn search<P: Packet>(
    scene: &Scene,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Outcome {
    let segment = scene.segment;
    let Some(state) = walk::state() else {
        return Outcome::Pass;
    };
    state.search = flow.search(segment.seq, segment.len);
    let mut walker = Walker { state, packet: payload(segment) };
    walker.search();
    let search = &walker.state.search;
    let (mut found, mut passes) = (false, true);
    let (ack, window, len) = (segment.ack, segment.window, segment.len);
    let now_ms = millis(scene.now);
    locked(
        flow,
        #[inline(always)]
        |flow| {
            if flow.state == flow::state::UNSYNCED {
                found = flow.searched(search);
                passes = found || flow.may_pass_unread(ack, window, len, now_ms);
                flow.last_ns = scene.now;
            }
        },
    );
    if found {
        report::count(Counter::FlowsResynced);
        return Outcome::Rewound;
    }
    // What cannot be followed cannot be defused either.
    if !passes || flow.is_over_limit(scene.now) {
        scene.drop(Counter::DroppedUnsynced).into()
    } else {
        Outcome::Pass
    }
}

/// The server has answered pings that nobody saw.
#[cold]
#[inline(never)]
pub fn witnessed(scene: &Scene, pings: u32) {
    report::add(Counter::Witnessed, pings.into());
    sources::charge(scene.now, pings);
}
