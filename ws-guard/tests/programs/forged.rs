//! Segments that the server's TCP discards, or takes for something else.
use std::time::Duration;

use ws_guard_common::{
    flow::{BEFORE_FLOW, state},
    maps::{Counter::*, action},
};
use ws_guard_testkit::packets::{
    Packet, REQUEST, SWITCHING,
    flag::{ACK, FIN, PSH, RST, SYN, URG},
};

use crate::case::{Case, case, pings, text};

pub const HTTP: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

pub fn cases() -> Vec<Case> {
    let mut cases = not_taken();
    cases.extend(out_of_step());
    cases.extend(endings());
    cases.extend(beginnings());
    cases.extend(later_requests());
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

/// Streams out of sync, whose client withholds the pongs that tell of pings.
fn out_of_step() -> Vec<Case> {
    let payload = || vec![0; 1000];
    let segments =
        |case: Case, count: u32| (0..count).fold(case, |case, _| case.client(payload()).shut());
    let unsynced = |name| segments(case(name).open().server(1000, []), 17);
    vec![
        unsynced("what passes out of sync is limited")
            .client(payload())
            .shut()
            .dropped()
            .leaves(state::UNSYNCED)
            .counts(&[(DroppedUnsynced, 1)]),
        unsynced("it begins to count anew when the client has taken something of the server's")
            .server(18_000, [0x81, 1, b'x'])
            .client(payload())
            .with(|packet| packet.ack = packet.ack.wrapping_add(3))
            .counts(&[(DroppedUnsynced, 0)]),
        unsynced("not where a pong in it reveals an unseen ping")
            .server(18_000, [0x8A, 0])
            .client(payload())
            .with(|packet| packet.ack = packet.ack.wrapping_add(2))
            .dropped()
            .counts(&[(DroppedUnsynced, 1), (Witnessed, 1)]),
        unsynced("and when the server could have said something, and did not")
            .wait(Duration::from_millis(40))
            .client(payload())
            .counts(&[(DroppedUnsynced, 0)]),
        unsynced("not where there is no room for it")
            .wait(Duration::from_millis(300))
            .client(payload())
            .shut()
            .dropped()
            .counts(&[(DroppedUnsynced, 1)]),
        unsynced("frames are seen all the same where nothing passes any more")
            .client_at(17_000, payload())
            .shut()
            .dropped()
            .client_at(17_000, pings(40))
            .defused(&[180, 186, 192, 198, 204, 210, 216, 222, 228, 234])
            .leaves(state::OPEN)
            .counts(&[(DroppedUnsynced, 1), (FlowsResynced, 1)]),
        case("other bytes after a silence: which of them the server has is unknown")
            .open()
            .client(text("what the server may have"))
            .wait(Duration::from_millis(1100))
            .client_at(0, [&[0x82, 0xFE, 0xFF, 0xFF][..], &[0; 30]].concat())
            .leaves(state::UNSYNCED)
            .counts(&[(FlowsUnsynced, 1)]),
        case("what the server says meanwhile shows that it has none")
            .open()
            .client(text("what the server does not have"))
            .wait(Duration::from_millis(1100))
            .server(0, [0x81, 1, b'x'])
            .wait(Duration::from_millis(120))
            .client_at(0, [&[0x82, 0xFE, 0xFF, 0xFF][..], &[0; 35]].concat())
            .leaves(state::OPEN)
            .counts(&[(FlowsUnsynced, 0), (Frames, 2)]),
    ]
}

/// RST and FIN that the guard sees and the server discards.
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

/// Send the server's SYN-ACK, in front of its answer.
pub fn syn_ack(case: Case, acked: i64) -> Case {
    case.server(acked, []).with(|packet| {
        packet.flags = SYN | ACK;
        packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32 + 1);
    })
}

/// The head of an upload.
const UPLOAD: &[u8] = b"POST /upload HTTP/1.1\r\nContent-Length: 9000\r\n\r\n";
pub const PAGE: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n";

