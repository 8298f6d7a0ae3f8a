//! Connections that the server may have forgotten: another one may begin with their numbers, by a SYN cookie.
//!
//! What their clients send passes at the source's pace.
use ws_guard_common::{
    flow::LINGER_MS,
    maps::{Counter::*, action},
};
use ws_guard_testkit::packets::{
    REQUEST, SWITCHING,
    flag::{ACK, FIN, RST, SYN},
};

use crate::{
    case::{Case, Fate, case, pings, text},
    forged::{HTTP, PAGE, syn_ack},
};

/// Bytes a second that pass, and number of segments of [`SEGMENT`] bytes that do at once.
const PACE: u32 = 1024;
const PASS: i64 = 2;
const SEGMENT: usize = 1000;

pub fn cases() -> Vec<Case> {
    let mut cases = flows();
    cases.extend(other_ends());
    cases.extend(without_a_flow());
    cases.extend(begun_again());
    cases
}

fn ended(case: Case, at: i64, flags: u8) -> Case {
    case.client_at(at, []).with(move |packet| packet.flags = flags)
}

/// Begin a flow, and let the server take ten segments.
fn taken(name: &'static str) -> Case {
    let case = case(name).policy(|policy| policy.pace = PACE).open();
    (0..10).fold(case, |case, _| case.client(text(&"x".repeat(SEGMENT - 8)))).server(TAKEN, [])
}

const TAKEN: i64 = 10 * SEGMENT as i64;

/// Send as many segments from `at` on as pass, and one more.
fn paced(case: Case, at: i64) -> Case {
    let send = |case: Case, n| case.client_at(at + n * SEGMENT as i64, [b'x'; SEGMENT]);
    send((0..PASS).fold(case, send), PASS).dropped().counts(&[(DroppedUnsynced, 1)])
}

/// The same where all of them pass.
fn free(case: Case, at: i64) -> Case {
    let send = |case: Case, n| case.client_at(at + n * SEGMENT as i64, [b'x'; SEGMENT]);
    (0..9).fold(case, send).counts(&[(DroppedUnsynced, 0)])
}

/// Flows that a client has ended.
fn flows() -> Vec<Case> {
    // A frame that was announced before, of a mebibyte.
    let announced = |name| {
        taken(name)
            .client([&[0x82, 0xFF, 0, 0, 0, 0, 0, 16, 0, 0][..], &[0; 90]].concat())
            .server(TAKEN + 100, [])
    };
    let reset = |name| ended(taken(name), TAKEN, RST);
    let under_way = |name| taken(name).client(text("not acknowledged"));
    vec![
        paced(reset("old bytes behind a RST"), 0),
        paced(ended(taken("a RST that comes with a SYN"), TAKEN, RST | SYN), 0),
        paced(ended(announced("payload behind a RST"), TAKEN + 100, RST), TAKEN + 5000),
        paced(ended(under_way("a RST before the delayed acknowledgement"), TAKEN + 22, RST), 0),
        paced(ended(taken("a RST past what is in flight"), TAKEN + 1000, RST), 0),
        free(
            taken("a RST with data, from in front of what it waits for")
                .client_at(TAKEN - 2, [0; 3])
                .with(|packet| packet.flags = RST)
                .dropped(),
            0,
        )
        .counts(&[(DroppedForged, 1)]),
        free(
            ended(taken("a FIN that acknowledges too little"), TAKEN, FIN | ACK)
                .with(|packet| packet.ack = packet.ack.wrapping_sub(70_000))
                .dropped(),
            0,
        )
        .counts(&[(DroppedForged, 1)]),
        paced(ended(taken("and a byte in front"), TAKEN - 1, RST), 0),
        free(ended(taken("old bytes behind a RST that the server ignores"), TAKEN - 2, RST), 0),
        free(
            ended(taken("a RST that acknowledges less than the client has"), TAKEN + 1, RST)
                .with(|packet| packet.ack = packet.ack.wrapping_sub(1))
                .dropped(),
            0,
        )
        .counts(&[(DroppedForged, 1)]),
        free(
            ended(
                under_way("a RST within what is in flight, which acknowledges nothing"),
                TAKEN + 10,
                RST,
            )
            .with(|packet| packet.ack = packet.ack.wrapping_sub(1 << 30))
            .dropped(),
            0,
        )
        .counts(&[(DroppedForged, 1)]),
        reset("but a SYN-ACK begins another one")
            .server(0, [])
            .with(|packet| (packet.flags, packet.seq) = (SYN | ACK, packet.seq ^ 1 << 31))
            .leaves_no_flow(),
        free(ended(taken("a client's FIN alone"), TAKEN, FIN | ACK), 0),
        free(taken("a server's FIN alone").server(TAKEN, []).with(|packet| packet.flags |= FIN), 0),
    ]
}

