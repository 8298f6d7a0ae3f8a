//! Attribution of pings: to the peer, or to the client that a trusted proxy names.
use ws_guard_common::{
    forwarded::preface,
    maps::{Counter::*, identity},
};
use ws_guard_testkit::packets::{REQUEST, SWITCHING, flag};

use crate::case::{Case, Family, case, pings};

pub const CLIENT: &str = "198.51.100.7";
pub const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

/// Return the usual request with these additional lines.
pub fn request(fields: &str) -> Vec<u8> {
    let (lines, end) = REQUEST.split_at(REQUEST.len() - 2);
    [lines, fields.as_bytes(), end].concat()
}

/// Return the usual request of a client, as forwarded by a proxy.
pub fn of(client: &str) -> Vec<u8> {
    request(&format!("X-Forwarded-For: {client}\r\n"))
}

/// Return a PROXY protocol header, version 2, for IPv4.
pub fn v2(source: [u8; 4], length: u8) -> Vec<u8> {
    let mut header = [&preface::V2[..], &[0x21, 0x11, 0, length]].concat();
    header.extend(source);
    header.extend([10, 0, 0, 9, 0x12, 0x67, 0, 80]);
    header
}

impl Case {
    /// Send the request, which ends where frames begin.
    pub fn asks(self, head: &[u8]) -> Case {
        self.client_at(-(head.len() as i64), head)
    }

    /// Send request and answer.
    pub fn opens(self, head: &[u8]) -> Case {
        self.asks(head).answer(SWITCHING)
    }

    /// Send the same, the request in segments of `bytes` bytes.
    pub fn opens_in_pieces(mut self, head: &[u8], bytes: usize) -> Case {
        let mut at = -(head.len() as i64);
        for piece in head.chunks(bytes) {
            self = self.client_at(at, piece);
            at += piece.len() as i64;
        }
        self.answer(SWITCHING)
    }

    /// Accept the connection; its first `bytes` bytes come before the frames.
    pub fn accepted(self, bytes: usize) -> Case {
        self.server(-(bytes as i64), []).with(|packet| {
            packet.flags |= flag::SYN;
            // A SYN uses up a number, and the segments of cases acknowledge the byte after the
            // answer.
            packet.seq = packet.seq.wrapping_sub(1);
        })
    }

    /// Begin the connection with `preface`, in one segment with the request.
    pub fn prefaced(self, preface: &[u8]) -> Case {
        let head = [preface, REQUEST].concat();
        self.accepted(head.len()).opens(&head)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = headers();
    cases.extend(prefaces());
    cases.extend(charged());
    cases.extend(costly());
    cases
}

/// Requests that take long to read, with and without the server's SYN-ACK before.
fn costly() -> Vec<Case> {
    let hops = vec!["192.0.2.250"; 19].join(", ");
    let twenty = request(&format!("X-Forwarded-For: {hops}, {CLIENT}\r\n"));
    let lines = format!("{}X-Forwarded-For: {CLIENT}\r\n", "A:\n".repeat(220));
    let lines = request(&lines);
    let unread = |case: Case, head: &[u8]| {
        let unread = case.proxied().only(Family::V4).opens(head);
        unread
            .client_is("10.77.0.1", identity::CONNECTION)
            .client(pings(1))
            .counts(&[(RequestsUnseen, 0), (Pings, 1)])
    };
    let long = [v2([198, 51, 100, 7], 212), vec![4; 200]].concat();
    vec![
        case("twenty hops")
            .proxied()
            .accepted(twenty.len())
            .opens(&twenty)
            .client_is(CLIENT, identity::FORWARDED),
        unread(case("twenty hops, whose connection may be made up"), &twenty),
        case("hundreds of lines of a peer that is no trusted proxy")
            .only(Family::V4)
            .accepted(lines.len())
            .opens(&lines)
            .client_is("10.77.0.1", identity::PEER)
            .counts(&[(RequestsUnseen, 0)]),
        case("pings behind one that takes long to read, before its answer")
            .accepted(lines.len())
            .client_at(-(lines.len() as i64), [&lines[..], &pings(3)].concat())
            .dropped()
            .client_at(-(lines.len() as i64), &*lines)
            .client(pings(3))
            .dropped()
            .answer(SWITCHING)
            .client_at(0, pings(3))
            .counts(&[(RequestsUnseen, 0), (DroppedEarly, 2), (Pings, 3)]),
        case("hundreds of lines, whose connection may be made up: not read")
            .proxied()
            .only(Family::V4)
            .opens(&lines)
            .client_is("10.77.0.1", identity::CONNECTION)
            .client(pings(1))
            .counts(&[(RequestsUnseen, 1), (Pings, 1)]),
        case("hundreds of lines in segments of 60 bytes")
            .proxied()
            .opens_in_pieces(&lines, 60)
            .client_is(CLIENT, identity::FORWARDED),
        case("PROXY protocol with long fields")
            .proxied()
            .prefaced(&long)
            .client_is(CLIENT, identity::PROXY_PROTOCOL),
    ]
}

fn headers() -> Vec<Case> {
    let named = |fields: &str| {
        let name = Box::leak(format!("a trusted proxy writes {fields:?}").into_boxed_str());
        case(name).proxied().opens(&request(fields))
    };
    let xff = request("X-Forwarded-For: 6.6.6.6, 198.51.100.7\r\n");
    let cut = case("a header cut at each byte").proxied().opens_in_pieces(&xff, 1);
    let own = request("X-Forwarded-For: 198.51.100.7\r\n");
    let plain = b"GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    vec![
        named("X-Forwarded-For: 198.51.100.7\r\n").client_is(CLIENT, identity::FORWARDED),
        named("X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 198.51.100.7:80\r\n")
            .client_is(CLIENT, identity::FORWARDED),
        named("Forwarded: proto=http;host=\"a;for=6.6.6.6\";for=198.51.100.7\r\n")
            .client_is(CLIENT, identity::FORWARDED),
        named("X-Forwarded-For: unknown\r\n")
            .only(Family::V4)
            .client_is("10.77.0.1", identity::CONNECTION),
        named("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 198.51.100.7\r\n")
            .only(Family::V4)
            .client_is("10.77.0.1", identity::CONNECTION),
        cut.client_is(CLIENT, identity::FORWARDED),
        case("a peer that is no trusted proxy writes what it likes")
            .only(Family::V4)
            .opens(&own)
            .client_is("10.77.0.1", identity::PEER),
        case("a trusted proxy names no client")
            .proxied()
            .only(Family::V4)
            .open()
            .client_is("10.77.0.1", identity::PEER),
        case("headers of the request before on the same connection do not count")
            .proxied()
            .only(Family::V4)
            .client_at(-((REQUEST.len() + plain.len()) as i64), &plain[..])
            .answer(NOT_FOUND)
            .with(|packet| packet.seq = packet.seq.wrapping_sub(200))
            .open()
            .client_is("10.77.0.1", identity::PEER),
        case("nor do those of one in the same segment")
            .proxied()
            .only(Family::V4)
            .opens(&[&plain[..], REQUEST].concat())
            .client_is("10.77.0.1", identity::PEER),
        case("the head of a request behind the blank line")
            .proxied()
            .only(Family::V4)
            .asks(REQUEST)
            .client_at(0, &b"X-Forwarded-For: 6.6.6.6\r\n\r\n"[..])
            .dropped()
            .answer(SWITCHING)
            .client_is("10.77.0.1", identity::PEER),
    ]
}

