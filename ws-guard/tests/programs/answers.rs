//! Retransmitted requests, and answers that do not begin where a segment does.
use ws_guard_common::{flow::state, frame::opcode, maps::Counter::*};
use ws_guard_testkit::{
    frame::{Frame, encode},
    packets::{
        Packet, REQUEST, SWITCHING,
        flag::{ACK, RST, SYN},
    },
};

use crate::{
    case::{Case, Fate, case, pings},
    forged::{HTTP, PAGE, kept_alive, syn_ack},
};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const KEYED: &[u8] = b"GET /a HTTP/1.1\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
const OTHER: &[u8] = b"HTTP/1.1 101 Other\r\n\r\n";

pub fn cases() -> Vec<Case> {
    let mut cases = repeated();
    cases.extend(in_one_segment());
    cases.extend(hidden());
    cases.extend(answers_to_hidden());
    cases.extend(uploads());
    cases.extend(pages());
    cases.extend(unknown());
    cases
}

/// Return the offset of a request in front of the frames.
fn request() -> i64 {
    -(REQUEST.len() as i64)
}

/// Start a connection since its SYN-ACK, whose request is to come first.
pub fn accepted(name: &'static str) -> Case {
    syn_ack(case(name), request())
}

/// Requests that the server has not received.
fn repeated() -> Vec<Case> {
    let pieces = |case: Case| {
        case.client_at(request(), &REQUEST[..40])
            .client_at(request() + 40, &REQUEST[40..80])
            .client_at(request() + 80, &REQUEST[80..])
    };
    let other = |packet: &mut Packet| packet.payload[20] ^= 1;
    let limited = |case: Case| case.answer(SWITCHING).client(pings(31)).defused(&[180]);
    let old = [b"HTTP/1.0", &SWITCHING[8..]].concat();
    vec![
        syn_ack(case("a request with a key, and no word of an upgrade"), -(KEYED.len() as i64))
            .client_at(-(KEYED.len() as i64), KEYED)
            .answer(SWITCHING)
            .client(pings(31))
            .defused(&[180])
            .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0), (FlowsOpened, 1)]),
        accepted("a 101 of a server that says HTTP/1.0")
            .request()
            .answer(old)
            .client(pings(31))
            .defused(&[180])
            .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0), (FlowsOpened, 1)]),
        limited(accepted("a request comes again").request().request().request()).counts(&[
            (DroppedEarly, 0),
            (RequestsUnseen, 0),
            (Pings, 31),
        ]),
        limited(accepted("or another in its place").request().request().with(other).request())
            .counts(&[(DroppedEarly, 0), (RequestsUnseen, 1)]),
        limited(
            accepted("a request merged with its first byte, which comes again")
                .client_at(request(), &REQUEST[..1])
                .request(),
        )
        .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0)]),
        limited(
            accepted("the same, where the server has that")
                .client_at(request(), &REQUEST[..1])
                .server(request() + 1, [])
                .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32))
                .request()
                .fate(Fate::Disarmed),
        )
        .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0)]),
        limited(
            accepted("a whole request that comes again, cut otherwise")
                .request()
                .client_at(request(), &REQUEST[..50])
                .client_at(request() + 50, &REQUEST[50..]),
        )
        .counts(&[(DroppedEarly, 0), (RequestsUnseen, 1)]),
        limited(
            accepted("nor with frames behind it")
                .request()
                .client_at(request(), [REQUEST, &pings(1)].concat())
                .dropped(),
        )
        .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0)]),
        limited(
            pieces(accepted("a request in pieces comes again, in pieces and merged"))
                .client_at(request() + 40, &REQUEST[40..80])
                .client_at(request() + 40, &REQUEST[40..])
                .client_at(request(), &REQUEST[..80])
                .client_at(request(), REQUEST),
        )
        .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0)]),
        limited(
            pieces(accepted("but not with another piece among them"))
                .client_at(request() + 40, &REQUEST[40..])
                .with(other)
                .dropped(),
        )
        .counts(&[(DroppedEarly, 1), (RequestsUnseen, 0)]),
        limited(kept_alive("a later request comes again").request().request())
            .counts(&[(DroppedEarly, 0), (RequestsUnseen, 0)]),
    ]
}