/// Start a connection on which the server has answered a request for a page.
pub fn kept_alive(name: &'static str) -> Case {
    let request = -(REQUEST.len() as i64);
    let first = request - PAGE.len() as i64;
    let earlier = |packet: &mut Packet| packet.seq = packet.seq.wrapping_sub(HTTP.len() as u32);
    syn_ack(case(name), first).with(earlier).client_at(first, PAGE).server(request, HTTP).with(
        move |packet| {
            earlier(packet);
            packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32);
        },
    )
}

/// Acknowledge the server's bytes in front of its 101.
fn before_the_answer(packet: &mut Packet) {
    packet.ack = packet.ack.wrapping_sub(SWITCHING.len() as u32);
}

/// Requests on kept-alive connections, and refused ones.
fn later_requests() -> Vec<Case> {
    let request = -(REQUEST.len() as i64);
    let upgrade = |case: Case| case.open();
    vec![
        upgrade(
            kept_alive("pings ahead of a second request are dropped")
                .client_at(0, pings(3))
                .dropped(),
        )
        .client(pings(31))
        .defused(&[180])
        .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0), (Pings, 31)]),
        upgrade(
            kept_alive("the end of a second request, and pings, ahead of its beginning")
                .client_at(-1, [&b"\n"[..], &pings(3)].concat())
                .dropped(),
        )
        .client(pings(31))
        .defused(&[180])
        .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0), (Pings, 31)]),
        kept_alive("pings far ahead of a second request, behind its first bytes")
            .client_at(request, &REQUEST[..10])
            .client_at(70_000, pings(3))
            .with(before_the_answer)
            .dropped()
            .client_at(request + 10, &REQUEST[10..])
            .leaves_no_flow()
            .counts(&[(DroppedEarly, 1)]),
        kept_alive("pings before a second request, and a jump round the sequence space")
            .client_at(request, b"x")
            .client_at(0, pings(3))
            .with(before_the_answer)
            .client_at(0x7000_0000, b"x")
            .with(before_the_answer)
            .dropped()
            .request()
            .dropped()
            .leaves_no_flow()
            .counts(&[(DroppedEarly, 2)]),
        upgrade(
            kept_alive("an old request hides none that goes on")
                .client_at(request - (1 << 20), &REQUEST[..20]),
        )
        .client(pings(31))
        .defused(&[180])
        .counts(&[(RequestsUnseen, 0), (Pings, 31)]),
        kept_alive("off path, between two pieces of a second request")
            .client_at(request, &REQUEST[..10])
            .client_at(request + 40_000, b"x")
            .with(|packet| packet.ack = packet.ack.wrapping_add(77_000))
            .dropped()
            .client_at(request - 100, &REQUEST[..20])
            .with(|packet| packet.ack = packet.ack.wrapping_sub(77_000))
            .dropped()
            .client_at(request + 10, &REQUEST[10..])
            .answer(SWITCHING)
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 2), (RequestsUnseen, 0)]),
        upgrade(kept_alive("an ordinary second request"))
            .client(pings(31))
            .defused(&[180])
            .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0), (Pings, 31)]),
        kept_alive("an upload behind an answer may come out of order past its first bytes")
            .client_at(request, UPLOAD)
            .client_at(4000, [b'y'; 100])
            .with(before_the_answer)
            .client_at(2000, [b'z'; 100])
            .with(before_the_answer)
            .counts(&[(DroppedEarly, 0)]),
        syn_ack(case("after a refused 101 its client is not heard"), request)
            .throttle()
            .answer(SWITCHING)
            .dropped()
            .client(pings(1))
            .dropped()
            .release()
            .answer(SWITCHING)
            .client_at(0, pings(1))
            .leaves(state::OPEN)
            .counts(&[(DroppedUnseen, 1), (DroppedEarly, 1), (Pings, 1)]),
    ]
}

