//! Clients behind a proxy that claim another address, or several at once.
use ws_guard_common::{
    flow::state,
    forwarded::preface,
    maps::{Counter::*, Rule, identity},
};
use ws_guard_testkit::packets::{REQUEST, SWITCHING};

use crate::{
    case::{Case, FLOOD, Family, case, pings},
    clients::{CLIENT, NOT_FOUND, of, request, v2},
};

pub fn cases() -> Vec<Case> {
    let mut cases = lengths();
    cases.extend(exempt());
    cases.extend(bodies());
    cases.extend(between());
    cases.extend(forgotten());
    cases
}

/// PROXY protocol headers with fields behind the addresses.
/// The request begins right behind them.
fn lengths() -> Vec<Case> {
    let with_fields = |bytes: usize, byte: u8| {
        let name = format!("PROXY protocol with {bytes} bytes {byte} of fields, and early pings");
        let header = [v2([198, 51, 100, 7], 12 + bytes as u8), vec![byte; bytes]].concat();
        case(Box::leak(name.into_boxed_str()))
            .proxied()
            .accepted(header.len() + REQUEST.len())
            .asks(&[&header[..], REQUEST].concat())
            .client_at(0, pings(3))
            .dropped()
            .answer(SWITCHING)
            .client_is(CLIENT, identity::PROXY_PROTOCOL)
            .counts(&[(RequestsUnseen, 0), (DroppedEarly, 1)])
    };
    let sizes = [1, 7, 8, 9, 15, 16, 17, 40, 63, 64, 65, 72, 128, 200, 243];
    sizes.into_iter().flat_map(|bytes| [with_fields(bytes, 4), with_fields(bytes, b'\n')]).collect()
}

fn allow() -> Rule {
    Rule { flags: Rule::ALLOW, ..Rule::default() }
}

/// Fill the table with two other sources, and exempt 10.77.0.66:
/// a new source is charged to its /24.
fn full(name: &'static str) -> Case {
    let case = case(name).proxied().only(Family::V4).rule_of("10.77.0.66", allow());
    case.report(1).on(2).open().client(pings(1))
}

/// Exemptions, and sources that they do not include.
fn exempt() -> Vec<Case> {
    vec![
        case("a proxy is exempt: its clients are not")
            .proxied()
            .rule(allow())
            .opens(&of("unknown"))
            .client(pings(31))
            .defused(&[180])
            .counts(&[(Pings, 31), (Defused, 1)]),
        full("no source is exempt because another one of its coarser prefix is")
            .on(1)
            .opens(&of("10.77.0.66"))
            .client(pings(40))
            .on(3)
            .open()
            .client(pings(33))
            .defused(&[180, 186, 192])
            .counts(&[(Defused, 3)]),
        full("an exempt source is so in a coarser prefix that another one is charged to")
            .on(3)
            .open()
            .client(pings(30))
            .on(1)
            .opens(&of("10.77.0.66"))
            .client(pings(40))
            .counts(&[(Defused, 0)]),
    ]
}

/// Requests in the body of another one, which the server answers early.
/// It has not got all of the body then: on the connection, which a proxy uses for the next client,
/// part of a body looks like a request.
fn bodies() -> Vec<Case> {
    let post = |length: usize| {
        format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").into_bytes()
    };
    let forged = request("X-Forwarded-For: 6.6.6.6\r\n");
    let cut = b"GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\nUpgrade: websocket\r\nX: ";
    let own = of(CLIENT);
    let uploaded = [&post(109)[..], &[b'x'; 100]].concat();
    let body = |name, forged: &[u8], next: &[u8]| {
        let before = (next.len() + forged.len()) as i64;
        let post = post(forged.len());
        case(name)
            .proxied()
            .accepted(next.len() + forged.len() + post.len())
            .with(|packet| packet.seq = packet.seq.wrapping_sub(300))
            .client_at(-before - post.len() as i64, &post[..])
            .server(-before, NOT_FOUND)
            .with(|packet| packet.seq = packet.seq.wrapping_sub(200))
            .client_at(-before, forged)
            .server(-(next.len() as i64), [])
            .client_at(-(next.len() as i64), next)
    };
    vec![
        body("a request in a body, and an upgrade behind it", &forged, &own)
            .answer(SWITCHING)
            .leaves(state::OPEN)
            .client_is(CLIENT, identity::FORWARDED)
            .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0)]),
        body("a request in a body, and a POST behind it", &forged, &uploaded)
            .client(&b"more of it"[..])
            .counts(&[(DroppedEarly, 0)]),
        body("a cut request in a body, and an upgrade behind it", cut, &own)
            .answer(SWITCHING)
            .client_is(CLIENT, identity::FORWARDED)
            .counts(&[(DroppedEarly, 0)]),
        body("a cut request in a body, and a POST behind it", cut, &uploaded)
            .client(&b"more of it"[..])
            .counts(&[(DroppedEarly, 0)]),
    ]
}

/// Segments between a request and its answer.
fn between() -> Vec<Case> {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    let header = [v2([198, 51, 100, 7], 32), vec![4; 20]].concat();
    let mut pieces = case("PROXY protocol, version 2 with fields, a byte at a time").proxied();
    let whole = [&header[..], REQUEST].concat();
    pieces = pieces.accepted(whole.len()).opens_in_pieces(&whole, 1);
    vec![
        case("an interim answer is none, and what follows may be text")
            .proxied()
            .asks(&of(CLIENT))
            .answer(interim)
            .with(|packet| packet.seq = packet.seq.wrapping_sub(200))
            .answer(SWITCHING)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]),
        pieces.client_is(CLIENT, identity::PROXY_PROTOCOL).counts(&[(RequestsUnseen, 0)]),
    ]
}

/// Connections whose beginning is forgotten.
fn forgotten() -> Vec<Case> {
    let header = v2([198, 51, 100, 7], 12);
    let text = b"PROXY TCP4 198.51.100.7 10.0.0.9 4711 80\r\n";
    let forged = of("6.6.6.6");
    // Another connection of the proxy shows that it speaks the PROXY protocol.
    let before = |case: Case, header: &[u8]| {
        let bytes = header.len() + forged.len();
        let case = case.proxied().only(Family::V4).on(1).prefaced(header).on(0);
        case.accepted(bytes).client_at(-(bytes as i64), header).requests(FLOOD)
    };
    let own = |case: Case| case.opens(&forged).client_is("10.77.0.1", identity::CONNECTION);
    let partial = [&preface::V2[..], &[0x21, 0x11, 0, 12], &[6, 6]].concat();
    vec![
        own(before(
            case("PROXY protocol that was forgotten: the request names no client"),
            &header,
        )),
        own(before(case("the same, version 1"), text)),
        case("half an address of the PROXY protocol names no client")
            .proxied()
            .only(Family::V4)
            .accepted(partial.len())
            .client_at(-(partial.len() as i64), partial.clone())
            .answer(SWITCHING)
            .client_is("10.77.0.1", identity::CONNECTION),
    ]
}