/// Flows that the server has ended.
fn other_ends() -> Vec<Case> {
    let server =
        |case: Case, flags| case.server(TAKEN, []).with(move |packet| packet.flags |= flags);
    let finished = |name| server(taken(name), FIN);
    let silent = |flow: &mut ws_guard_common::flow::Flow| {
        flow.last_ns -= u64::from(LINGER_MS) * 1_000_000;
        flow.server_ms = flow.server_ms.wrapping_sub(LINGER_MS);
    };
    let almost = |flow: &mut ws_guard_common::flow::Flow| {
        flow.server_ms = flow.server_ms.wrapping_sub(LINGER_MS - 1000);
    };
    vec![
        paced(ended(finished("both have sent a FIN"), TAKEN, FIN | ACK), 0),
        paced(server(ended(taken("the client first"), TAKEN, FIN | ACK), FIN), 0),
        paced(finished("a server's FIN, and five seconds of silence").flow(silent), 0),
        paced(
            finished("over before it takes more")
                .flow(silent)
                .server(TAKEN + 1, [])
                .with(|packet| packet.seq = packet.seq.wrapping_add(1)),
            1,
        ),
        free(
            finished("which the server breaks by reading on")
                .client(text("more"))
                .flow(almost)
                .server(TAKEN + 5, [])
                .with(|packet| packet.seq = packet.seq.wrapping_add(1))
                .flow(almost),
            0,
        ),
        paced(
            server(finished("a server's RST of any number, behind its FIN"), RST)
                .with(|packet| packet.seq = packet.seq.wrapping_add(1 << 29)),
            0,
        ),
        paced(
            server(taken("or before it"), RST)
                .with(|packet| packet.seq = packet.seq.wrapping_add(1 << 29)),
            0,
        ),
        case("the server's FIN with its 101, and the client's")
            .request()
            .answer(SWITCHING)
            .with(|packet| packet.flags |= FIN)
            .client(text("x"))
            .with(|packet| packet.ack = packet.ack.wrapping_add(1))
            .client([])
            .with(|packet| {
                (packet.flags, packet.ack) = (FIN | ACK, packet.ack.wrapping_add(1));
            })
            .counts(&[(DroppedForged, 0)]),
        paced(finished("other bytes of the server behind its FIN").server(TAKEN, [0x82, 0]), 0),
        paced(
            finished("or those that the client has acknowledged")
                .server(TAKEN, SWITCHING)
                .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32)),
            0,
        ),
        paced(server(fin_in_front("a FIN in front of the answer, and the server's"), FIN), 0),
        paced(server(taken("a server's RST"), RST), 0),
        paced(
            server(
                taken("a server's RST in front of what the client takes").server(TAKEN, HTTP),
                RST,
            )
            .with(|packet| packet.seq = packet.seq.wrapping_sub(HTTP.len() as u32)),
            0,
        ),
    ]
}

/// As [`taken`], on a connection whose client has sent a FIN before the answer, out of order.
fn fin_in_front(name: &'static str) -> Case {
    let request = -(REQUEST.len() as i64);
    let case = syn_ack(case(name).policy(|policy| policy.pace = PACE), request)
        .request()
        .client_at(100, [])
        .with(|packet| {
            packet.flags |= FIN;
            packet.ack = packet.ack.wrapping_sub(SWITCHING.len() as u32);
        })
        .answer(SWITCHING);
    (0..10).fold(case, |case, _| case.client(text(&"x".repeat(SEGMENT - 8)))).server(TAKEN, [])
}

