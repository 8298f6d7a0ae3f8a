//! Handshakes that open a flow, and those that do not.
use ws_guard_common::{
    flow::state,
    maps::{Counter::*, FLOWS_FAIL_CLOSED, action},
};
use ws_guard_testkit::{
    frame::{Frame, encode},
    packets::{REQUEST, SWITCHING},
};

use crate::case::{Case, case, pings};

const H2C: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
const DEFLATE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// Difference in length to the ordinary answer.
const LONGER: u32 = (SWITCHING.len() - DEFLATE.len()) as u32;

/// Return the request with these bytes behind it, in one segment.
fn request_and(more: Vec<u8>) -> Vec<u8> {
    [REQUEST, &more].concat()
}

pub fn cases() -> Vec<Case> {
    let mut cases = answers();
    cases.extend(early_frames());
    cases
}

fn answers() -> Vec<Case> {
    let request = -(REQUEST.len() as i64);
    let answer = SWITCHING.len();
    vec![
        case("a request alone").request().leaves_no_flow().counts(&[(Tracked, 0)]),
        case("a request and its 101").open().leaves(state::OPEN).counts(&[
            (FlowsOpened, 1),
            (RequestsUnseen, 0),
            (EgressTracked, 0),
        ]),
        case("a 101 to another protocol")
            .request()
            .answer(H2C)
            .leaves_no_flow()
            .counts(&[(FlowsOpened, 0)]),
        case("a refusal")
            .request()
            .answer(b"HTTP/1.1 403 Forbidden\r\nUpgrade: websocket\r\n\r\n")
            .leaves_no_flow()
            .counts(&[(FlowsOpened, 0)]),
        case("a 101 whose request was not seen")
            .answer(SWITCHING)
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]),
        case("a request in two segments")
            .client_at(request, &REQUEST[..50])
            .client_at(request + 50, &REQUEST[50..])
            .answer(SWITCHING)
            .client(pings(2))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 0), (Pings, 2)]),
        case("a 101 in two segments")
            .request()
            .answer(&SWITCHING[..40])
            .leaves_no_flow()
            .server(0, &SWITCHING[40..])
            .with(move |packet| packet.seq = packet.seq.wrapping_sub(answer as u32 - 40))
            .client(pings(2))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 0), (Pings, 2)]),
        case("a 101 whose first segments have a byte and ten")
            .request()
            .answer(&SWITCHING[..1])
            .answer(&SWITCHING[1..11])
            .with(|packet| packet.seq = packet.seq.wrapping_add(1))
            .answer(&SWITCHING[..4])
            .client_at(0, pings(2))
            .dropped()
            .answer(&SWITCHING[11..])
            .with(|packet| packet.seq = packet.seq.wrapping_add(11))
            .client(pings(2))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 0), (Pings, 2)]),
        case("another answer whose first segment might have been a 101's")
            .request()
            .answer(b"HTTP/1.1 1")
            .answer(b"00 Continue\r\nUpgrade: websocket\r\n\r\n")
            .with(|packet| packet.seq = packet.seq.wrapping_add(10))
            .leaves_no_flow()
            .counts(&[(FlowsOpened, 0)]),
        case("the server's first frame behind its 101")
            .request()
            .answer([SWITCHING, &[0x81, 1, b'x', 0x8A, 0]].concat())
            .counts(&[(FlowsOpened, 1), (FramesOut, 2), (PongsOut, 1)]),
        case("an agreed permessage-deflate gives RSV1 a meaning")
            .request()
            .answer(DEFLATE)
            .with(|packet| packet.seq = packet.seq.wrapping_add(LONGER))
            .client(encode(&[Frame { rsv: 4, ..Frame::text("x") }]))
            .counts(&[(Frames, 1)]),
        case("a full flow table lets connections through untracked")
            .open()
            .on(1)
            .open()
            .on(2)
            .open()
            .on(3)
            .open()
            .client(pings(40))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 3), (FlowsRefused, 1), (Pings, 0)]),
        case("a full flow table refuses connections, if it shall")
            .policy(|policy| policy.flags = FLOWS_FAIL_CLOSED)
            .open()
            .on(1)
            .open()
            .on(2)
            .open()
            .on(3)
            .open()
            .dropped()
            .counts(&[(FlowsOpened, 3), (FlowsRefused, 1)]),
    ]
}

/// Frames before the answer.
fn early_frames() -> Vec<Case> {
    let request = -(REQUEST.len() as i64);
    vec![
        case("frames in the request's segment: it has to come without them")
            .client_at(request, request_and(pings(4)))
            .dropped()
            .open()
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (DroppedEarly, 1), (RequestsUnseen, 0), (Pings, 0)]),
        case("empty lines before the request")
            .client_at(request - 4, [b"\r\n\r\n", REQUEST, &pings(4)].concat())
            .dropped()
            .client_at(request - 4, [b"\r\n\r\n", REQUEST].concat())
            .answer(SWITCHING)
            .counts(&[(FlowsOpened, 1), (DroppedEarly, 1), (RequestsUnseen, 0)]),
        case("a request behind another one, in one segment")
            .client_at(request - 18, [b"GET / HTTP/1.1\r\n\r\n", REQUEST, &pings(4)].concat())
            .dropped()
            .client_at(request - 18, [b"GET / HTTP/1.1\r\n\r\n", REQUEST].concat())
            .answer(SWITCHING)
            .counts(&[(FlowsOpened, 1), (DroppedEarly, 1), (RequestsUnseen, 0)]),
        case("frames before the answer, in a segment of their own, have to wait for it")
            .request()
            .client_at(0, pings(3))
            .dropped()
            .answer(SWITCHING)
            .client(pings(3))
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0), (Pings, 3), (Frames, 3)]),
        case("an observer lets them pass, and says that it did not see them")
            .policy(|policy| policy.action = action::OBSERVE)
            .request()
            .client(pings(3))
            .answer(SWITCHING)
            .with(|packet| packet.ack = packet.ack.wrapping_add(18))
            .client(pings(1))
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 0), (RequestsUnseen, 1), (Pings, 1)]),
        case("a request that comes twice, and one with a gap before it")
            .request()
            .request()
            .dropped()
            .client_at(10, pings(1))
            .dropped()
            .answer(SWITCHING)
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 2), (RequestsUnseen, 0)]),
        case("a request at a guessed sequence number")
            .client_at(1 << 20, request_and(pings(3)))
            .dropped()
            .client_at(1 << 20, REQUEST)
            .open()
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 1), (RequestsUnseen, 1)]),
    ]
}
