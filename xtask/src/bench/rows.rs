//! Rows of the measurement, one for each kind of packet.
//! Those of the defences are in [`super::defences`], those of many flows in [`super::crowd`].
use ws_guard_common::{
    forwarded::preface,
    maps::{Counter, action},
};
use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::{crowd, defences};

/// Hook that a program is attached to in production.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    Xdp,
    TcIngress,
    TcEgress,
}

impl Hook {
    pub fn name(self) -> &'static str {
        match self {
            Hook::Xdp => "XDP",
            Hook::TcIngress => "TC ingress",
            Hook::TcEgress => "TC egress",
        }
    }
}

/// Maximum cost of a row.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// None, for a baseline or a row without one: time compared with the reference.
    Shown,
    /// Factor over the time of the reference.
    Times(f64),
    /// Each frame except the first: this multiple of the time of the reference.
    /// The first frame's time is that of the named row of the same hook.
    EachFurther { first: &'static str, frames: u32, times: f64 },
    /// For a row of many flows: this multiple of the ratio of the same row on one flow.
    AsOnOne { row: &'static str, times: f64 },
}

/// Name of the reference row.
pub const PARSE: &str = "baseline: parse";
pub const LOOK_UP: &str = "baseline: parse, one look-up";

/// Packets before a row's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A request and its answer.
    Flow,
    /// A request without an answer.
    Request,
    /// Data of the server alone: the connection is older than the guard.
    Midstream,
    /// The server's SYN-ACK, which the packet answers.
    Handshake,
    Nothing,
}

/// Required counts of each repeat.
pub type Work = Vec<(Counter, u64)>;

/// A kind of packet, and the programs' work on it.
#[derive(Clone)]
pub struct Row {
    pub name: &'static str,
    pub hook: Hook,
    /// Program of the benchmark's object.
    pub program: &'static str,
    /// The row of the same hook to compare with.
    pub reference: &'static str,
    pub limit: Limit,
    /// Payload of the packet.
    pub payload: Vec<u8>,
    /// Payload of a client's earlier segment, sent once.
    pub before: Vec<u8>,
    /// Bytes sent earlier, past the packet: they are kept, and judged with it.
    pub behind: Vec<u8>,
    /// The packet goes to a port that is not protected.
    pub unprotected: bool,
    /// Only the acknowledgement number advances, by this number.
    pub acknowledges: u32,
    /// Action on the connection, which is over the limit.
    pub throttled: Option<u8>,
    /// That connection is paced.
    pub paced: bool,
    /// The client is a trusted proxy.
    pub proxied: bool,
    /// Beginning of the connection.
    pub opening: Opening,
    /// Bytes missing before the packet.
    pub skips: u32,
    /// Number of acknowledged bytes that the server never sent.
    pub ack_ahead: u32,
    /// Set if the server acknowledges so often that the flow has room for the traces of each segment.
    /// Each segment in flight, as in a chat. Otherwise it acknowledges nothing, as in an upload.
    pub acknowledged: bool,
    /// The packet is the same in each run: a retransmission.
    pub again: bool,
    /// The request is forgotten before each run.
    pub forgotten: bool,
    /// The packet is the pong to the other side's ping, sent before each run.
    pub answers: bool,
    /// There are thousands of rules, none of which applies to the client.
    pub rules: bool,
    /// Every class of frames has a limit.
    pub classes: bool,
    /// The packet is the first fragment of an IP packet.
    pub fragment: bool,
    /// The packet is inside VXLAN, and the programs look into it.
    pub tunnel: bool,
    /// Each run is on another flow: [`crowd`].
    pub many: bool,
    /// [`Work`] of one repeat.
    pub work: Work,
    /// Frames in the packet that have a limit, to stay below its highest setting.
    pub limited: u32,
    pub verdict: u32,
}

/// TC_ACT_UNSPEC: the next program decides.
const UNSPEC: u32 = u32::MAX;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_SHOT: u32 = 2;
/// Goal of the first version's issue: 8 ns where one look-up takes 53.
const FURTHER: f64 = 8.0 / 53.0;

/// Name of a row with a pong that is matched with a waiting ping, and timed.
const ANSWERS: &str = "1 pong, to a ping";