/// Answers that leave together:
/// the client's window was closed, or the server had no occasion to send them.
fn in_one_segment() -> Vec<Case> {
    let together = |name, first: &'static [u8], answer: &'static [u8]| {
        let earlier =
            |packet: &mut Packet| packet.seq = packet.seq.wrapping_sub(answer.len() as u32);
        let before = request() - first.len() as i64;
        let case = syn_ack(case(name), before).with(earlier);
        let case = if first.is_empty() { case } else { case.client_at(before, first) };
        case.request().answer([answer, SWITCHING].concat()).with(earlier)
    };
    let limited = |case: Case| {
        case.client(pings(31)).defused(&[180]).leaves(state::OPEN).counts(&[
            (FlowsOpened, 1),
            // It may be text.
            (RequestsUnseen, 1),
            (Pings, 31),
        ])
    };
    vec![
        limited(together("a 101 behind another answer, in one segment", PAGE, HTTP)),
        limited(together("a 101 behind an interim answer, in one segment", &[], CONTINUE)),
        limited(together(
            "the same, of which the 101 is not taken for the answer's text",
            PAGE,
            OTHER,
        )),
        accepted("the text of a 101 behind the refusal of an upgrade")
            .request()
            .answer(HTTP)
            .with(|packet| packet.seq = packet.seq.wrapping_add(FURTHER))
            .server(0, SWITCHING)
            .client(pings(31))
            .defused(&[180])
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1), (Pings, 31)]),
        accepted("the same in one segment, whose rest is no frame, and a 101 behind that")
            .request()
            .answer([HTTP, SWITCHING, b"text", SWITCHING].concat())
            .client(pings(31))
            .defused(&[180])
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1), (Pings, 31)]),
        refused("an upgrade that is refused, and another request")
            .client_at(0, PAGE)
            .counts(&[(DroppedEarly, 0)]),
        refused("frames behind an answer that is no 101")
            .client_at(0, pings(1))
            .dropped()
            .counts(&[(DroppedEarly, 1)]),
    ]
}

/// Distance of an answer's end from that of the 101 in its place.
const FURTHER: u32 = (SWITCHING.len() - HTTP.len()) as u32;

/// Start a connection whose request for an upgrade was answered with a page.
fn refused(name: &'static str) -> Case {
    let answered = accepted(name).request().answer(HTTP);
    answered
        .with(|packet| packet.seq = packet.seq.wrapping_add(FURTHER))
        .leaves_no_flow()
        .counts(&[(FlowsOpened, 0)])
}

/// Unread requests.
fn hidden() -> Vec<Case> {
    let short = REQUEST.len() - 1;
    vec![
        accepted("a request behind an old byte")
            .client_at(request() - 1, [&b"\n"[..], &REQUEST[..short]].concat())
            .dropped()
            .client_at(0, pings(3))
            .dropped()
            .counts(&[(DroppedEarly, 2)]),
        accepted("a request behind bytes that have passed")
            .client_at(request(), b"xx")
            .client_at(request() + 1, [&b"x"[..], REQUEST].concat())
            .dropped()
            .counts(&[(DroppedEarly, 1)]),
        accepted("the end of a request and pings behind a decoy, then its beginning")
            .client_at(request(), b"0123456789")
            .client_at(request() + 5, [&REQUEST[5..], &pings(100)].concat())
            .client_at(request(), &REQUEST[..5])
            .dropped()
            .leaves_no_flow()
            .counts(&[(DroppedEarly, 1)]),
        kept_alive("a header field that begins like a method")
            .client_at(request(), &REQUEST[..short - 1])
            .client_at(request() + short as i64 - 1, *b"POSTs: 1\r\n\r\n")
            .client_at(0, pings(3))
            .dropped()
            .counts(&[(DroppedEarly, 1)]),
        decoy("a request hidden behind a POST, and a decoy in a frame: pongs tell")
            .server(0, [0x8A, 0].repeat(31))
            .leaves(state::UNSYNCED)
            .counts(&[(RequestsUnseen, 0), (Witnessed, 31), (Throttled, 1)]),
        // The byte far ahead, which is not followed, may be one that the server discards.
        (0..17)
            .fold(
                decoy("the same, of a client that does not let the server answer")
                    .client([&[0x82, 0xFF][..], &9_000_000u64.to_be_bytes(), &[0; 4]].concat())
                    .client_at(8_000_000, [0]),
                |case, n| case.client_at(14 + 1000 * n, [0; 1000]).shut(),
            )
            .client_at(14 + 17_000, [0; 1000])
            .shut()
            .dropped()
            .leaves(state::OPEN)
            .counts(&[(RequestsUnseen, 0), (DroppedUnsynced, 1)]),
        kept_alive("SYNs with data say nothing about what has passed")
            .client_at(0x4000_0000, b"x")
            .with(|packet| packet.flags = SYN)
            .dropped()
            .client_at(-0x4000_0000, &REQUEST[..10])
            .with(|packet| packet.flags = SYN | ACK)
            .dropped()
            .client_at(0, pings(3))
            .dropped()
            .open()
            .leaves(state::OPEN)
            .counts(&[(DroppedEarly, 3), (FlowsOpened, 1), (RequestsUnseen, 0)]),
    ]
}

