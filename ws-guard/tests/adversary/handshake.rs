//! Handshakes that the guard may miss or misread.
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use ws_guard_testkit::{
    netns::Family,
    packets::{Checksum, Packet, REQUEST, SWITCHING, flag},
    raw::{Flags, Segment, Sender},
    raw_tcp::{self, Opening, RawTcp},
    servers::Library,
};

use crate::{
    attacker::{Attacker, header, persist_all, pings, try_all},
    row::{Peer, Peers, Reached, Row, one},
    stage::{LIMIT, SHARE},
};

const PINGS: usize = 100;
/// Number of pings that no pong tells of.
const UNHEARD: usize = 9_000;
/// Number of connections of a source with a hidden request.
const HIDDEN: u16 = 20;
/// Number of bytes that pass unread on the first connections of a source.
const FIRSTS: usize = 512 << 10;
/// A request whose body is in chunks with a chunk extension.
const VAGUE_POST: &[u8] = b"POST / HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n\
    5;a=b\r\nhello\r\n0\r\n\r\n";
/// Number of simultaneous connections with a decoy.
const DECOYS: usize = 6;
const ALL: Reached = Reached::All(PINGS as u64);
const SOME: Reached = Reached::AtMost(PINGS as u64);
const NONE: Reached = Reached::Exactly(0);
/// Time a server may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// A request without an upgrade.
const PLAIN_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n";
/// A request with a body.
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 5\r\n\r\nhello";
/// Number of requests: ten times as many pending requests as are kept.
const REQUESTS: u16 = 40_000;
/// Number of attempts to open a connection at the right moment.
const TRIES: u16 = 20;
/// Step of the clock for Linux's initial sequence numbers, in nanoseconds.
const TICK: u128 = 64;
/// Distance by which a connection may begin below the end of the one before it.
const BELOW: u32 = 0x8000;
/// A quarter of the old connection's bytes.
const OLD: u32 = 1000;
/// Length of the beginning by which the guard recognises a request.
const BEGIN: usize = 1;

/// Return a request with this number of additional header bytes, in readable lines.
pub fn long_request(bytes: usize) -> Vec<u8> {
    let line = format!("X-Padding: {}\r\n", "x".repeat(bytes.min(4000)));
    let padding = line.repeat((bytes / line.len()).max(1));
    let at = REQUEST.len() - 2;
    [&REQUEST[..at], padding.as_bytes(), b"\r\n"].concat()
}

/// Send `parts` as a segment each, then finish the handshake.
/// The first does not wait for an answer.
pub fn upgrade_in(tcp: &mut RawTcp, parts: &[&[u8]]) -> Result<()> {
    for part in parts {
        tcp.push(part)?;
        tcp.settle(Duration::from_millis(2))?;
    }
    tcp.answered()?;
    tcp.settle(Duration::from_millis(20))
}

/// Send `parts` as a segment each, and check that the server answers nothing:
/// the last one must not reach it.
pub fn kept_away(tcp: &mut RawTcp, parts: &[&[u8]]) -> Result<Peers> {
    for part in parts {
        tcp.push(part)?;
        tcp.settle(Duration::from_millis(2))?;
    }
    tcp.settle(Duration::from_millis(400))?;
    let (answer, pongs) = (tcp.take_bytes(), tcp.pongs);
    ensure!(
        answer.is_empty() && pongs == 0,
        "{pongs} pongs, {:?}",
        String::from_utf8_lossy(&answer)
    );
    ensure!(tcp.unacknowledged() > 0, "the server took it all");
    Ok(Vec::new())
}

fn early_data_behind_the_request(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    kept_away(&mut tcp, &[&[REQUEST, &pings(PINGS)].concat()])
}

