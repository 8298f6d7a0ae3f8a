//! Figures by server: heartbeats, ends of connections, notable segments.
use std::time::Duration;

use ws_guard_common::{
    flow::{Flow, SERVER_DONE, state},
    frame::Violation,
    maps::{Counter::*, End, Server},
};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    packets::{
        Packet, SWITCHING,
        flag::{ACK, FIN, RST},
    },
};

use crate::{
    answers::accepted,
    case::{Case, Family, case, text},
    forged::syn_ack,
};

const CLIENT: usize = 0;
const SERVER: usize = 1;

pub fn cases() -> Vec<Case> {
    let mut cases = heartbeats();
    cases.extend(ends());
    cases.extend(silence());
    cases.extend(segments());
    cases
}

fn ping(payload: &str) -> Vec<u8> {
    encode(&[Frame::ping(payload)])
}

fn pong(payload: &str) -> Vec<u8> {
    encode(&[Frame::new(opcode::PONG, payload)])
}

/// Return a control frame of a server.
fn of_server(opcode: u8, payload: &str) -> Vec<u8> {
    encode(&[Frame { mask: None, ..Frame::new(opcode, payload) }])
}

impl Case {
    /// Expect these numbers of answered pings, of clients and of the server.
    fn answered(self, clients: u64, servers: u64) -> Case {
        self.figure("clients' heartbeats", |server| server.heartbeats[CLIENT].count(), clients)
            .figure("the server's", |server| server.heartbeats[SERVER].count(), servers)
    }

    /// Expect this number of ended connections, all of this kind.
    fn ended(self, end: Option<End>, count: u64) -> Case {
        let figures: [fn(&Server) -> u64; End::COUNT] = [
            |server| server.ended[0],
            |server| server.ended[1],
            |server| server.ended[2],
            |server| server.ended[3],
            |server| server.ended[4],
        ];
        End::ALL.into_iter().zip(figures).fold(self, |case, (kind, figure)| {
            case.figure(kind.name(), figure, if end == Some(kind) { count } else { 0 })
        })
    }
}

fn heartbeats() -> Vec<Case> {
    vec![
        case("a pong closes the ping with its payload")
            .open()
            .client(ping("one"))
            .server(9, of_server(opcode::PONG, "one"))
            .answered(1, 0),
        case("and no other")
            .open()
            .client(ping("one"))
            .server(9, of_server(opcode::PONG, "two"))
            .server(9, of_server(opcode::PONG, ""))
            .answered(0, 0),
        case("nor a second time")
            .open()
            .client(ping("one"))
            .server(9, of_server(opcode::PONG, "one"))
            .server(9, of_server(opcode::PONG, "one"))
            .answered(1, 0),
        case("a ping behind another frame is followed, and a pong behind one")
            .open()
            .client([text("x"), ping("one")].concat())
            .server(16, [of_server(opcode::TEXT, "x"), of_server(opcode::PONG, "one")].concat())
            .answered(1, 0),
        case("a ping that comes again waits once")
            .open()
            .client(ping("one"))
            .client_at(0, ping("one"))
            .server(9, of_server(opcode::PONG, "one"))
            .server(9, of_server(opcode::PONG, "one"))
            .answered(1, 0),
        case("a ping that is defused does not wait")
            .open()
            .throttle()
            .client(ping("one"))
            .defused(&[0])
            .server(9, of_server(opcode::PONG, "one"))
            .policy(|policy| policy.share = 0)
            .answered(0, 0),
        case("a client's pong closes the server's ping")
            .open()
            .server(0, of_server(opcode::PING, "one"))
            .client(pong("two"))
            .client(pong("one"))
            .client(pong("one"))
            .answered(0, 1),
        case("each side's pings are its own")
            .open()
            .client(ping("one"))
            .server(9, of_server(opcode::PING, "one"))
            .client(pong("one"))
            .answered(0, 1),
        case("a ping without a pong for a second is unanswered when its connection ends")
            .open()
            .client(ping("one"))
            .wait(Duration::from_millis(1_100))
            .client("")
            .with(|packet| packet.flags = FIN | ACK)
            .figure("clients' unanswered pings", |server| server.unanswered[CLIENT], 1)
            .figure("the server's", |server| server.unanswered[SERVER], 0)
            .answered(0, 0)
            .only(Family::V4),
    ]
}