fn prefaces() -> Vec<Case> {
    let v1 = b"PROXY TCP4 198.51.100.7 10.0.0.9 4711 80\r\n";
    let bytes = v1.len() + REQUEST.len();
    let plain = b"GET / HTTP/1.1\r\n\r\n";
    let said = identity::PROXY_PROTOCOL;
    vec![
        case("PROXY protocol, version 1").proxied().prefaced(v1).client_is(CLIENT, said),
        case("PROXY protocol, version 2")
            .proxied()
            .prefaced(&v2([198, 51, 100, 7], 12))
            .client_is(CLIENT, said),
        case("PROXY protocol in a segment of its own")
            .proxied()
            .accepted(bytes)
            .client_at(-(bytes as i64), &v1[..])
            .open()
            .client_is(CLIENT, said),
        case("PROXY protocol in pieces")
            .proxied()
            .accepted(bytes)
            .client_at(-(bytes as i64), &v1[..3])
            .client_at(-(bytes as i64) + 3, &v1[3..20])
            .client_at(-(bytes as i64) + 20, &v1[20..])
            .open()
            .client_is(CLIENT, said),
        case("PROXY protocol, and another request before the upgrade")
            .proxied()
            .accepted(bytes + plain.len())
            .client_at(-((bytes + plain.len()) as i64), [&v1[..], plain].concat())
            .answer(NOT_FOUND)
            .with(|packet| packet.seq = packet.seq.wrapping_sub(200))
            .open()
            .client_is(CLIENT, said),
        case("PROXY protocol with a wrong length")
            .proxied()
            .only(Family::V4)
            .prefaced(&v2([6, 6, 6, 6], 4))
            .client_is("10.77.0.1", identity::CONNECTION),
        case("PROXY protocol of a peer that is no trusted proxy")
            .only(Family::V4)
            .prefaced(v1)
            .client_is("10.77.0.1", identity::PEER),
        case("PROXY protocol further on in a connection")
            .proxied()
            .only(Family::V4)
            .opens(&[&v1[..], REQUEST].concat())
            .client_is("10.77.0.1", identity::PEER),
    ]
}

fn charged() -> Vec<Case> {
    vec![
        case("each client behind a proxy has a limit of its own")
            .proxied()
            .opens(&of(CLIENT))
            .on(1)
            .opens(&of("198.51.100.8"))
            .client(pings(30))
            .on(0)
            .client(pings(31))
            .defused(&[180])
            .counts(&[(Pings, 61), (Defused, 1), (Throttled, 1)]),
        case("two connections of a client share its limit")
            .proxied()
            .opens(&of(CLIENT))
            .on(1)
            .opens(&of(CLIENT))
            .client(pings(30))
            .on(0)
            .client(pings(3))
            .defused(&[12])
            .counts(&[(Pings, 33), (Defused, 1), (Spared, 2)]),
        case("a connection of no known client is charged alone")
            .proxied()
            .opens(&of("unknown"))
            .on(1)
            .opens(&of("unknown"))
            .client(pings(30))
            .on(0)
            .client(pings(30))
            .counts(&[(Pings, 60), (Defused, 0)]),
    ]
}