fn request_in_one_byte_segments(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let parts: Vec<&[u8]> = REQUEST.chunks(1).collect();
    for part in parts {
        tcp.push(part)?;
    }
    tcp.answered()?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

fn early_data_behind_a_cut_request(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let (begin, rest) = REQUEST.split_at(BEGIN);
    kept_away(&mut tcp, &[begin, &[rest, &pings(PINGS)].concat()])
}

/// An answer that acknowledges the header of a frame with a header in its payload.
fn payload_that_looks_like_a_header(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let (begin, rest) = REQUEST.split_at(BEGIN);
    kept_away(&mut tcp, &[begin, &[rest, &header(16)].concat()])
}

/// An empty line before the request, which servers skip (RFC 9112, 2.2).
fn empty_line_before_the_request(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    kept_away(&mut tcp, &[&[b"\r\n", REQUEST, &pings(PINGS)].concat()])
}

/// A request before the one that upgrades, in one segment, with pings behind both.
fn pipelined_request(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    kept_away(&mut tcp, &[&[PLAIN_REQUEST, REQUEST, &pings(PINGS)].concat()])
}

/// A head longer than any that is followed.
fn head_of_24_kilobytes(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let head = long_request(24_000);
    kept_away(&mut tcp, &[&head[..head.len() - 1], &[b"\n", &pings(PINGS)[..]].concat()])
}

/// An old byte between two pieces of the request, as in a retransmission;
/// pings follow the last piece.
fn request_with_an_old_byte(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let (begin, rest) = REQUEST.split_at(REQUEST.len() - 1);
    tcp.push(begin)?;
    tcp.send(&tcp.segment(-1, &begin[begin.len() - 1..]))?;
    kept_away(&mut tcp, &[&[rest, &pings(PINGS)].concat()])
}

/// A later request behind a byte that the server already has, in one segment.
fn request_behind_an_old_byte(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    proven(&mut tcp, PLAIN_REQUEST)?;
    ensure!(tcp.wait(ANSWER, |tcp| tcp.answer_bytes() > 0)?, "no answer to the first request");
    tcp.take_bytes();
    tcp.send(&tcp.segment(-1, [b"\n", REQUEST].concat()))?;
    tcp.next = tcp.next.wrapping_add(REQUEST.len() as u32);
    kept_away(&mut tcp, &[&pings(PINGS)])
}

/// A request in pieces that the server does not get the first time.
fn request_lost_on_the_way(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let head = long_request(1200);
    let pieces: Vec<&[u8]> = head.chunks(100).collect();
    let first = tcp.next;
    for piece in &pieces {
        let mut lost = tcp.segment(0, *piece);
        lost.checksum = Checksum::Wrong;
        tcp.send(&lost)?;
        tcp.next = tcp.next.wrapping_add(piece.len() as u32);
    }
    tcp.next = first;
    upgrade_in(&mut tcp, &pieces)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A longer request that the server discards, in place of the one that it takes.
fn longer_request_as_bait(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let (begin, rest) = REQUEST.split_at(REQUEST.len() - 1);
    tcp.push(begin)?;
    let longer = long_request(900);
    let mut bait = tcp.segment(-(begin.len() as i64), &longer[..]);
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    ensure!(longer.len() > REQUEST.len() + pings(PINGS).len(), "{} bytes", longer.len());
    upgrade_in(&mut tcp, &[rest])?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// An answer in pieces, because the client has no room for more.
fn answer_through_a_tiny_window(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening { window: 5, ..Opening::default() })?;
    tcp.push(REQUEST)?;
    // The first five bytes; then there is room.
    tcp.wait(Duration::from_secs(3), |tcp| tcp.answer_bytes() > 0)?;
    tcp.window = 0xFFFF;
    tcp.acknowledge()?;
    tcp.answered()?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// An answer in segments too short to identify it; then one ping per segment.
fn answer_that_begins_in_pieces(attacker: &Attacker, piece: u16) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening { window: piece, ..Opening::default() })?;
    tcp.push(REQUEST)?;
    // Each piece is acknowledged, which asks for the next.
    tcp.wait(ANSWER, |tcp| tcp.answer_bytes() >= 12)?;
    tcp.window = 0xFFFF;
    tcp.acknowledge()?;
    tcp.answered()?;
    for ping in pings(PINGS).chunks(6) {
        tcp.push(ping)?;
    }
    ensure!(tcp.drain()?, "the server does not take them");
    one(tcp)
}

fn answer_that_begins_with_a_byte(attacker: &Attacker) -> Result<Peers> {
    answer_that_begins_in_pieces(attacker, 1)
}

fn answer_that_begins_with_eleven_bytes(attacker: &Attacker) -> Result<Peers> {
    answer_that_begins_in_pieces(attacker, 11)
}

/// Pongs before the answer to the request, all in one segment.
/// The client had no room before.
fn pongs_before_the_answer(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    tcp.window = 0;
    tcp.push(&[REQUEST, &pings(1)].concat())?;
    tcp.settle(Duration::from_millis(100))?;
    tcp.window = 0xFFFF;
    kept_away(&mut tcp, &[])
}

/// The answers to a request before the upgrade and to the upgrade, in one segment.
fn two_answers_at_once(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    tcp.window = 0;
    tcp.push(PLAIN_REQUEST)?;
    tcp.settle(Duration::from_millis(50))?;
    tcp.push(REQUEST)?;
    answer_waits(&mut tcp)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// The same, with the request hidden behind the body of the previous one.
fn answer_behind_the_one_to_a_body(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    tcp.window = 0;
    tcp.push(&[POST, REQUEST].concat())?;
    answer_waits(&mut tcp)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// The same, by a client that never lets the server answer.
fn upgrade_behind_a_body_and_nothing_comes_out(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening { window: 0, ..Opening::default() })?;
    tcp.push(&[POST, REQUEST].concat())?;
    // The server refuses data that arrives with the request.
    tcp.settle(Duration::from_millis(100))?;
    // Each once: a retransmission of dropped segments would only arrive later.
    for segment in pings(UNHEARD).chunks(1200) {
        tcp.push(segment)?;
    }
    answer_waits(&mut tcp)?;
    one(tcp)
}

/// A request's head in frames behind a hidden upgrade: each segment begins like a request with a body.
/// The client never lets the server answer.
fn heads_in_frames(attacker: &Attacker) -> Result<Peers> {
    const PER_SEGMENT: usize = 200;
    let mut tcp = attacker.tcp(0, &Opening { window: 0, ..Opening::default() })?;
    tcp.push(&[POST, REQUEST].concat())?;
    // The server refuses data that arrives with the request.
    tcp.settle(Duration::from_millis(100))?;
    let head = b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n";
    let begin = [0x82, 0x80 | head.len() as u8, 0, 0, 0, 0];
    tcp.push(&begin)?;
    let segment = [&head[..], &pings(PER_SEGMENT), &begin].concat();
    // Each once, as above.
    for _ in 0..UNHEARD / PER_SEGMENT {
        tcp.push(&segment)?;
    }
    answer_waits(&mut tcp)?;
    one(tcp)
}

/// Decoys: the server discards the head of a request whose body passes.
/// It gets another head in its place, whose request continues in that body with pings behind it. On
/// several connections at once.
fn request_in_the_body_of_a_decoy(attacker: &Attacker) -> Result<Peers> {
    let request = long_request(200);
    let decoy = post(DECOYS * UNHEARD * 6);
    let (begin, rest) = request.split_at(decoy.len());
    decoys(attacker, &decoy, begin, rest)
}

/// The same with a whole head in the place of the decoy's, and a short body behind it.
fn whole_head_in_the_place_of_a_decoy(attacker: &Attacker) -> Result<Peers> {
    decoys(attacker, &post(DECOYS * UNHEARD * 6), &post(5), &[b"hello", REQUEST].concat())
}

/// Return the head of a request with a body of this length: always of the same length.
fn post(length: usize) -> Vec<u8> {
    let digits = length.to_string();
    let pad = "x".repeat(10 - digits.len());
    let head = "POST / HTTP/1.1\r\nHost: server\r\n";
    format!("{head}Content-Length: {digits}\r\nX: {pad}\r\n\r\n").into_bytes()
}

/// Send `decoy`, which the server discards, with `rest` and pings behind it; then `begin` in its place.
fn decoys(attacker: &Attacker, decoy: &[u8], begin: &[u8], rest: &[u8]) -> Result<Peers> {
    let mut peers = Vec::new();
    for n in 0..DECOYS {
        let mut tcp = attacker.tcp(n as u16, &Opening::default())?;
        let bait = Packet { checksum: Checksum::Wrong, ..tcp.segment(0, decoy) };
        tcp.send(&bait)?;
        tcp.advance(decoy.len());
        let body = [rest, &pings(UNHEARD)].concat();
        for part in body.chunks(raw_tcp::SEGMENT) {
            tcp.send(&tcp.segment(0, part))?;
            tcp.advance(part.len());
        }
        let behind = (decoy.len() + body.len()) as i64;
        peers.push((tcp.segment(-behind, begin), tcp));
    }
    let end = Instant::now() + ANSWER;
    while Instant::now() < end {
        for (missing, tcp) in &mut peers {
            tcp.send(&tcp.again(missing))?;
            tcp.settle(Duration::from_millis(20))?;
        }
    }
    let (through, waiting): (Vec<_>, Vec<_>) =
        peers.into_iter().map(|(_, tcp)| tcp).partition(|tcp| tcp.unacknowledged() <= 0);
    for tcp in waiting {
        let back = i64::from(tcp.unacknowledged());
        tcp.send(&tcp.segment(-back, []).flags(flag::RST))?;
    }
    Ok(through.into_iter().map(|tcp| Box::new(tcp) as Box<dyn Peer>).collect())
}

/// Connections with hidden requests from a source over its limit.
fn hidden_requests_of_a_throttled_source(attacker: &Attacker) -> Result<Peers> {
    let mut first = attacker.connect()?;
    try_all(&mut first, &pings(PINGS))?;
    let mut peers = hidden_requests(attacker)?;
    peers.push(Box::new(first));
    Ok(peers)
}

/// Requests hidden behind chunks that are not followed, with pings in the flight.
/// No server output reveals them.
fn hidden_requests(attacker: &Attacker) -> Result<Peers> {
    let flight = [VAGUE_POST, REQUEST, &pings(UNHEARD)].concat();
    let mut peers = Vec::new();
    for n in 1..=HIDDEN {
        let mut tcp = attacker.tcp(n, &Opening::default())?;
        for part in flight.chunks(raw_tcp::SEGMENT) {
            tcp.send(&tcp.segment(0, part))?;
            tcp.advance(part.len());
        }
        tcp.window = 0;
        tcp.settle(Duration::from_millis(100))?;
        let left = tcp.unacknowledged();
        tcp.send(&tcp.segment(i64::from(-left), []).flags(flag::RST | flag::ACK))?;
        if (left as usize) < flight.len() - VAGUE_POST.len() - REQUEST.len() {
            peers.push(Box::new(Ended(tcp)) as Box<dyn Peer>);
        }
    }
    Ok(peers)
}

/// A connection that its client has reset.
struct Ended(RawTcp);

impl Peer for Ended {
    fn address(&self) -> SocketAddr {
        self.0.client
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn pongs(&self) -> u64 {
        self.0.pongs
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Make room when the server has more to send than one write.
fn answer_waits(tcp: &mut RawTcp) -> Result<()> {
    tcp.settle(Duration::from_millis(100))?;
    tcp.window = 0xFFFF;
    tcp.acknowledge()?;
    tcp.answered()?;
    tcp.settle(Duration::from_millis(20))
}

/// An answer with a head longer than any that is followed.
fn huge_head_of_the_answer(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let request = String::from_utf8_lossy(REQUEST).replace("/chat", "/?pad=60000");
    upgrade_in(&mut tcp, &[request.as_bytes()])?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// An answer whose head arrives in segments of 100 bytes.
fn answer_in_small_segments(attacker: &Attacker) -> Result<Peers> {
    let opening = Opening { mss: 100, timestamps: false, ..Opening::default() };
    let mut tcp = attacker.tcp(0, &opening)?;
    let request = String::from_utf8_lossy(REQUEST).replace("/chat", "/?pad=2000");
    upgrade_in(&mut tcp, &[request.as_bytes()])?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// An ordinary body that looks like a 101 and opens a flow;
/// the rest of the request's body looks like the header of an endless frame.
fn text_of_an_answer_in_a_body(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let mut endless = vec![0x82, 0xFF, 0x7F];
    endless.resize(14, 0xFF);
    let length = SWITCHING.len() + endless.len();
    let head = format!("POST / HTTP/1.1\r\nHost: server\r\nContent-Length: {length}\r\n\r\n");
    for part in [head.as_bytes(), SWITCHING, &endless] {
        tcp.push(part)?;
        tcp.settle(Duration::from_millis(60))?;
    }
    tcp.take_bytes();
    tcp.upgrade()?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A request with the sequence numbers of a connection yet to come.
/// It is longer than that connection's request.
fn request_before_the_connection(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = RawTcp::new(&attacker.stage.pair, attacker.local(0), attacker.server()?)?;
    tcp.send(&tcp.segment(1, long_request(900)))?;
    tcp.settle(Duration::from_millis(20))?;
    tcp.survives_reset();
    tcp.open(&Opening::default(), &[])?;
    tcp.acknowledge()?;
    let (begin, rest) = REQUEST.split_at(BEGIN);
    upgrade_in(&mut tcp, &[begin, rest])?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// Send requests without connections, from unused addresses.
/// Each comes in two pieces: the kernel is slower to forget an entry that was looked up once.
fn flood_of_requests(attacker: &Attacker) -> Result<()> {
    let sender = Sender::new(&attacker.stage.pair)?;
    let destination = attacker.server()?;
    let (begin, rest) = REQUEST.split_at(REQUEST.len() / 2);
    let pieces = (0..REQUESTS).flat_map(|n| {
        let source = SocketAddr::new(raw_tcp::address(attacker.family, 255), n);
        let (ack, flags) = (1, Flags::Ack);
        [(1, begin), (1 + begin.len() as u32, rest)].map(|(seq, payload)| Segment {
            source,
            destination,
            seq,
            ack,
            flags,
            payload,
        })
    });
    let frames = pieces.map(|piece| sender.frame(&piece)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    sender.send_frames(&frames)?;
    let rate = frames.len() as f64 / start.elapsed().as_secs_f64();
    println!("  {} packets of spoofed requests, {rate:.0} a second", frames.len());
    Ok(())
}

/// A request forgotten in a flood of ten times as many as there is room for.
/// They come from unused addresses, as soon as the server has acknowledged its beginning.
fn request_forgotten_in_a_flood(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    let (begin, rest) = REQUEST.split_at(REQUEST.len() - 1);
    proven(&mut tcp, begin)?;
    flood_of_requests(attacker)?;
    kept_away(&mut tcp, &[&[rest, &pings(PINGS)].concat()])
}

/// The same behind another request and its answer, as soon as it has begun.
/// After those the server delays acknowledgements.
fn second_request_forgotten_in_a_flood(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    proven(&mut tcp, PLAIN_REQUEST)?;
    ensure!(tcp.wait(ANSWER, |tcp| tcp.answer_bytes() > 0)?, "no answer to the first request");
    tcp.settle(Duration::from_millis(50))?;
    tcp.take_bytes();
    let (begin, rest) = REQUEST.split_at(REQUEST.len() - 1);
    tcp.push(begin)?;
    flood_of_requests(attacker)?;
    kept_away(&mut tcp, &[&[rest, &pings(PINGS)].concat()])
}

/// Send `bytes`, and wait for their acknowledgement.
fn proven(tcp: &mut RawTcp, bytes: &[u8]) -> Result<()> {
    let start = Instant::now();
    tcp.push(bytes)?;
    ensure!(tcp.wait(ANSWER, |tcp| tcp.unacknowledged() <= 0)?, "the server does not take it");
    println!("  acknowledged after {:?}", start.elapsed());
    Ok(())
}

/// A connection with the same ports, as soon as the first one is closed.
fn ports_used_again(attacker: &Attacker) -> Result<Peers> {
    let mut first = attacker.connect()?;
    persist_all(&mut first, &pings(PINGS / 2))?;
    first.settle(Duration::from_millis(100))?;
    first.finish()?;
    let mut second = attacker.connect()?;
    persist_all(&mut second, &pings(PINGS / 2))?;
    Ok(vec![Box::new(first), Box::new(second)])
}

/// The same ports after Linux's initial sequence numbers went round.
///
/// They do in 2^32 * 64 ns, for the same end points: a new connection may begin a little below the
/// end of the server's old stream. The client begins past the last byte of the old stream that the
/// server has acknowledged.
///
/// Instead of waiting 275 s: a forged segment of the server moves the old stream to where the clock
/// of the new connection will be.
fn ports_used_again_when_the_clock_went_round(attacker: &Attacker) -> Result<Peers> {
    for n in 0..TRIES {
        let mut first = RawTcp::new(&attacker.stage.pair, attacker.local(n), attacker.server()?)?;
        let start = Instant::now();
        first.open(&Opening::default(), &[])?;
        first.acknowledge()?;
        let began = first.expected();
        first.upgrade()?;
        let payload = 4 * OLD as usize;
        persist_all(&mut first, &[header(payload as u16), vec![0; payload]].concat())?;
        let end = first.next;
        first.finish()?;
        let due = Instant::now() + Duration::from_millis(50);
        let clock = |at: Instant| (at.duration_since(start).as_nanos() / TICK) as u32;
        let high = began.wrapping_add(clock(due)).wrapping_add(BELOW / 2);
        let made_up = Packet::new(first.server, first.client, high, end, Vec::new());
        let sender = Sender::of_server(&attacker.stage.pair)?;
        sender.send_frame(&Packet { macs: [sender.from(), sender.to()], ..made_up }.build()?)?;
        let mut second = RawTcp::new(&attacker.stage.pair, first.client, first.server)?;
        second.next = end.wrapping_sub(3 * OLD);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        second.open(&Opening::default(), &[])?;
        second.acknowledge()?;
        let below = high.wrapping_sub(second.expected());
        if below < BELOW {
            second.upgrade()?;
            try_all(&mut second, &pings(4 * PINGS))?;
            return Ok(vec![Box::new(first), Box::new(second)]);
        }
        second.finish()?;
    }
    bail!("the clock was never where it should be")
}

pub const ROWS: &[Row] = &[
    Row::new("early_data_behind_the_request", SOME, early_data_behind_the_request),
    Row::new("request_in_one_byte_segments", ALL, request_in_one_byte_segments),
    Row::new("early_data_behind_a_cut_request", SOME, early_data_behind_a_cut_request),
    Row::new("payload_that_looks_like_a_header", SOME, payload_that_looks_like_a_header),
    Row::new("empty_line_before_the_request", SOME, empty_line_before_the_request).on(Library::Ws),
    Row::new("pipelined_request", SOME, pipelined_request).on(Library::Ws),
    Row::new("head_of_24_kilobytes", SOME, head_of_24_kilobytes),
    Row::new("request_with_an_old_byte", SOME, request_with_an_old_byte),
    Row::new("request_behind_an_old_byte", SOME, request_behind_an_old_byte).on(Library::Ws),
    Row::new("request_lost_on_the_way", ALL, request_lost_on_the_way),
    Row::new("longer_request_as_bait", SOME, longer_request_as_bait),
    Row::new("answer_through_a_tiny_window", ALL, answer_through_a_tiny_window),
    Row::new("answer_that_begins_with_a_byte", ALL, answer_that_begins_with_a_byte),
    Row::new("answer_that_begins_with_eleven_bytes", ALL, answer_that_begins_with_eleven_bytes)
        .on(Library::Ws),
    Row::new("pongs_before_the_answer", SOME, pongs_before_the_answer),
    Row::new("two_answers_at_once", ALL, two_answers_at_once).on(Library::Ws),
    Row::new("answer_behind_the_one_to_a_body", ALL, answer_behind_the_one_to_a_body)
        .on(Library::Gorilla),
    // The pace of one second, and a quarter of it for a late clock.
    Row::new(
        "upgrade_behind_a_body_and_nothing_comes_out",
        Reached::AtMost(UNHEARD as u64),
        upgrade_behind_a_body_and_nothing_comes_out,
    )
    .allowed(16 * 1024 * 5 / 4 / 6)
    .on(Library::Gorilla),
    // One passes on the source's credit, another one may when that is repaid.
    Row::new(
        "request_in_the_body_of_a_decoy",
        Reached::AtMost((DECOYS * UNHEARD) as u64),
        request_in_the_body_of_a_decoy,
    )
    .allowed(2 * UNHEARD as u64),
    Row::new(
        "whole_head_in_the_place_of_a_decoy",
        Reached::AtMost((DECOYS * UNHEARD) as u64),
        whole_head_in_the_place_of_a_decoy,
    )
    .allowed(2 * UNHEARD as u64)
    .on(Library::Ws)
    .only(&[Family::V4]),
    Row::new("heads_in_frames", Reached::AtMost(UNHEARD as u64), heads_in_frames)
        .allowed(16 * 1024 * 5 / 4 / 6)
        .on(Library::Gorilla),
    // The first bytes of a source and of each connection, and some seconds of its pace.
    Row::new("hidden_requests", Reached::AtMost(HIDDEN as u64 * UNHEARD as u64), hidden_requests)
        .allowed(((FIRSTS + 8 * 16 * 1024 + HIDDEN as usize * 4 * 1024) / 6) as u64)
        .on(Library::Ws),
    Row::new(
        "hidden_requests_of_a_throttled_source",
        Reached::AtMost((PINGS + HIDDEN as usize * UNHEARD) as u64),
        hidden_requests_of_a_throttled_source,
    )
    .allowed(((FIRSTS + 2 * 16 * 1024) / 6) as u64)
    .on(Library::Ws),
    Row::new("huge_head_of_the_answer", ALL, huge_head_of_the_answer).on(Library::Ws),
    Row::new("answer_in_small_segments", ALL, answer_in_small_segments).on(Library::Ws),
    Row::new("text_of_an_answer_in_a_body", SOME, text_of_an_answer_in_a_body).on(Library::Ws),
    Row::new("request_before_the_connection", SOME, request_before_the_connection),
    Row::new("request_forgotten_in_a_flood", NONE, request_forgotten_in_a_flood).allowed(0),
    Row::new("second_request_forgotten_in_a_flood", NONE, second_request_forgotten_in_a_flood)
        .allowed(0)
        .on(Library::Ws),
    Row::new(
        "ports_used_again_when_the_clock_went_round",
        Reached::AtMost(4 * PINGS as u64),
        ports_used_again_when_the_clock_went_round,
    ),
    // The second connection has a share of its own.
    Row::new("ports_used_again", ALL, ports_used_again).allowed(LIMIT + SHARE),
];