/// Maximum cost of any packet: 20 µs where one look-up takes 95 ns.
pub const COSTLIEST: f64 = 20_000.0 / 95.0;
/// Maximum cost of a packet that needs no completed handshake: half of it.
const COSTLIEST_SPOOFED: f64 = COSTLIEST / 2.0;

pub fn pings(count: usize) -> Vec<u8> {
    encode(&vec![Frame::ping([]); count])
}

fn texts(count: usize) -> Vec<u8> {
    encode(&vec![Frame::text(""); count])
}

/// Return the header of an endless frame: all later bytes of a run are payload.
fn endless() -> Vec<u8> {
    let mut header = vec![0x82, 0x80 | 127];
    header.extend((1u64 << 30).to_be_bytes());
    header.extend([1, 2, 3, 4]);
    header
}

impl Row {
    pub fn new(hook: Hook, name: &'static str, program: &'static str) -> Row {
        Row {
            name,
            hook,
            program,
            reference: LOOK_UP,
            limit: Limit::Shown,
            payload: encode(&[Frame::new(opcode::TEXT, [b'x'; 100])]),
            before: Vec::new(),
            behind: Vec::new(),
            unprotected: false,
            acknowledges: 0,
            throttled: None,
            paced: false,
            proxied: false,
            opening: Opening::Flow,
            skips: 0,
            ack_ahead: 0,
            acknowledged: false,
            again: false,
            forgotten: false,
            answers: false,
            rules: false,
            classes: false,
            fragment: false,
            tunnel: false,
            many: false,
            work: Vec::new(),
            limited: 0,
            verdict: if hook == Hook::Xdp { XDP_PASS } else { UNSPEC },
        }
    }

    /// Check whether it is the row of that name for `hook`.
    /// The baselines of TC are the same on its two sides.
    pub fn is(&self, name: &str, hook: Hook) -> bool {
        let baseline = self.name.starts_with("baseline");
        let tc = self.hook != Hook::Xdp && hook != Hook::Xdp;
        self.name == name && (self.hook == hook || (baseline && tc))
    }

    /// Check whether each repeat counts `counter`.
    pub fn counts(&self, counter: Counter) -> bool {
        self.work.iter().any(|(other, each)| *other == counter && *each > 0)
    }

    pub fn times(mut self, times: f64) -> Row {
        self.limit = Limit::Times(times);
        self
    }

    pub fn payload(mut self, payload: Vec<u8>) -> Row {
        self.payload = payload;
        self
    }

    pub fn work(mut self, work: &[(Counter, u64)]) -> Row {
        self.work = work.to_vec();
        self
    }

    pub fn pings(mut self, count: u32) -> Row {
        self.payload = pings(count as usize);
        self.limited = count;
        let count = u64::from(count);
        self.work(&[(Counter::Frames, count), (Counter::Pings, count), (Counter::Defused, 0)])
    }

    pub fn acknowledged(mut self) -> Row {
        self.acknowledged = true;
        self
    }

    /// Expect that it is dropped.
    pub fn dropped(mut self) -> Row {
        self.verdict = if self.hook == Hook::Xdp { XDP_DROP } else { TC_SHOT };
        self
    }

    fn each_further(mut self, first: &'static str, frames: u32) -> Row {
        self.limit = Limit::EachFurther { first, frames, times: FURTHER };
        self
    }
}

/// Return all rows, in the order of the table.
pub fn rows() -> Vec<Row> {
    let mut rows = baselines();
    rows.extend(client(Hook::Xdp, "bench_xdp"));
    rows.extend(client(Hook::TcIngress, "bench_in"));
    rows.extend(defences::rows(Hook::Xdp, "bench_xdp"));
    rows.extend(defences::rows(Hook::TcIngress, "bench_in"));
    rows.extend(server());
    let many = crowd::rows(&rows);
    rows.extend(many);
    rows.sort_by_key(|row| row.hook as u8);
    rows
}

