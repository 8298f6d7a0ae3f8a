//! Requests with bodies, and bytes that look like requests or answers.

use ws_guard_common::{flow::state, maps::Counter::*};
use ws_guard_testkit::packets::{
    REQUEST, SWITCHING,
    flag::{FIN, SYN},
};

use crate::{
    case::{Case, case, pings},
    forged::{HTTP, PAGE, syn_ack},
};

const POST: &[u8] = b"POST /a HTTP/1.1\r\nContent-Length: 300\r\n\r\n";
const BODY: usize = 300;
const CHUNKED: &[u8] = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

fn request() -> i64 {
    -(REQUEST.len() as i64)
}

/// Start a connection since its SYN-ACK, with bytes before the upgrade.
/// `before` of the client's come in front of it, and an answer of `answered` in front of the 101.
fn begun(name: &'static str, before: usize, answered: usize) -> Case {
    begun_after(case(name), before, answered)
}

/// The same between the end points of other connections.
fn begun_after(case: Case, before: usize, answered: usize) -> Case {
    let earlier = move |packet: &mut _| back(packet, answered);
    syn_ack(case, request() - before as i64).with(earlier)
}

/// Make a connection with one request, whose answer has these flags as well.
fn one_request(name: &'static str, flags: u8) -> Case {
    const BEFORE: usize = 9000;
    let from = request() - BEFORE as i64;
    let end = from + PAGE.len() as i64;
    answered(begun(name, BEFORE, HTTP.len()).client_at(from, PAGE), end, HTTP)
        .with(move |packet| packet.flags |= flags)
}

fn back(packet: &mut ws_guard_testkit::packets::Packet, bytes: usize) {
    packet.seq = packet.seq.wrapping_sub(bytes as u32);
}

/// Send the answer before the 101, after the client's bytes up to `acked`.
fn answered(case: Case, acked: i64, answer: &[u8]) -> Case {
    let length = answer.len() + SWITCHING.len();
    case.server(acked, answer).with(move |packet| back(packet, length))
}

/// Send a request and its body in segments of 100 bytes, in an upload's order.
fn post(case: Case, head: &'static [u8]) -> Case {
    let from = request() - (head.len() + BODY) as i64;
    let body = from + head.len() as i64;
    let case = case.client_at(from, head);
    (0..3).fold(case, |case, n| case.client_at(body + 100 * n, [b'x'; 100]))
}

/// Send an upload and its answer, which contains `text`.
fn uploaded(name: &'static str, head: &'static [u8], text: &[u8]) -> Case {
    let answer = [HTTP, text].concat();
    let case = begun(name, head.len() + BODY, answer.len());
    answered(post(case, head), request(), &answer)
}

/// Return framing and data of a chunked body.
fn chunks() -> Vec<u8> {
    let one = |size: usize| [format!("{size:x}\r\n").into_bytes(), vec![b'x'; size]].concat();
    let chunks = [1, 16, 3, 200].map(|size| [one(size), b"\r\n".to_vec()].concat());
    [chunks.concat(), b"0\r\n\r\n".to_vec()].concat()
}

/// Send a chunked upload in segments of `size` bytes, and then `more`.
/// The first segment has the head. The server has the bytes in front of the upgrade when it
/// answers.
fn in_chunks(name: &'static str, size: usize, text: &[u8], more: fn(Case, i64) -> Case) -> Case {
    let all = [CHUNKED, &chunks()].concat();
    let (from, answer) = (request() - all.len() as i64, [HTTP, text].concat());
    let head = CHUNKED.len() + size;
    let case = begun(name, all.len(), answer.len()).client_at(from, all[..head].to_vec());
    let pieces = all[head..].chunks(size).enumerate();
    let case = pieces.fold(case, |case, (n, piece)| {
        case.client_at(from + (head + n * size) as i64, piece.to_vec())
    });
    answered(more(case, from + CHUNKED.len() as i64), request(), &answer)
}

/// Expect that its upgrade is read, and has limits.
fn upgrades(case: Case) -> Case {
    case.open().client(pings(31)).defused(&[180]).leaves(state::OPEN).counts(&[
        (DroppedEarly, 0),
        (FlowsOpened, 1),
        (RequestsUnseen, 0),
        (Pings, 31),
    ])
}

/// Expect that its answer opens no flow, and no later byte is dropped.
fn opens_nothing(case: Case) -> Case {
    case.client_at(request(), PAGE)
        .client_at(request() + PAGE.len() as i64, b"and more")
        .leaves_no_flow()
        .counts(&[(DroppedEarly, 0), (FlowsOpened, 0), (DroppedUnsynced, 0)])
}

fn text() -> Vec<u8> {
    [b"<pre>\n", SWITCHING, b"\x82\x7F\0\0\0\0\x3F\0\0\0</pre>"].concat()
}

/// Expect that text of a 101 opens nothing on a connection between the end points of the one before.
fn behind(case: Case) -> Case {
    let answer = [HTTP, &text()].concat();
    let case = begun_after(case, POST.len() + BODY, answer.len());
    opens_nothing(answered(post(case, POST), request(), &answer))
}