/// SYNs, and segments that look like the beginning of a connection.
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
        syn_ack(case("nor does it have to begin far from where the old one ended"), request)
            .open()
            .server(0, [])
            .with(|packet| (packet.flags, packet.ack) = (SYN | ACK, packet.ack.wrapping_sub(4000)))
            .with(|packet| packet.seq = packet.seq.wrapping_sub(9000))
            .leaves_no_flow(),
        syn_ack(
            syn_ack(
                case("one that comes again before the client has said more")
                    .client_at(request - 1, REQUEST)
                    .with(|packet| packet.flags = SYN),
                0,
            )
            .answer(SWITCHING),
            0,
        )
        .leaves(state::OPEN),
        syn_ack(
            syn_ack(case("the very same behind more of the client is another connection's"), 0)
                .open()
                .client(text("x"))
                .server(7, []),
            0,
        )
        .leaves_no_flow(),
        case("HTTP in the middle of a frame of the server, behind a forged RST")
            .open()
            .client_at(0, [])
            .with(|packet| packet.flags = RST)
            .server(0, [&[0x82, 100][..], &[b' '; 8]].concat())
            .client([0x89])
            .server(0, HTTP)
            .server(0, HTTP)
            .leaves(state::OPEN)
            .counts(&[(FlowsReopened, 1), (FramesOut, 1)]),
        case("HTTP in the middle of a frame of a server whose request was not read")
            .answer(SWITCHING)
            .server(0, [&[0x82, 50][..], &[b' '; 8]].concat())
            .server(0, [HTTP, &[b' '; 42 - HTTP.len()], &[0x81, 0]].concat())
            .leaves(state::OPEN)
            .counts(&[(FramesOut, 2)]),
        syn_ack(
            case("a request of an earlier connection is none of the next one's")
                .client_at(-20, REQUEST),
            request,
        )
        .open()
        .leaves(state::OPEN)
        .counts(&[(RequestsUnseen, 0)]),
        syn_ack(case("pings ahead of the first request are dropped"), request)
            .client_at(-1, pings(3))
            .dropped()
            .client_at(0, pings(3))
            .with(|packet| packet.ack = packet.ack.wrapping_sub(SWITCHING.len() as u32))
            .dropped()
            .open()
            .client(pings(31))
            .defused(&[180])
            .counts(&[(DroppedEarly, 2), (RequestsUnseen, 0), (Pings, 31)]),
        syn_ack(case("a request behind what passed beyond it is dropped"), request)
            .client_at(request, [&[b'x'; REQUEST.len()][..], &pings(1)].concat())
            .request()
            .dropped()
            .request()
            .dropped()
            .leaves_no_flow()
            .counts(&[(DroppedEarly, 2)]),
        syn_ack(case("pings that acknowledge less, ahead of a request"), request)
            .client_at(-1, pings(3))
            .with(|packet| packet.ack = packet.ack.wrapping_sub(1))
            .dropped()
            .open()
            .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0)]),
        syn_ack(case("another request behind the first one hides nothing"), request)
            .request()
            .client_at(-1, [&b"\nPOST / HTTP/1.1\r\n\r\n"[1..], &pings(1)].concat())
            .dropped()
            .answer(SWITCHING)
            .client(pings(31))
            .defused(&[180])
            .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0), (Pings, 31)]),
        syn_ack(case("a spoofed request does not hide the connection's own"), request)
            .client_at(-5000, REQUEST)
            .with(|packet| packet.ack = packet.ack.wrapping_add(77_000))
            .dropped()
            .open()
            .leaves(state::OPEN)
            .counts(&[(RequestsUnseen, 0)]),
        syn_ack(case("an upload before any answer may come out of order"), request)
            .client_at(request, UPLOAD)
            .client_at(4000, [b'y'; 100])
            .with(|packet| packet.ack = packet.ack.wrapping_sub(SWITCHING.len() as u32))
            .client_at(2000, [b'z'; 100])
            .with(|packet| packet.ack = packet.ack.wrapping_sub(SWITCHING.len() as u32))
            .counts(&[(DroppedEarly, 0)]),
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
        case("a 101 in a body, and text behind it, opens none for longer than its segment")
            .answer([SWITCHING, b"</pre>"].concat())
            .client(REQUEST)
            .server(REQUEST.len() as i64, SWITCHING)
            .with(|packet| packet.seq = packet.seq.wrapping_add(6))
            .client(pings(31))
            .with(|packet| packet.ack = packet.ack.wrapping_add(SWITCHING.len() as u32 + 6))
            .defused(&[180])
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 2), (Pings, 31), (DroppedUnsynced, 0)]),
        case("a throttled source opens no connection with an unread request")
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