/// Answers to a request hidden behind another's body, after other server bytes.
fn answers_to_hidden() -> Vec<Case> {
    let body = |bytes: usize| [HTTP, &b"HHTTP/1.1 ".repeat(bytes / 10)].concat();
    let page = [HTTP, b"HTTP/1.1 101 <br>"].concat();
    // Far enough from any other place of the text that only a separate word tells.
    let mut cases: Vec<Case> =
        (0..10).map(|n| behind("a 101 at any place", [b'.'; 70][..60 + n].into(), 9000)).collect();
    cases.extend([
        behind("a 101 behind a long body", body(3000), 9000),
        behind("a 101 behind a body, in segments of a byte", body(100), 1),
        behind("a 101 behind a body, in segments of seven bytes", body(100), 7),
        behind("a 101 behind a body, in segments of 67 bytes", body(1000), 67),
        behind("a 101 behind others", OTHER.repeat(5), 9000),
        behind("a 101 behind others, in segments of 31 bytes", OTHER.repeat(5), 31),
    ]);
    cases.extend([
        answered("more 101s than are read", OTHER.repeat(40), 9000)
            .client(pings(31))
            .defused(&[180])
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1)]),
        answered("a body that says 101", page, 9000).leaves_no_flow(),
    ]);
    cases
}

/// Send the answers, the second to a hidden request, in segments of `size` bytes.
fn answered(name: &'static str, text: Vec<u8>, size: usize) -> Case {
    const POST: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
    let before = (text.len() as u32).wrapping_sub(SWITCHING.len() as u32);
    let from = request() - POST.len() as i64;
    let first = syn_ack(case(name), from)
        .with(move |packet| packet.seq = packet.seq.wrapping_sub(before))
        .client_at(from, [POST, REQUEST].concat());
    text.chunks(size).enumerate().fold(first, |case, (n, piece)| {
        let at = (n * size) as u32;
        case.answer(piece)
            .with(move |packet| packet.seq = packet.seq.wrapping_sub(before.wrapping_sub(at)))
    })
}

/// Send a 101 behind `text`: its flow has limits.
fn behind(name: &'static str, text: Vec<u8>, size: usize) -> Case {
    answered(name, [&text, SWITCHING].concat(), size)
        .client(pings(31))
        .defused(&[180])
        .leaves(state::OPEN)
        .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1), (Pings, 31)])
}

/// Start a connection with a request hidden behind a POST.
/// A frame behind it looks like another one: the flow begins there.
fn decoy(name: &'static str) -> Case {
    let first = request() - 80;
    syn_ack(case(name), first)
        .client_at(first, [&b"POST / HTTP/1.1\r\n\r\n"[..], &[b'x'; 61]].concat())
        .open()
}