/// Connections whose requests were all read.
fn read() -> Vec<Case> {
    const TWICE: &[u8] = b"POST /a HTTP/1.1\r\nContent-Length: 300\r\nContent-Length: 300\r\n\r\n";
    const CONNECT: &[u8] = b"CONNECT a:1 HTTP/1.1\r\nContent-Length: 300\r\n\r\n";
    const FOLDED: &[u8] = b"POST /a HTTP/1.1\r\nA: b\r\n c\r\nContent-Length: 300\r\n\r\n";
    const SPACED: &[u8] = b"POST /a HTTP/1.1\r\nUpgrade : websocket\r\nContent-Length: 300\r\n\r\n";
    const SPLIT: &[u8] =
        b"POST /a HTTP/1.1\r\nA: b\x1cUpgrade: websocket\r\nContent-Length: 300\r\n\r\n";
    const COLONLESS: &[u8] = b"POST /a HTTP/1.1\r\nfield\r\nContent-Length: 300\r\n\r\n";
    let found = |case: Case| case.counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]);
    vec![
        upgrades(uploaded("an upgrade behind an upload", POST, b"")),
        upgrades(uploaded("an upgrade behind a page with the text of a 101", POST, &text())),
        opens_nothing(uploaded("the text of a 101 behind an upload", POST, &text())),
        opens_nothing(answered(
            begun(
                "the text of a 101 at a segment's beginning",
                PAGE.len(),
                HTTP.len() + SWITCHING.len(),
            )
            .client_at(request() - PAGE.len() as i64, PAGE),
            request(),
            &[HTTP, SWITCHING].concat(),
        )),
        behind(one_request(
            "the text of a 101 on a connection with the end points of another",
            FIN,
        )),
        behind(one_request("the same, of one that vanished", 0)),
        found(uploaded("but not behind the body of a method that has none", CONNECT, &text())),
        found(uploaded("nor behind a body of two lengths", TWICE, &text())),
        found(uploaded("nor behind one in chunks that are none", CHUNKED, &text())),
        upgrades(in_chunks("an upgrade behind chunks", 100, b"", |case, _| case)),
        upgrades(in_chunks("behind chunks in segments of three bytes", 3, b"", |case, _| case)),
        upgrades(in_chunks("behind chunks in segments of a byte", 1, b"", |case, _| case)),
        opens_nothing(in_chunks("the text of a 101 behind chunks", 50, &text(), |case, _| case)),
        found(in_chunks(
            "but not behind chunks with another size in place",
            50,
            &text(),
            |case, from| case.client_at(from, b"2\r\nxy\r\n10\r\n"),
        )),
        found(uploaded("nor behind a folded field", FOLDED, &text())),
        found(uploaded("nor behind one with a space in front of its colon", SPACED, &text())),
        found(uploaded("nor behind one that some servers split", SPLIT, &text())),
        found(uploaded("nor behind a line that is no field", COLONLESS, &text())),
        found(answered(
            post(
                begun(
                    "a request that the server read otherwise",
                    POST.len() + BODY,
                    SWITCHING.len(),
                ),
                POST,
            ),
            request(),
            SWITCHING,
        )),
    ]
}

/// Uploads on paths that lose and reorder.
fn again() -> Vec<Case> {
    let from = request() - (POST.len() + BODY) as i64;
    let body = from + POST.len() as i64;
    let new = |name| begun(name, POST.len() + BODY, HTTP.len());
    let ends = |case: Case| upgrades(answered(case, request(), HTTP));
    let cut = 20;
    let pieces = |case: Case| {
        let case = case.client_at(from, &POST[..cut]).client_at(from + cut as i64, &POST[cut..]);
        (0..3).fold(case, |case, n| case.client_at(body + 100 * n, [b'x'; 100]))
    };
    vec![
        ends(
            post(new("an upload whose first segments come again"), POST)
                .client_at(from, POST)
                .client_at(body, [b'x'; 100]),
        ),
        ends(
            new("an upload out of order")
                .client_at(from, POST)
                .client_at(body + 200, [b'x'; 100])
                .client_at(body + 100, [b'x'; 100])
                .client_at(body, [b'x'; 100]),
        ),
        ends(
            post(new("one that comes again merged"), POST)
                .client_at(body + 100, [b'x'; 200])
                .client_at(body, [b'x'; 300]),
        ),
        ends(
            pieces(new("a head in pieces that come again behind their body"))
                .client_at(body + 200, [b'x'; 100])
                .client_at(from, &POST[..cut])
                .client_at(from + cut as i64, &POST[cut..]),
        ),
        ends(
            pieces(new("the same, the last one first"))
                .client_at(from + cut as i64, &POST[cut..])
                .client_at(from, POST),
        ),
        ends(
            pieces(new("the same, merged and cut otherwise"))
                .client_at(from, &POST[..30])
                .client_at(from + 30, &POST[30..]),
        ),
        ends(
            post(new("a head that comes again in smaller cuts behind its body"), POST)
                .client_at(from, &POST[..7])
                .client_at(from + 7, &POST[7..20])
                .client_at(from + 20, &POST[20..]),
        ),
        ends(
            post(new("a body that looks like a request"), POST)
                .client_at(body, &[REQUEST, &[b' '; 300]].concat()[..100])
                .client_at(body + 100, &[REQUEST, &[b' '; 300]].concat()[..200]),
        ),
    ]
}

