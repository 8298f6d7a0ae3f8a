//! Connection, as in `flows`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use ws_guard_common::{
    flow::{DEFLATE, Flow, REQUEST_UNSEEN, state},
    maps::{FlowKey, identity},
    source::millis,
};
use ws_guard_server::source::Prefixes;

use super::{
    address::source_text,
    clock::{Clock, Timestamp},
};

/// Connection in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowView {
    /// Client's end of the TCP connection: the proxy's, if there is one.
    pub client: String,
    pub server: String,
    /// Source for its limits; null before the end of the handshake.
    pub source: Option<String>,
    /// Origin of the source: `peer`, `forwarded`, `proxy-protocol` or `connection`.
    pub identity: Option<Cow<'static, str>>,
    /// `handshake`, `open`, `unsynced` or `closed`.
    pub state: Cow<'static, str>,
    pub frames_in: u64,
    pub pings_in: u64,
    pub pongs_in: u64,
    pub frames_out: u64,
    pub pongs_out: u64,
    /// Pings that reached the server as pongs.
    pub defused: u64,
    /// Set if the connection is over the limit now.
    pub over_limit: bool,
    /// Set if its receive window is held now...
    #[serde(default)]
    pub paced: bool,
    /// ...and its average rate in bytes per second since then; null otherwise.
    #[serde(default)]
    pub paced_bytes_per_second: Option<u64>,
    /// Segments dropped over the limit, without those already added to its source's.
    pub dropped: u64,
    pub coalesced_segments: u64,
    pub split_headers: u64,
    pub split_frames: u64,
    pub violations: u64,
    /// Segments that arrived after a gap.
    pub gaps: u32,
    /// Times that frames were missed; from the first on, counters are lower bounds.
    pub unsynced_total: u32,
    /// Latest time from a ping to its pong; null without a measurement.
    pub heartbeat_rtt_us: Option<u32>,
    /// Time since the client's latest payload; null before the end of the handshake.
    pub idle_ms: Option<u64>,
    pub opened: Option<Timestamp>,
    /// Set if permessage-deflate was agreed.
    pub deflate: bool,
    /// Set if the request preceded the guard's attachment.
    pub request_unseen: bool,
    /// Set for TLS: the frames are records.
    pub tls: bool,
}

impl FlowView {
    pub fn new(key: &FlowKey, flow: &Flow, clock: &Clock, prefixes: Prefixes) -> FlowView {
        FlowView {
            client: key.client_addr().to_string(),
            server: key.server_addr().to_string(),
            source: Some(source_text(&prefixes, &flow.account.source)),
            identity: Some(identity::name(flow.account.client.identity).into()),
            state: state::name(flow.state).into(),
            frames_in: flow.frames_in,
            pings_in: flow.pings_in,
            pongs_in: flow.pongs_in,
            frames_out: flow.frames_out,
            pongs_out: flow.pongs_out,
            defused: flow.defused,
            over_limit: flow.is_over_limit(clock.now_ns),
            paced: flow.is_paced(clock.now_ns),
            paced_bytes_per_second: granted_per_second(flow, clock.now_ns),
            dropped: flow.dropped,
            coalesced_segments: flow.coalesced_segments,
            split_headers: flow.split_headers,
            split_frames: flow.split_frames,
            violations: flow.violations,
            gaps: flow.gaps,
            unsynced_total: flow.unsynced_total,
            heartbeat_rtt_us: Some(flow.heartbeat_rtt_us).filter(|rtt| *rtt != 0),
            idle_ms: Some(clock.since_ms(flow.last_ns)),
            opened: clock.at(flow.opened_ns),
            deflate: flow.flags & DEFLATE != 0,
            request_unseen: flow.flags & REQUEST_UNSEEN != 0,
            tls: flow.in_records(),
        }
    }

    /// Create the view of a connection without a flow.
    /// It is a handshake that the server has not answered, or a midstream candidate.
    pub fn without_flow(key: &FlowKey, state: u8) -> FlowView {
        FlowView {
            client: key.client_addr().to_string(),
            server: key.server_addr().to_string(),
            state: state::name(state).into(),
            ..FlowView::default()
        }
    }
}