fn baselines() -> Vec<Row> {
    let mut rows = Vec::new();
    for (hook, [returns, parses, looks_up]) in [
        (Hook::Xdp, ["bench_xdp_return", "bench_xdp_parse", "bench_xdp_look_up"]),
        (Hook::TcEgress, ["bench_tc_return", "bench_tc_parse", "bench_tc_look_up"]),
    ] {
        let idle = [(Counter::Seen, 0)];
        rows.push(Row::new(hook, "baseline: return", returns).work(&idle));
        rows.push(Row::new(hook, PARSE, parses).work(&idle));
        rows.push(Row::new(hook, LOOK_UP, looks_up).work(&idle));
    }
    // The cost of each change of a flow, whatever it changes.
    let locks = Row::new(Hook::Xdp, "baseline: the same, one lock", "bench_xdp_lock");
    rows.push(locks.work(&[(Counter::Seen, 0)]));
    rows
}

/// Return the rows of clients' packets.
fn client(hook: Hook, program: &'static str) -> Vec<Row> {
    let row = |name| Row::new(hook, name, program);
    let one = [(Counter::Tracked, 1), (Counter::Frames, 1), (Counter::Pings, 0)];
    let mut unprotected = row("unprotected port").times(1.15);
    unprotected.unprotected = true;
    unprotected.reference = PARSE;
    let mut inside = row("data, inside a frame").times(1.5).payload(vec![7; 100]);
    inside.before = endless();
    let mut defused = row("1 ping over the limit, defused").times(2.2).pings(1);
    defused.throttled = Some(action::DEFUSE);
    defused.work = vec![(Counter::Pings, 1), (Counter::Defused, 1), (Counter::Rewritten, 1)];
    let mut dropped = row("any packet of a connection over the limit, dropped").times(1.1);
    dropped.throttled = Some(action::DROP);
    dropped.work = vec![(Counter::DroppedThrottled, 1), (Counter::Tracked, 0)];
    let mut rows = vec![
        unprotected.work(&[(Counter::Seen, 1), (Counter::Protected, 0)]),
        inside.work(&[(Counter::Tracked, 1), (Counter::Frames, 0)]),
        row("data, 1 frame").times(1.5).work(&one).acknowledged(),
        row("the same, nothing acknowledged").work(&one),
        row("1 text frame, empty").times(1.5).payload(texts(1)).work(&one).acknowledged(),
        row("1 ping").times(2.2).pings(1).acknowledged(),
        defused.acknowledged(),
    ];
    let mut pong = row("1 pong").payload(encode(&[Frame::new(opcode::PONG, [])]));
    pong = pong.work(&[(Counter::Frames, 1), (Counter::Pongs, 1)]).acknowledged();
    rows.push(pong.clone());
    (pong.name, pong.answers) = (ANSWERS, true);
    rows.push(pong);
    for (name, count) in [("8 pings", 8), ("32 pings", 32), ("240 pings", 240)] {
        rows.push(row(name).pings(count).each_further("1 ping", count).acknowledged());
    }
    for (name, count) in [("8 text frames", 8), ("32 text frames", 32), ("240 text frames", 240)] {
        let frames = row(name).payload(texts(count as usize)).acknowledged();
        let work = [(Counter::Frames, u64::from(count)), (Counter::Pings, 0)];
        rows.push(frames.work(&work).each_further("1 text frame, empty", count));
    }
    rows.push(dropped.dropped());
    rows.extend(requests(&row));
    rows
}

