//! Bytes that may hide frames, of clients that suppress all telltale answers.
//!
//! Without a pace 16 KiB of them pass.
use std::time::Duration;

use ws_guard_common::{flow::state, maps::Counter::*};

use ws_guard_testkit::packets::{
    Packet, SWITCHING,
    flag::{FIN, RST, SYN},
};

use crate::{
    case::{Case, case, pings},
    forged::{HTTP, syn_ack},
};

const UPLOAD: &[u8] = b"POST / HTTP/1.1\r\n\r\n";
/// Length of each segment after it.
const SEGMENT: usize = 1000;
/// Number of such segments that pass.
const PASS: i64 = 17;

impl Case {
    /// Close the window of the latest packet's sender.
    pub fn shut(self) -> Case {
        self.with(|packet| packet.window = 0)
    }
}

/// Smallest window that counts as room.
const ANSWER_ROOM: u16 = 9000;
/// Number of segments that pass in front of an answer that is not taken:
/// 4 KiB of the connection, 512 KiB of its source, and one at a pace of next to nothing.
const SHARED: i64 = 5 + 525 + 1;

/// Set a window on the latest packet into which no segment of jumbo frames fits.
fn narrow(case: Case) -> Case {
    case.with(|packet| packet.window = ANSWER_ROOM - 1)
}

/// Offset of the upload: its end is in front of the request that is answered.
const FIRST: i64 = -2_000_000;

/// Return the offset of the segment with this number.
fn place(number: i64) -> i64 {
    FIRST + UPLOAD.len() as i64 + number * SEGMENT as i64
}

/// Start a connection since its SYN-ACK with the head of an upload.
fn upload(name: &'static str) -> Case {
    syn_ack(case(name), FIRST).client_at(FIRST, UPLOAD)
}

/// Start the same behind SYNs with these window scales.
/// Each is at its offset in front of the first byte; the SYN-ACK has one as well.
fn scaled(name: &'static str, syns: &[(i64, u8)]) -> Case {
    let syn = |case: Case, &(place, shift): &(i64, u8)| {
        case.client_at(place, [])
            .with(move |packet| (packet.flags, packet.tcp_options) = (SYN, vec![3, 3, shift, 1]))
    };
    let case = syns.iter().fold(case(name), syn);
    syn_ack(case, FIRST)
        .with(|packet| packet.tcp_options = vec![3, 3, 7, 1])
        .client_at(FIRST, UPLOAD)
}

/// Start the same behind a SYN with data that the server takes (RFC 7413), and a window scale.
fn scaled_with_data(name: &'static str) -> Case {
    const DATA: &[u8] = b"GET";
    let syn = case(name)
        .client_at(FIRST - 1 - DATA.len() as i64, DATA)
        .with(|packet| (packet.flags, packet.tcp_options) = (SYN, vec![3, 3, 7, 1]));
    syn_ack(syn, FIRST)
        .with(|packet| packet.tcp_options = vec![3, 3, 7, 1])
        .client_at(FIRST, UPLOAD)
}

/// Start the same behind SYNs of others, whose data the server does not take, and a SYN of the client.
fn planted(name: &'static str) -> Case {
    let other = |case: Case, flags| {
        case.client_at(FIRST - 5000, b"GET").with(move |packet| packet.flags = flags)
    };
    let case = other(other(other(case(name), SYN | RST), SYN | FIN), SYN).dropped();
    let syn = case
        .client_at(FIRST - 1, [])
        .with(|packet| (packet.flags, packet.tcp_options) = (SYN, vec![3, 3, 7, 1]));
    syn_ack(syn, FIRST)
        .with(|packet| packet.tcp_options = vec![3, 3, 7, 1])
        .client_at(FIRST, UPLOAD)
}

/// TCP options: a window scale of this shift, and a timestamp with this last byte that echoes `echoed`.
fn stamped(shift: u8, value: u8, echoed: u32) -> Vec<u8> {
    [&[3, 3, shift, 8, 10, 0, 0, 1, value], &echoed.to_be_bytes()[..], &[1; 3]].concat()
}