/// Return the bytes per second granted to a paced connection.
fn granted_per_second(flow: &Flow, now_ns: u64) -> Option<u64> {
    let paced_ms = millis(now_ns).wrapping_sub(flow.hold.since_ms).max(1);
    let granted = u64::from(flow.hold.granted) * 1000 / u64::from(paced_ms);
    flow.is_paced(now_ns).then_some(granted)
}

/// Numbers of flows by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStates {
    pub handshake: u32,
    pub open: u32,
    pub unsynced: u32,
    pub closed: u32,
    /// Flows of any state whose receive window is held now.
    #[serde(default)]
    pub paced: u32,
}

impl FlowStates {
    /// Count a flow.
    pub fn add(&mut self, flow: &Flow, now_ns: u64) {
        match flow.state {
            state::OPEN => self.open += 1,
            state::UNSYNCED => self.unsynced += 1,
            state::CLOSED => self.closed += 1,
            _ => {}
        }
        self.paced += u32::from(flow.state != state::CLOSED && flow.is_paced(now_ns));
    }

    /// Return the number of flows in the flow table.
    pub const fn in_table(&self) -> u32 {
        self.open + self.unsynced + self.closed
    }

    /// Return the number of live connections.
    pub fn live(&self) -> u32 {
        self.open + self.unsynced
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::SystemTime};

    use ws_guard_common::maps::{Account, Client, SourceKey};

    use super::*;

    const PREFIXES: Prefixes = Prefixes { v4: 32, v6: 64 };

    fn key() -> FlowKey {
        FlowKey::new("[fd77::1]:4711".parse().unwrap(), "10.0.0.2:9001".parse().unwrap())
    }

    fn clock() -> Clock {
        Clock { now_ns: 60_000_000_000, wall: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn a_flow_prints_its_end_points_and_counts() {
        let mut flow = Flow::default();
        flow.open(1000, 2000, DEFLATE, 57_500_000_000);
        flow.frames_in = 7;
        let client = Client::of(&"192.0.2.9".parse::<IpAddr>().unwrap().into(), 1);
        let source = SourceKey { address: client.address, scope: 0 };
        flow.account = Account { client, source };
        flow.over_until = 60_000_000_001;
        let view = FlowView::new(&key(), &flow, &clock(), PREFIXES);
        assert_eq!(view.source.as_deref(), Some("192.0.2.9"));
        assert_eq!((view.identity.as_deref(), view.over_limit), (Some("forwarded"), true));
        assert_eq!(
            (view.client.as_str(), view.server.as_str()),
            ("[fd77::1]:4711", "10.0.0.2:9001")
        );
        assert_eq!((view.state.as_ref(), view.frames_in, view.idle_ms), ("open", 7, Some(2500)));
        assert_eq!((view.heartbeat_rtt_us, view.deflate), (None, true));
    }

    #[test]
    fn a_handshake_has_no_idle_time() {
        let view = FlowView::without_flow(&key(), state::HANDSHAKE);
        assert_eq!((view.state.as_ref(), view.idle_ms), ("handshake", None));
    }

    #[test]
    fn states_are_counted() {
        let mut counted = FlowStates { handshake: 5, ..FlowStates::default() };
        for state in [state::OPEN, state::OPEN, state::UNSYNCED, state::CLOSED] {
            counted.add(&Flow { state, ..Flow::default() }, 0);
        }
        assert_eq!(counted, FlowStates { handshake: 5, open: 2, unsynced: 1, closed: 1, paced: 0 });
        assert_eq!((counted.live(), counted.in_table()), (3, 4));
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json =
            serde_json::to_value(FlowView::new(&key(), &Flow::default(), &clock(), PREFIXES))
                .unwrap();
        for field in [
            "client",
            "server",
            "source",
            "identity",
            "state",
            "paced",
            "frames_in",
            "pings_in",
            "pongs_out",
            "coalesced_segments",
            "split_headers",
            "violations",
            "heartbeat_rtt_us",
            "idle_ms",
        ] {
            assert!(json.get(field).is_some(), "{field} is missing in {json}");
        }
    }
}