/// Return rows of requests for a page, each the first segment of its connection:
/// those without an upgrade can be read again and again.
fn requests(row: &dyn Fn(&'static str) -> Row) -> Vec<Row> {
    let first = |name, payload| {
        let mut first =
            row(name).payload(payload).work(&[(Counter::Protected, 1)]).times(COSTLIEST);
        (first.opening, first.again, first.forgotten) = (Opening::Handshake, true, true);
        first
    };
    let proxied = |name, payload| {
        let mut proxied = first(name, payload);
        proxied.proxied = true;
        proxied
    };
    // The maximum that is read byte by byte, in lines that are too short to be skipped, or in hops.
    let slow = |count: usize| get(&"A:\n".repeat(count / 3), 1448);
    // The maximum number of lines that fit, each of which is skipped by one word.
    let words = get(&"A:345678\n".repeat(150), 1448);
    let costly = |hops| get(&format!("X-Forwarded-For: {}\r\n", "::,".repeat(hops)), 1448);
    let spoofed = |name, payload| {
        let mut spoofed = proxied(name, payload);
        spoofed.opening = Opening::Nothing;
        spoofed.times(COSTLIEST_SPOOFED)
    };
    let forwarded = format!("{BROWSER}X-Forwarded-For: 198.51.100.7\r\n");
    let hops = vec!["198.51.100.17"; 20].join(", ");
    let hops = format!("X-Forwarded-For: {hops}\r\n");
    let preface =
        [&preface::V2[..], &[0x21, 0x11, 0, 12], &[198, 51, 100, 7, 10, 0, 0, 9]].concat();
    let preface = [&preface[..], &[0x12, 0x67, 0, 80], &get("", 452)].concat();
    vec![
        first("request, 480 bytes", get("", 480)),
        proxied("request, 480 bytes, of a proxy: PROXY v2", preface),
        first("request, 1,448 bytes, a browser's", get(BROWSER, 1448)),
        proxied("the same, of a proxy: X-Forwarded-For", get(&forwarded, 1448)),
        proxied("request, 1,448 bytes, of a proxy: 20 hops", get(&hops, 1448)),
        first("request, 1,448 bytes, the shortest lines", slow(1350)),
        proxied("request, 1,448 bytes, of a proxy: the shortest lines", slow(1350)),
        proxied("request, 1,448 bytes, the shortest hops", costly(280)),
        spoofed("request without a handshake, the shortest lines", slow(210)),
        spoofed("request without a handshake, the shortest hops", costly(25)),
        first("request, 1,448 bytes, lines of nine bytes", words.clone()),
        first(
            "requests of six bytes, 1,448 bytes",
            [b"GET /\r\n\r\n", &b"G \r\n\r\n".repeat(239)[..]].concat(),
        ),
        spoofed("request without a handshake, lines of nine bytes", words),
    ]
}

/// Header fields of a browser.
const BROWSER: &str = "Connection: keep-alive\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/140.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Origin: https://example.com\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cache-Control: no-cache\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: same-origin\r\n";

/// Return a request of `length` bytes with these lines, filled up by a cookie.
fn get(fields: &str, length: usize) -> Vec<u8> {
    let begin = format!("GET / HTTP/1.1\r\nHost: example.com\r\n{fields}Cookie: ");
    let filler = "x".repeat(length - 4 - begin.len());
    format!("{begin}{filler}\r\n\r\n").into_bytes()
}

/// Return the rows of servers' packets.
fn server() -> Vec<Row> {
    let row = |name| Row::new(Hook::TcEgress, name, "bench_out");
    let unmasked = |opcode, length| {
        let frame = Frame { mask: None, ..Frame::new(opcode, vec![b'x'; length]) };
        encode(&[frame])
    };
    let frame = [(Counter::EgressTracked, 1), (Counter::FramesOut, 1)];
    let pong = row("1 pong").payload(unmasked(opcode::PONG, 0)).work(&[
        (Counter::EgressTracked, 1),
        (Counter::FramesOut, 1),
        (Counter::PongsOut, 1),
    ]);
    let mut ack = row("pure ACK").payload(Vec::new());
    (ack.acknowledges, ack.before) = (100, endless());
    let mut paced = row("pure ACK, paced").payload(Vec::new());
    (paced.acknowledges, paced.before) = (100, endless());
    (paced.throttled, paced.paced) = (Some(action::DEFUSE), true);
    let mut unprotected = row("unprotected port");
    (unprotected.unprotected, unprotected.reference) = (true, PARSE);
    vec![
        unprotected.work(&[(Counter::EgressSeen, 1), (Counter::EgressTracked, 0)]).times(1.15),
        ack.work(&[(Counter::EgressTracked, 1), (Counter::FramesOut, 0)]),
        paced.work(&[(Counter::EgressTracked, 1), (Counter::WindowsHeld, 1)]),
        row("data, 1 frame").payload(unmasked(opcode::TEXT, 100)).work(&frame),
        pong.clone(),
        Row { name: ANSWERS, answers: true, ..pong },
    ]
}