/// Last byte of the SYN-ACK's timestamp.
const STAMP: u8 = 0x47;

/// The client's timestamp that echoes one with this last byte.
fn echo(stamp: u8) -> Vec<u8> {
    stamped(7, 10, 0x0200 | u32::from(stamp))
}

/// [`linux`], with timestamps that echo the SYN-ACK's.
fn echoes(case: Case) -> Case {
    linux(case).with(|packet| packet.tcp_options = echo(STAMP))
}

/// [`linux`], with timestamps that echo later ones.
fn echoes_later(case: Case) -> Case {
    linux(case).with(|packet| packet.tcp_options = echo(STAMP + 5))
}

/// Send a SYN with a scale and a timestamp.
fn syn(case: Case, shift: u8) -> Case {
    case.client_at(FIRST - 1, []).with(move |packet| {
        (packet.flags, packet.tcp_options) = (SYN, stamped(shift, 9, 0));
    })
}

/// Begin a connection of a client with a window scale and timestamps. `stamps` are the last bytes of the SYN-ACKs',
/// each with the shift of the SYN before it.
fn begun(name: &'static str, stamps: &[(u8, u8)]) -> Case {
    stamps.iter().fold(case(name), |case, &(shift, stamp)| {
        syn_ack(syn(case, shift), FIRST)
            .with(move |packet| packet.tcp_options = stamped(7, stamp, 9))
    })
}

/// Send the head of an upload with these options.
fn head(case: Case, options: Vec<u8>) -> Case {
    case.client_at(FIRST, UPLOAD).with(move |packet| packet.tcp_options = options.clone())
}

/// Scales that a client tells a server with SYN cookies by the timestamp.
fn scales_by_timestamp() -> Vec<Case> {
    let passes =
        |case, edit| segments(case, 40, edit).leaves_no_flow().counts(&[(DroppedUnsynced, 0)]);
    let refused = |case| is_last(segments(case, PASS, echoes), PASS, echoes);
    let one = |name| begun(name, &[(7, STAMP)]);
    let two = |name, second| begun(name, &[(14, 0x4E), second]);
    let acknowledged = |case: Case| {
        case.server(place(0), [])
            .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32))
    };
    let ahead = one("another scale by an acknowledgement that is too high")
        .client_at(FIRST, [])
        .with(|packet| (packet.ack, packet.tcp_options) = (packet.ack + 2, echo(STAMP - 7)));
    let twice = [stamped(7, 10, 0x0247), stamped(7, 10, 0)].map(|options| options[3..13].to_vec());
    let both_ahead = one("another scale by numbers that are both ahead")
        .client_at(FIRST + 100, [])
        .with(|packet| (packet.ack, packet.tcp_options) = (packet.ack + 100, echo(STAMP - 7)));
    let probed = one("a keep-alive probe of the server ahead of the first request")
        .server(FIRST, [])
        .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32 + 1));
    let older = syn(one("the answer to an older SYN-ACK"), 14)
        .with(|packet| packet.seq = packet.seq.wrapping_sub(20));
    let older = syn_ack(older, FIRST - 20).with(|packet| {
        packet.tcp_options = stamped(7, 0x4E, 9);
        packet.seq = packet.seq.wrapping_add(20);
    });
    let older = older
        .server(FIRST, [])
        .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32));
    // Without timestamps, and behind an acknowledgement of the latest SYN-ACK, as Linux sends before the handshake's end.
    let ahead_of_the_latest = |case: Case| {
        case.client_at(FIRST, [])
            .with(|packet| packet.ack = packet.ack.wrapping_add(5000))
            .server(FIRST, [])
            .with(|packet| packet.seq = packet.seq.wrapping_add(5000 - SWITCHING.len() as u32))
    };
    let latest = || scaled("another SYN-ACK's number, without timestamps", &[(FIRST - 1, 14)]);
    let known = one("the same behind one with the latest number")
        .server(FIRST, [])
        .with(|packet| packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32));
    vec![
        is_last(segments(ahead_of_the_latest(latest()), PASS, linux), PASS, linux),
        refused(head(ahead_of_the_latest(known), echo(STAMP))),
        passes(head(one("a scale, and the SYN-ACK's timestamp"), echo(STAMP)), echoes),
        passes(
            acknowledged(head(one("later timestamps behind an acknowledgement"), echo(STAMP))),
            echoes_later,
        ),
        passes(head(begun("the second SYN-ACK's", &[(7, STAMP), (7, 0x4F)]), echo(0x4F)), echoes),
        passes(head(begun("the first one's", &[(7, STAMP), (7, 0x4F)]), echo(STAMP)), echoes),
        passes(head(probed, echo(STAMP)), echoes),
        refused(head(one("another scale by the timestamp"), echo(STAMP - 7))),
        refused(head(one("no timestamp where the SYN-ACK has one"), vec![])),
        refused(head(begun("an echo of 0", &[(7, 0x40)]), stamped(7, 10, 0))),
        refused(head(one("two timestamps"), [twice.concat(), vec![1; 4]].concat())),
        refused(head(ahead, echo(STAMP))),
        refused(head(both_ahead, echo(STAMP))),
        refused(head(two("a second SYN with a smaller scale", (0, 0x40)), echo(0x40))),
        refused(head(two("one with a third by the timestamp", (13, 0x4D)), echo(0x40))),
        refused(head(older, echo(STAMP))),
    ]
}