fn ends() -> Vec<Case> {
    let client = |case: Case, flags| case.client("").with(move |packet| packet.flags = flags);
    let server = |case: Case, flags| case.server(0, "").with(move |packet| packet.flags = flags);
    vec![
        case("no end").open().client(text("x")).ended(None, 0),
        server(client(case("the client's FIN").open(), FIN | ACK), FIN | ACK)
            .ended(Some(End::ClientFin), 1),
        client(client(case("the client's FIN, and its RST").open(), FIN | ACK), RST)
            .ended(Some(End::ClientFin), 1),
        client(case("the client's RST").open().server(0, ""), RST).ended(Some(End::ClientReset), 1),
        case("a RST elsewhere")
            .open()
            .client_at(1, "")
            .with(|packet| packet.flags = RST)
            .ended(None, 0),
        client(server(case("the server's FIN").open(), FIN | ACK), FIN | ACK)
            .ended(Some(End::ServerFin), 1),
        server(case("the server's RST").open(), RST).ended(Some(End::ServerReset), 1),
        server(server(case("the server's FIN twice").open(), FIN | ACK), FIN | ACK)
            .ended(Some(End::ServerFin), 1),
    ]
}

/// Let a flow make room, as five minutes of silence would.
/// A virtual machine may be younger than that.
fn makes_room(flow: &mut Flow) {
    flow.state = state::CLOSED;
    flow.flags |= SERVER_DONE;
}

/// Connections whose end was not seen.
fn silence() -> Vec<Case> {
    let again = |case: Case| syn_ack(case, 1_000);
    let full = |case: Case| case.on(1).open().on(2).open().on(3).open();
    let fin = |packet: &mut Packet| packet.flags = FIN | ACK;
    vec![
        again(accepted("its end points are used again").request().answer(SWITCHING))
            .ended(Some(End::Silence), 1),
        again(accepted("after its end").request().answer(SWITCHING).client("").with(fin))
            .ended(Some(End::ClientFin), 1),
        full(case("a flow without an end makes room").open().flow(makes_room))
            .counts(&[(FlowsReclaimed, 1)])
            .leaves_no_flow()
            .ended(Some(End::Silence), 1),
        full(case("after its end").open().client("").with(fin).flow(makes_room))
            .counts(&[(FlowsReclaimed, 1)])
            .leaves_no_flow()
            .ended(Some(End::ClientFin), 1),
        full(case("others do not").open()).counts(&[(FlowsReclaimed, 0)]).ended(None, 0),
    ]
}

fn segments() -> Vec<Case> {
    let masked = encode(&[Frame::text("x")]);
    vec![
        case("a client's segments in order")
            .open()
            .client(text("a"))
            .client(text("b"))
            .figure("coalesced", |server| server.segments[CLIENT].coalesced, 0)
            .figure("retransmitted", |server| server.segments[CLIENT].retransmitted, 0)
            .figure("out of order", |server| server.segments[CLIENT].out_of_order, 0),
        case("two frames in a segment, and a cut header")
            .open()
            .client([text("a"), text("b")].concat())
            .client(&text("c")[..1])
            .figure("coalesced", |server| server.segments[CLIENT].coalesced, 1)
            .figure("split headers", |server| server.segments[CLIENT].split_headers, 1)
            .figure("the server's", |server| server.segments[SERVER].coalesced, 0),
        case("a client's segment comes again, and one comes early")
            .open()
            .client(text("a"))
            .client_at(0, text("a"))
            .client_at(14, text("c"))
            .figure("retransmitted", |server| server.segments[CLIENT].retransmitted, 1)
            .figure("out of order", |server| server.segments[CLIENT].out_of_order, 1)
            .figure("the server's", |server| server.segments[SERVER].retransmitted, 0),
        case("a server's segment comes again")
            .open()
            .server(0, of_server(opcode::TEXT, "abc"))
            .server(0, "")
            .with(|packet| {
                packet.seq = packet.seq.wrapping_sub(5);
                packet.payload = of_server(opcode::TEXT, "abc");
            })
            .figure("retransmitted", |server| server.segments[SERVER].retransmitted, 1)
            .figure("the client's", |server| server.segments[CLIENT].retransmitted, 0),
        case("a server's masked frame")
            .open()
            .server(0, masked)
            .figure(
                "masked",
                |server| server.segments[SERVER].violations[Violation::Masked as usize],
                1,
            )
            .figure(
                "the client's",
                |server| server.segments[CLIENT].violations[Violation::Masked as usize],
                0,
            ),
    ]
}
