//! Segments that the server's TCP does not take, or takes for something else than they look like.
use std::time::Duration;

use ws_guard_common::{
    flow::{BEFORE_FLOW, state},
    maps::{Counter::*, action},
};
use ws_guard_testkit::packets::{
    REQUEST, SWITCHING,
    flag::{ACK, FIN, PSH, RST, SYN, URG},
};

use crate::case::{Case, case, pings, text};

pub fn cases() -> Vec<Case> {
    let mut cases = not_taken();
    cases.extend(endings());
    cases.extend(beginnings());
    cases
}

fn not_taken() -> Vec<Case> {
    let forged = |name| case(name).open().client_at(0, pings(40));
    let counted = [(DroppedForged, 1), (Pings, 0)];
    vec![
        forged("data without an ACK").with(|packet| packet.flags = PSH).dropped().counts(&counted),
        forged("an acknowledgement of what the server has not sent")
            .with(|packet| packet.ack = packet.ack.wrapping_add(1))
            .dropped()
            .counts(&counted),
        forged("an acknowledgement from half the sequence space away")
            .with(|packet| packet.ack ^= 1 << 31)
            .dropped()
            .counts(&counted),
        forged("an acknowledgement of too long ago")
            .with(|packet| packet.ack = packet.ack.wrapping_sub(BEFORE_FLOW + 1))
            .dropped()
            .counts(&counted),
        forged("an acknowledgement of not so long ago")
            .with(|packet| packet.ack = packet.ack.wrapping_sub(BEFORE_FLOW))
            .defused(&[180, 186, 192, 198, 204, 210, 216, 222, 228, 234])
            .counts(&[(DroppedForged, 0), (Pings, 40)]),
        case("an observer passes it, and does not believe it")
            .policy(|policy| policy.action = action::OBSERVE)
            .open()
            .client_at(0, pings(40))
            .with(|packet| packet.flags = PSH)
            .counts(&[(DroppedForged, 0), (Pings, 0)]),
        case("urgent data, which the server's application reads elsewhere")
            .open()
            .client_at(0, pings(1))
            .with(|packet| packet.flags = ACK | URG)
            .dropped()
            .counts(&[(DroppedUrgent, 1), (Pings, 0)]),
        case("an urgent pointer before the connection is one")
            .client_at(-(REQUEST.len() as i64), REQUEST)
            .with(|packet| packet.flags = ACK | URG)
            .dropped()
            .counts(&[(DroppedUrgent, 1)]),
    ]
}

/// RST and FIN that the guard sees and the server throws away.
fn endings() -> Vec<Case> {
    vec![
        case("a RST in the right place, and data all the same")
            .open()
            .client(pings(30))
            .server(180, [])
            .client_at(180, [])
            .with(|packet| packet.flags = RST)
            .client(pings(1))
            .defused(&[0])
            .leaves(state::OPEN)
            .counts(&[(FlowsClosed, 1), (FlowsReopened, 1), (Pings, 31)]),
        case("a RST before the delayed acknowledgement, and other bytes where the first ones were")
            .open()
            .client(text("what the server has"))
            .client_at(0, [])
            .with(|packet| packet.flags = RST)
            .server(25, [])
            .wait(Duration::from_millis(1100))
            .client_at(0, [&[0x82, 0xFE, 0xFF, 0xFF][..], &[0; 21]].concat())
            .client(pings(31))
            .defused(&[180])
            .leaves(state::OPEN)
            .counts(&[(FlowsClosed, 1), (FlowsReopened, 1), (Pings, 31)]),
        case("data in a RST")
            .open()
            .client_at(0, pings(40))
            .with(|packet| packet.flags = RST | ACK)
            .leaves(state::CLOSED)
            .counts(&[(FlowsClosed, 1), (Pings, 0)]),
        case("a FIN whose place one more byte takes")
            .open()
            .client(pings(30))
            .client_at(180, [])
            .with(|packet| packet.flags = FIN | ACK)
            .client([0x89])
            .defused(&[0])
            .server(181, [])
            .client([0x80, 0, 0, 0, 0])
            .client(pings(1))
            .defused(&[0])
            .leaves(state::OPEN)
            .counts(&[(FlowsClosed, 1), (FlowsReopened, 1), (Pings, 32)]),
        case("old bytes behind the end")
            .open()
            .client(pings(1))
            .client_at(6, [])
            .with(|packet| packet.flags = FIN | ACK)
            .server(7, [])
            .client_at(0, pings(1))
            .leaves(state::CLOSED)
            .counts(&[(FlowsClosed, 1), (FlowsReopened, 0), (Pings, 1)]),
    ]
}

/// SYNs, and what looks like the beginning of a connection.
fn beginnings() -> Vec<Case> {
    let request = -(REQUEST.len() as i64);
    vec![
        case("a SYN with data in the middle")
            .open()
            .client_at(0, pings(40))
            .with(|packet| packet.flags = SYN | ACK)
            .client(pings(31))
            .defused(&[180])
            .leaves(state::OPEN)
            .counts(&[(Pings, 31)]),
        case("a request in the SYN (RFC 7413)")
            .client_at(request - 1, REQUEST)
            .with(|packet| packet.flags = SYN)
            .answer(SWITCHING)
            .client(pings(31))
            .defused(&[180])
            .counts(&[(RequestsUnseen, 0), (Pings, 31)]),
        case("a SYN-ACK ends what was between these end points")
            .open()
            .server(0, [])
            .with(|packet| packet.flags = SYN | ACK)
            .leaves_no_flow(),
        case("a request of an earlier connection is none of the next one's")
            .client_at(-20, REQUEST)
            .server(0, [])
            .with(|packet| packet.flags = SYN | ACK)
            .open()
            .leaves(state::OPEN)
            .counts(&[(RequestsUnseen, 0)]),
        case("a 101 in a body opens a flow only until the server speaks HTTP again")
            .answer(SWITCHING)
            .client([0x82, 0xFF, 0x3F, 0, 0, 0, 0, 0, 0, 0])
            .client(REQUEST)
            .server(10 + REQUEST.len() as i64, SWITCHING)
            .client(pings(31))
            .with(|packet| packet.ack = packet.ack.wrapping_add(SWITCHING.len() as u32))
            .defused(&[180])
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 2), (Pings, 31)]),
        case("a throttled source opens no connection whose request nobody could read")
            .open()
            .throttle()
            .on(1)
            .answer(SWITCHING)
            .dropped()
            .counts(&[(RequestsUnseen, 1), (DroppedUnseen, 1), (FlowsOpened, 1)]),
        case("but any other")
            .open()
            .throttle()
            .on(1)
            .open()
            .counts(&[(DroppedUnseen, 0), (FlowsOpened, 2)]),
        case("a request in one-byte segments")
            .client_at(request, &REQUEST[..1])
            .client_at(request + 1, &REQUEST[1..2])
            .client_at(request + 2, &REQUEST[2..])
            .client_at(0, pings(1))
            .dropped()
            .answer(SWITCHING)
            .leaves(state::OPEN)
            .counts(&[(RequestsUnseen, 0), (DroppedEarly, 1)]),
        case("a GET inside a request is part of it")
            .client_at(request, &REQUEST[..50])
            .client_at(
                request + 50,
                b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n\x82\xFF\x3F\0\0\0\0\0\0\0",
            )
            .dropped()
            .client_at(request + 50, &REQUEST[50..])
            .answer(SWITCHING)
            .client(pings(31))
            .defused(&[180])
            .counts(&[(RequestsUnseen, 0), (DroppedEarly, 1), (Pings, 31)]),
    ]
}