/// Set a window of 64 KiB on the latest packet, Linux's offer with a scale of 7.
fn linux(case: Case) -> Case {
    case.with(|packet| packet.window = 502)
}

/// Send the first segments of the upload, each with `edit`.
fn segments(case: Case, count: i64, edit: fn(Case) -> Case) -> Case {
    (0..count).fold(case, |case, number| edit(case.client_at(place(number), [b'x'; SEGMENT])))
}

/// Expect that the next one is dropped, and opens no flow.
fn is_last(case: Case, count: i64, edit: fn(Case) -> Case) -> Case {
    edit(case.client_at(place(count), [b'x'; SEGMENT]))
        .dropped()
        .leaves_no_flow()
        .counts(&[(DroppedUnsynced, 1)])
}

fn open(case: Case) -> Case {
    case
}

/// Uploads that may hide a request for an upgrade.
fn uploads() -> Vec<Case> {
    let ahead = |case: Case, window: u16| {
        case.client_at(place(60), []).with(move |packet| packet.window = window)
    };
    vec![
        segments(upload("an upload whose client lets the server answer"), 40, open)
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 0)]),
        is_last(
            segments(upload("an upload whose client lets nothing out"), PASS, Case::shut),
            PASS,
            Case::shut,
        ),
        is_last(
            segments(
                upload("the same, with a pace").policy(|policy| policy.pace = 1024),
                2,
                Case::shut,
            ),
            2,
            Case::shut,
        ),
        segments(upload("its window opens"), PASS, Case::shut)
            .client_at(place(PASS), [b'x'; SEGMENT])
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 0)]),
        is_last(
            segments(ahead(upload("windows older than one that is shut"), 0), PASS, open),
            PASS,
            open,
        ),
        segments(ahead(upload("the same, where that one has room"), ANSWER_ROOM), 40, open)
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 0)]),
        is_last(
            segments(upload("a window that no segment of the server fits into"), PASS, narrow),
            PASS,
            narrow,
        ),
        segments(scaled("a window with a scale", &[(FIRST - 1, 7)]), 40, linux)
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 0)]),
        segments(scaled_with_data("a window of a SYN with data, with a scale"), 40, linux)
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 0)]),
        segments(planted("data with a SYN and a RST, and with one of another number"), 40, linux)
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 0)]),
        is_last(
            segments(scaled("a window without one", &[(FIRST - 1, 0)]), PASS, linux),
            PASS,
            linux,
        ),
        is_last(
            segments(
                scaled("a decoy's larger scale", &[(FIRST - 1, 0), (FIRST - 1, 14)]),
                PASS,
                linux,
            ),
            PASS,
            linux,
        ),
        is_last(
            segments(
                scaled("the same in the place of another", &[(FIRST - 1, 0), (FIRST, 14)]),
                PASS,
                linux,
            ),
            PASS,
            linux,
        ),
        unheard("an answer that the client does not take", SHARED)
            .dropped()
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 1)]),
        unheard("an answer that the client takes late", SHARED - 1)
            .with(takes_answer)
            .wait(Duration::from_millis(40))
            .client_at(place(SHARED), [b'x'; SEGMENT])
            .with(takes_answer)
            .client_at(place(SHARED + 1), [b'x'; SEGMENT])
            .with(takes_answer)
            .leaves_no_flow()
            .counts(&[(DroppedUnsynced, 0)]),
    ]
}