/// Return a request with a body, as long as the one for an upgrade.
fn decoy_post() -> Vec<u8> {
    let (head, end) = ("POST / HTTP/1.1\r\nContent-Length: 4000\r\nA: ", "\r\n\r\n");
    let fill = "a".repeat(REQUEST.len() - head.len() - end.len());
    [head, &fill, end].concat().into_bytes()
}

/// Segments replaced by others.
fn replaced() -> Vec<Case> {
    let found =
        |case: Case| case.answer(SWITCHING).counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]);
    let long = [b"GET /", &[b'a'; 250][..], b" HTTP/1.1\r\n\r\n"].concat();
    let from = request() - 300;
    let decoy = |name| begun(name, 300, 0).client_at(from, &*long);
    vec![
        decoy("pings ahead of a request, behind a decoy")
            .client_at(from + 40, pings(30))
            .client_at(from, &REQUEST[..40])
            .dropped()
            .leaves_no_flow()
            .counts(&[(DroppedEarly, 1)]),
        answered(
            decoy("a hidden request in the place of a decoy")
                .client_at(from, [POST, &[b'x'; 40]].concat())
                .client_at(from + POST.len() as i64, REQUEST),
            request(),
            SWITCHING,
        )
        .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]),
        begun("a request that begins anew at its source's pace", 300, 0)
            .policy(|policy| policy.pace = 1)
            .client_at(from, &long[..200])
            .client_at(from, &REQUEST[..40])
            .client_at(from + 40, &REQUEST[40..80])
            .dropped()
            .counts(&[(DroppedEarly, 1)]),
        found(
            begun("a segment of a body's end and what looks like the next request", 300, 0)
                .client_at(from, *b"POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\n")
                .client_at(from + 39, [&long[..40], b"GET / HTTP/1.1\r\n\r\n"].concat()),
        ),
        found(
            begun("half a request that is ended by a decoy", 300, 0)
                .client_at(from, &long[..100])
                .client_at(from + 100, b" HTTP/1.1\r\n\r\n")
                .server(from + 100, [])
                .with(|packet| back(packet, SWITCHING.len()))
                .client_at(from + 100, &long[..]),
        ),
        found(
            begun("a decoy behind a request for an upgrade", 300, HTTP.len())
                .client_at(from, REQUEST)
                .server(from + REQUEST.len() as i64, HTTP)
                .with(|packet| back(packet, HTTP.len() + SWITCHING.len()))
                .client_at(from + REQUEST.len() as i64, POST),
        ),
        begun("pings as the body of a decoy in the place of an upgrade", 0, 0)
            .client_at(request(), decoy_post())
            .client_at(0, pings(30))
            .with(|packet| packet.ack = packet.ack.wrapping_sub(SWITCHING.len() as u32))
            .client_at(request(), REQUEST)
            .dropped()
            .leaves_no_flow()
            .counts(&[(DroppedEarly, 1)]),
        begun("what the server took without being seen", 300, 0)
            .answer(SWITCHING)
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]),
        syn_ack(
            case("a request in a SYN")
                .client_at(request() - 1, REQUEST)
                .with(|packet| packet.flags = SYN),
            0,
        )
        .answer(SWITCHING)
        .leaves(state::OPEN)
        .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]),
    ]
}

/// Requests for an upgrade that announce a body.
/// Some servers read it, others take it for frames.
fn bodied() -> Vec<Case> {
    let upgrade = |method: &str, length: usize| {
        let text = String::from_utf8_lossy(REQUEST).replacen("GET", method, 1);
        text.replace("\r\n\r\n", &format!("\r\nContent-Length: {length}\r\n\r\n")).into_bytes()
    };
    let with = |name, method, length| {
        let request = upgrade(method, length);
        let before = request.len() - REQUEST.len();
        begun(name, before, 0).client_at(-(request.len() as i64), request)
    };
    let unseen =
        |case: Case| case.answer(SWITCHING).counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]);
    let post = [upgrade("POST", 5), b"hello".to_vec()].concat();
    let from = request() - post.len() as i64;
    vec![
        unseen(with("an upgrade with a body", "GET", 14)),
        unseen(with("an upgrade with another method and a body", "POST", 14)),
        with("an upgrade with an empty body", "GET", 0)
            .answer(SWITCHING)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 0)]),
        opens_nothing(answered(
            begun("a body behind a request that would upgrade", post.len(), HTTP.len())
                .client_at(from, post),
            request(),
            HTTP,
        )),
        unseen(with("pongs behind the header of an endless frame", "GET", 14))
            .server(0, [0x82, 0x7F, 0, 0, 0, 0, 0x20, 0, 0, 0])
            .server(0, [0x8A, 0].repeat(41))
            .counts(&[(Witnessed, 41)]),
    ]
}

pub fn cases() -> Vec<Case> {
    let mut cases = read();
    cases.extend(bodied());
    cases.extend(again());
    cases.extend(replaced());
    cases
}