/// Uploads with text that looks like the beginning of a request.
fn uploads() -> Vec<Case> {
    let upload = |name| {
        kept_alive(name)
            .client_at(request(), *b"POST /u HTTP/1.1\r\n\r\n")
            .client_at(request() + 20, [b'a'; 10])
            .client_at(request() + 30, [b'b'; 10])
    };
    vec![
        upload("an upload whose segment begins with an empty line")
            .client_at(request() + 40, *b"\nsome text")
            .client_at(request() + 20, [b'a'; 10])
            .client_at(request() + 30, [b'b'; 10])
            .counts(&[(DroppedEarly, 0)]),
        upload("an upload whose segment has nothing but an empty line, and comes late")
            .client_at(request() + 42, [b'c'; 10])
            .server(request() + 40, [])
            .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32))
            .client_at(request() + 40, *b"\r\n")
            .counts(&[(DroppedEarly, 0)]),
        upload("an upload that is merged where its next write begins with an empty line")
            .server(request() + 30, [])
            .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32))
            .client_at(request() + 20, *b"aaaaaaaaaabbbbbbbbbb\nsome text")
            .counts(&[(DroppedEarly, 0)]),
        accepted("an upload of a connection's first request, whose first byte comes again")
            .client_at(request(), b"P")
            .client_at(request() + 1, b"OST / HTTP/1.1\r\n\r\ntext")
            .client_at(request(), b"P")
            .counts(&[(DroppedEarly, 0)]),
        upload("an upload whose segment begins with GET")
            .client_at(request() + 40, *b"GET / of a log")
            .server(request() + 20, [])
            .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32))
            .client_at(request() + 20, [b'a'; 10])
            .client_at(request() + 40, *b"GET / of a log")
            .counts(&[(DroppedEarly, 0)]),
    ]
}

/// Requests for a page, in two segments, one of which the server has not received.
fn pages() -> Vec<Case> {
    let (begin, end) = PAGE.split_at(20);
    let first = request() - PAGE.len() as i64;
    let both = |name| {
        let case = syn_ack(case(name), first).with(before_a_page);
        case.client_at(first, begin).client_at(first + 20, end)
    };
    let served = |case: Case| {
        case.server(request(), HTTP)
            .with(before_a_page)
            .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32))
            .open()
            .client(pings(31))
            .defused(&[180])
            .counts(&[(DroppedEarly, 0), (FlowsOpened, 1), (RequestsUnseen, 0), (Pings, 31)])
    };
    vec![
        served(both("a request for a page whose first half comes again").client_at(first, begin)),
        served(
            both("the same, cut elsewhere")
                .client_at(first, &begin[..9])
                .client_at(first + 9, &PAGE[9..]),
        ),
        served(both("the same, merged").client_at(first, PAGE)),
        served(
            both("the same, behind its second half")
                .client_at(first + 20, end)
                .client_at(first, begin)
                .client_at(first, begin)
                .client_at(first + 20, end),
        ),
        served(
            both("the same, whose SYN-ACK comes again")
                .server(first, [])
                .with(|packet| packet.flags = SYN | ACK)
                .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32 + 1))
                .with(before_a_page)
                .client_at(first, begin)
                .client_at(first + 20, end),
        ),
    ]
}

/// Move the server's bytes to before its answer to a request for a page.
fn before_a_page(packet: &mut Packet) {
    packet.seq = packet.seq.wrapping_sub(HTTP.len() as u32);
}

/// Connections older than the guard, and flows that are out of sync.
fn unknown() -> Vec<Case> {
    let pong = encode(&[Frame { mask: None, ..Frame::new(opcode::PONG, []) }]);
    // Never eight headers in a row: one in eight is split.
    let torn = [&pings(6)[..], &[0x89]].concat();
    vec![
        case("the pongs of a connection older than the guard")
            .server(0, pong.clone())
            .client(torn.clone())
            .leaves_no_flow()
            .client(pings(9))
            .leaves(state::OPEN)
            .counts(&[(FlowsJoined, 1)]),
        case("frames that are not the connection's do not say where its frames are")
            .server(0, pong)
            .client_at(1 << 21, pings(9))
            .client_at(0, pings(9))
            .with(|packet| packet.ack = packet.ack.wrapping_add(9))
            .leaves_no_flow()
            .counts(&[(FlowsJoined, 0)]),
        case("a RST does not end a flow that is out of sync")
            .open()
            .flow(|flow| flow.lose_step())
            .client_at(0, [])
            .with(|packet| packet.flags = RST)
            .client_at(0, torn)
            .leaves(state::UNSYNCED)
            .counts(&[(FlowsClosed, 0)]),
    ]
}