/// Numbers with which a client's segment may begin another connection, of which the guard sees no end.
fn begun_again() -> Vec<Case> {
    let request = -(REQUEST.len() as i64);
    let begun = |name| {
        let case = syn_ack(case(name), request).open();
        (0..10).fold(case, |case, _| case.client(text(&"x".repeat(SEGMENT - 8)))).server(TAKEN, [])
    };
    let acks =
        |case: Case, more: u32| case.with(move |packet| packet.ack = packet.ack.wrapping_add(more));
    let again = |name, ahead: u32| {
        acks(begun(name).client_at(request + i64::from(ahead), &REQUEST[..20]), ahead)
    };
    let answered = -((REQUEST.len() + PAGE.len()) as i64);
    let without_a_flow = |name| {
        syn_ack(case(name), answered).client_at(answered, PAGE).server(request, []).with(|packet| {
            packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32);
        })
    };
    vec![
        again("old bytes with the numbers of the SYN-ACK", 0).fate(Fate::Disarmed),
        again("old bytes as far apart", 30).fate(Fate::Disarmed),
        again("with another size of segments", 30)
            .with(|packet| packet.ack = packet.ack.wrapping_add(3))
            .fate(Fate::Disarmed),
        again("where the guard only observes", 0).policy(|policy| policy.action = action::OBSERVE),
        again("old bytes that acknowledge what was sent since", 0)
            .with(|packet| packet.ack = packet.ack.wrapping_add(SWITCHING.len() as u32)),
        begun("an old acknowledgement without data")
            .client_at(request, [])
            .dropped()
            .counts(&[(DroppedForged, 1)]),
        begun("but for a keep-alive probe").client_at(TAKEN - 1, []),
        without_a_flow("the same without a flow").client_at(answered, PAGE).fate(Fate::Disarmed),
        without_a_flow("and without data")
            .client_at(answered, [])
            .dropped()
            .counts(&[(DroppedForged, 1)]),
    ]
}

/// Connections without an upgrade, whose client sends the body of an upload.
fn without_a_flow() -> Vec<Case> {
    const UPLOAD: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 900000\r\n\r\n";
    let first = -1_000_000;
    let body = first + UPLOAD.len() as i64;
    let begun = |name| {
        syn_ack(case(name).policy(|policy| policy.pace = PACE), first).client_at(first, UPLOAD)
    };
    let answered = |name| {
        begun(name).server(body, HTTP).with(|packet| {
            packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32);
        })
    };
    let server = |case: Case, flags| {
        case.server(body, []).with(move |packet| {
            packet.flags |= flags;
            packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32);
        })
    };
    let page = -((REQUEST.len() + PAGE.len()) as i64);
    let upgraded =
        syn_ack(case("an upgrade behind a RST").policy(|policy| policy.pace = PACE), page)
            .client_at(page, PAGE)
            .server(page + PAGE.len() as i64, HTTP)
            .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32));
    let upgraded = ended(upgraded, page + PAGE.len() as i64, RST)
        .open()
        .client(pings(1))
        .client(text(&"x".repeat(SEGMENT)))
        .client(text(&"x".repeat(SEGMENT)))
        .dropped()
        .counts(&[(DroppedUnsynced, 1), (Pings, 1)]);
    vec![
        free(answered("an upload that is answered early"), body),
        paced(ended(answered("a body behind a RST"), body, RST), body),
        paced(ended(answered("its first bytes again"), body, RST), first + 20),
        paced(
            answered("a body behind a RST with data").client_at(body, [0; 1000]).with(|packet| {
                packet.flags = RST;
            }),
            body,
        ),
        paced(
            server(
                server(answered("behind a RST of any number, after the server's FIN"), FIN),
                RST,
            )
            .with(|packet| packet.seq = packet.seq.wrapping_add(1 << 29)),
            body,
        ),
        paced(server(answered("a body behind the server's RST"), RST), body),
        free(server(answered("a refused upload goes on behind the server's FIN"), FIN), body),
        paced(server(ended(answered("not behind the client's"), body, FIN | ACK), FIN), body),
        ended(begun("a RST in flight that acknowledges nothing, without a flow"), first + 10, RST)
            .with(|packet| packet.ack = packet.ack.wrapping_sub(1 << 30))
            .dropped()
            .counts(&[(DroppedForged, 1)]),
        upgraded,
    ]
}
