//! Requests that wait for their answer while others are pushed out of the table.
use ws_guard_common::{flow::state, maps::Counter::*};
use ws_guard_testkit::packets::{REQUEST, SWITCHING, flag};

use crate::case::{Case, FLOOD, case, pings};

const PLAIN: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

impl Case {
    /// Expect that pings before the answer do not pass, whatever was forgotten;
    /// then send the answer.
    fn remembered(self) -> Case {
        self.client_at(0, pings(3))
            .dropped()
            .answer(SWITCHING)
            .client(pings(3))
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0), (Pings, 3)])
    }

    /// Expect that they pass, and that the flow says it did not see the request.
    fn forgotten(self) -> Case {
        self.client_at(0, pings(3)).answer(SWITCHING).leaves(state::OPEN).counts(&[
            (DroppedEarly, 0),
            (RequestsUnseen, 1),
            (Pings, 0),
        ])
    }

    /// Send a request without an upgrade, and its answer.
    fn not_found(self) -> Case {
        let at = REQUEST.len() + PLAIN.len();
        self.client_at(-(at as i64), PLAIN).answer(NOT_FOUND)
    }
}

pub fn cases() -> Vec<Case> {
    let request = -(REQUEST.len() as i64);
    let mut cases = proofs();
    cases.extend([
        case("a request that was proven in its midst")
            .client_at(request, &REQUEST[..50])
            .server(request + 50, [])
            .requests(FLOOD)
            .client_at(request + 50, [&REQUEST[50..], &pings(3)].concat())
            .dropped()
            .client_at(request + 50, &REQUEST[50..])
            .answer(SWITCHING)
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0)]),
        case("a 101 in two segments, and requests of others between them")
            .request()
            .answer(&SWITCHING[..40])
            .requests(FLOOD)
            .server(0, &SWITCHING[40..])
            .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32 - 40))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 0)]),
        case("whom the server has answered before has his place when he asks")
            .not_found()
            .request()
            .requests(FLOOD)
            .remembered(),
        case("no more when the server has closed")
            .not_found()
            .server(request, [])
            .with(|packet| packet.flags |= flag::FIN)
            .request()
            .requests(FLOOD)
            .forgotten(),
        case("nor when a new connection begins")
            .not_found()
            .server(request, [])
            .with(|packet| packet.flags |= flag::SYN)
            .with(|packet| packet.seq = packet.seq.wrapping_sub(1))
            .request()
            .requests(FLOOD)
            .forgotten(),
    ]);
    cases
}

/// Proofs that a request is on a connection.
fn proofs() -> Vec<Case> {
    vec![
        case("an acknowledgement with the number that the request named proves it")
            .request()
            .server(0, [])
            .requests(FLOOD)
            .remembered(),
        case("without one it is forgotten").request().requests(FLOOD).forgotten(),
        case("an acknowledgement with another number proves nothing")
            .request()
            .server(0, [])
            .with(|packet| packet.seq = packet.seq.wrapping_add(1))
            .requests(FLOOD)
            .forgotten(),
        case("nor does a reset")
            .request()
            .server(0, [])
            .with(|packet| packet.flags = flag::RST | flag::ACK)
            .requests(FLOOD)
            .forgotten(),
    ]
}