fn takes_answer(packet: &mut Packet) {
    packet.ack = packet.ack.wrapping_add((HTTP.len() + SWITCHING.len()) as u32);
}

/// Send an upload of this number of segments and one more.
/// Its client does not acknowledge the server's answer.
fn unheard(name: &'static str, count: i64) -> Case {
    let case = scaled(name, &[(FIRST - 1, 7)]).policy(|policy| policy.pace = 1);
    let case = case.server(place(0), HTTP);
    segments(case, count, open).client_at(place(count), [b'x'; SEGMENT])
}

/// Streams out of sync.
fn out_of_sync() -> Vec<Case> {
    let payload = || vec![0; SEGMENT];
    let unsynced = |name| case(name).open().server(1000, []);
    let later = |case: Case| case.wait(Duration::from_millis(40));
    let behind = |case: Case| (0..PASS).fold(case, |case, _| later(case).client(payload()));
    vec![
        behind(
            unsynced("out of sync, and windows older than one that is shut")
                .client_at(60_000, [])
                .shut(),
        )
        .client(payload())
        .dropped()
        .leaves(state::UNSYNCED)
        .counts(&[(DroppedUnsynced, 1)]),
        unsynced("the same, where a window that opens is discarded")
            .policy(|policy| policy.pace = 1)
            .client_at(15_000, [])
            .shut()
            .client(payload())
            .client_at(15_000, [0])
            .client(payload())
            .dropped()
            .leaves(state::UNSYNCED)
            .counts(&[(DroppedUnsynced, 1)]),
        (0..2 * PASS)
            .fold(unsynced("and where none is shut"), |case, number| {
                let taken = (number + 1) * SEGMENT as i64;
                later(case).client(payload()).server(taken.max(1000), [])
            })
            .client(payload())
            .leaves(state::UNSYNCED)
            .counts(&[(DroppedUnsynced, 0)]),
        (0..=PASS)
            .fold(unsynced("nor does a silent server answer behind a gap"), |case, number| {
                later(case).client_at(1008 + number * SEGMENT as i64, payload())
            })
            .dropped()
            .wait(Duration::from_millis(40))
            .client_at(1000, [0])
            .client_at(1008 + PASS * SEGMENT as i64, payload())
            .dropped()
            .wait(Duration::from_millis(40))
            .client_at(1000, payload())
            .leaves(state::UNSYNCED)
            .counts(&[(DroppedUnsynced, 2)]),
        later(unsynced("a segment far ahead, out of sync").client_at(500_000, [0]).dropped())
            .client_at(2000, payload())
            .client_at(3000, payload())
            .leaves(state::UNSYNCED)
            .counts(&[(DroppedUnsynced, 1)]),
        case("frames that are followed need no window")
            .open()
            .client_at(60_000, [])
            .shut()
            .client(pings(3))
            .shut()
            .leaves(state::OPEN)
            .counts(&[(DroppedUnsynced, 0), (Pings, 3)]),
    ]
}

pub fn cases() -> Vec<Case> {
    let mut cases = uploads();
    cases.extend(scales_by_timestamp());
    cases.extend(out_of_sync());
    cases
}
