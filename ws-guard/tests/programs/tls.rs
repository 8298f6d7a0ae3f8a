//! TLS ports: records instead of frames. No byte of any packet here may change.
use ws_guard_common::{
    flood::Class,
    flow::state,
    frame::Violation,
    maps::{Counter::*, LIMITS_CLASSES, MAY_BAN, Policy, Rule, TLS, action, own},
    record::content,
};
use ws_guard_testkit::packets::SWITCHING;

use crate::case::{Case, case, rate};

/// Return a record of `length` bytes.
fn record(kind: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![kind, 3, 3];
    bytes.extend((length as u16).to_be_bytes());
    // Bytes that look like ping headers, which are none here.
    bytes.extend((0..length).map(|at| [0x89, 0x80][at % 2]));
    bytes
}

fn data(length: usize) -> Vec<u8> {
    record(content::APPLICATION_DATA, length)
}

/// Return bytes that begin no record.
/// As a record they would reach far past the segment.
fn noise() -> Vec<u8> {
    let mut bytes = vec![0x89, 0x80, 0, 0xFF, 0xFF];
    bytes.resize(240, 0x55);
    bytes
}

/// Return the client's first record.
fn client_hello() -> Vec<u8> {
    let mut hello = record(content::HANDSHAKE, 300);
    (hello[2], hello[5]) = (1, 1);
    hello
}

/// Return the server's first record, as long as the usual answer of rows.
fn server_hello() -> Vec<u8> {
    let mut hello = record(content::HANDSHAKE, SWITCHING.len() - 5);
    hello[5] = 2;
    hello
}

/// Start a row on a TLS port: 5 small records in any 10 s, from 23 to 148 bytes.
fn tls(name: &'static str, action: u8) -> Case {
    case(name).policy(move |policy: &mut Policy| {
        policy.flags = TLS | LIMITS_CLASSES | MAY_BAN;
        policy.action = action;
        policy.class_limits[Class::SmallRecord as usize] = rate(5, 10_000);
        (policy.record_min, policy.record_max) = (23, 148);
    })
}

/// Offset before the client's records.
const BEFORE: i64 = -305;

fn open(case: Case) -> Case {
    case.client_at(BEFORE, client_hello()).answer(server_hello())
}

pub fn cases() -> Vec<Case> {
    let mut cases = beginnings();
    cases.extend(records());
    cases.extend(limits());
    cases.extend(passive());
    cases.extend(joined());
    cases
}

/// Beginnings that open a flow, and others that do not.
fn beginnings() -> Vec<Case> {
    let hello = client_hello();
    vec![
        open(tls("a ServerHello opens a flow", action::DEFUSE))
            .client(data(30))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 0), (Records, 1), (Frames, 0)]),
        tls("a ClientHello in three segments", action::DEFUSE)
            .client_at(BEFORE, &hello[..6])
            .client_at(BEFORE + 6, &hello[6..200])
            .client_at(BEFORE + 200, &hello[200..])
            .answer(server_hello())
            .client(data(30))
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 0), (Records, 1)]),
        tls("a ServerHello without a ClientHello: its acknowledgement has to do", action::DEFUSE)
            .answer(server_hello())
            .client(data(30))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1), (Records, 1)]),
        tls("early data, acknowledged within a record (RFC 8446, 2.3)", action::DEFUSE)
            .client_at(BEFORE, [&hello[..], &data(500)].concat())
            .answer(server_hello())
            .with(|packet| packet.ack = packet.ack.wrapping_add(100))
            .client_at(505, data(30))
            .leaves(state::OPEN)
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1), (Records, 1)]),
        tls("a ClientHello that comes twice leaves it uncertain", action::DEFUSE)
            .client_at(BEFORE, &*hello)
            .client_at(BEFORE, &*hello)
            .answer(server_hello())
            .client(data(30))
            .counts(&[(FlowsOpened, 1), (RequestsUnseen, 1), (Records, 1)]),
        tls("only the server opens a flow", action::DEFUSE)
            .client_at(BEFORE, &*hello)
            .client(data(30))
            .leaves_no_flow()
            .counts(&[(FlowsOpened, 0), (Records, 0)]),
        tls("an alert of the server opens none", action::DEFUSE)
            .client_at(BEFORE, &*hello)
            .answer(record(content::ALERT, 2))
            .leaves_no_flow(),
        tls("nor does a 101", action::DROP).open().leaves_no_flow().counts(&[(FlowsOpened, 0)]),
        case("nor a ServerHello where the port does not speak TLS")
            .client_at(BEFORE, &*hello)
            .answer(server_hello())
            .leaves_no_flow()
            .counts(&[(FlowsOpened, 0)]),
    ]
}

/// Records that are counted.
fn records() -> Vec<Case> {
    let two = [data(23), data(148)].concat();
    let mut cut = open(tls("headers cut everywhere", action::DEFUSE));
    for byte in &two {
        cut = cut.client([*byte]);
    }
    vec![
        cut.leaves(state::OPEN).counts(&[
            (Records, 2),
            (SmallRecords, 2),
            (SplitHeaders, 2),
            (Pings, 0),
        ]),
        open(tls("by size and type", action::DEFUSE))
            .client([data(22), data(23), data(148), data(149)].concat())
            .client([record(content::ALERT, 50), record(content::HANDSHAKE, 50)].concat())
            .client([record(content::CHANGE_CIPHER_SPEC, 1), data(3000)].concat())
            .client(data(60))
            .counts(&[(Records, 9), (SmallRecords, 3), (Coalesced, 3), (Throttled, 0)]),
        open(tls("a retransmission is counted once", action::DEFUSE))
            .client(data(30))
            .client_at(0, data(30))
            .client(data(31))
            .client_at(0, [data(30), data(31)].concat())
            .counts(&[(Records, 2), (SmallRecords, 2), (Throttled, 0)]),
        open(tls("a header that is none: out of sync, and nothing is changed", action::DROP))
            .client(data(30))
            .client(noise())
            .client(noise())
            .violates(&[Violation::BadRecord])
            .leaves(state::UNSYNCED)
            .counts(&[(Records, 2), (FlowsUnsynced, 1), (Pings, 0), (Defused, 0)]),
        open(tls("records again behind it: in step within three", action::DEFUSE))
            .client(noise())
            .client(data(30))
            .client(data(31))
            .client([data(32), data(33)].concat())
            .violates(&[Violation::BadRecord])
            .leaves(state::OPEN)
            .counts(&[(FlowsUnsynced, 1), (FlowsResynced, 1), (Records, 3), (Coalesced, 1)]),
    ]
}

/// Consequences of too many records.
fn limits() -> Vec<Case> {
    let five = data(30).repeat(5);
    let observe = Rule {
        flags: own::ACTION,
        limits: ws_guard_common::maps::Limits { action: action::OBSERVE, ..Default::default() },
    };
    vec![
        open(tls("too many small records: reported", action::DEFUSE))
            .client(&*five)
            .client(data(30))
            .client(data(30))
            .counts(&[(Throttled, 1), (FramesOver, 2), (SmallRecords, 7), (DroppedThrottled, 0)]),
        open(tls("too many small records: observed", action::OBSERVE))
            .client(&*five)
            .client(data(30))
            .counts(&[(Throttled, 1), (FramesOver, 1), (DroppedThrottled, 0)]),
        open(tls("too many small records: dropped, if the operator says so", action::DROP))
            .client(&*five)
            .client(data(30))
            .dropped()
            .client(data(1000))
            .dropped()
            .counts(&[(Throttled, 1), (FramesOver, 1), (DroppedThrottled, 2)]),
        open(tls("dropped, but not in a network that is observed", action::DROP).rule(observe))
            .client(&*five)
            .client(data(30))
            .client(data(30))
            .counts(&[(Throttled, 1), (DroppedThrottled, 0)]),
        // A known limit: never three application data records in a row, so never in sync again.
        open(tls(
            "small records out of sync, of a source that kept to the limit: pass",
            action::DROP,
        ))
        .client(noise())
        .client([data(30), data(30), noise()].concat())
        .client([data(30), data(30), noise()].concat())
        .client([data(30), data(30), noise()].concat())
        .violates(&[Violation::BadRecord])
        .leaves(state::UNSYNCED)
        .counts(&[(FlowsUnsynced, 1), (SmallRecords, 0), (Throttled, 0), (Records, 1)]),
        open(tls("records of other sizes have no limit", action::DROP))
            .client(data(149).repeat(20))
            .client(data(22).repeat(20))
            .counts(&[(Records, 40), (SmallRecords, 0), (Throttled, 0)]),
        open(tls("reported pings: paced where they would be defused", action::DEFUSE))
            .policy(|policy| policy.pace = 16 << 10)
            .report(30)
            .client(data(30))
            .server(35, data(30))
            .report(1)
            .server(35, data(30))
            .client(data(30))
            .counts(&[(Throttled, 1), (Paced, 1), (DroppedThrottled, 0), (Defused, 0)]),
        open(tls("reported pings: dropped, if the operator says so", action::DROP))
            .report(30)
            .client(data(30))
            .report(1)
            .client_at(35, data(30))
            .dropped()
            .client_at(35, data(1000))
            .dropped()
            .counts(&[(Throttled, 1), (DroppedThrottled, 2), (Defused, 0)]),
        open(tls(
            "reported pings within their limit prove nothing of many records",
            action::DEFUSE,
        ))
        .client(&*five)
        .client(data(30))
        .report(10)
        .client(data(30))
        .report(20)
        .client(data(30))
        .counts(&[(Throttled, 1), (FramesOver, 3), (DroppedThrottled, 0)]),
        open(tls("reported pings: observed, if the operator says so", action::OBSERVE))
            .report(100)
            .client(data(30))
            .counts(&[(Throttled, 1), (DroppedThrottled, 0)]),
    ]
}

/// Actions without `drop`: no segment is held back; then as for frames.
fn passive() -> Vec<Case> {
    let urgent = |case: Case| case.client(data(30)).with(|packet| packet.urgent = Some(1));
    vec![
        open(tls("a gap passes", action::DEFUSE))
            .client_at(100, data(30))
            .client_at(0, data(95))
            .counts(&[(Gaps, 1), (DroppedGap, 0), (Records, 1)]),
        open(tls("a gap is dropped under drop", action::DROP))
            .client_at(100, data(30))
            .dropped()
            .client_at(0, data(95))
            .client_at(100, data(30))
            .counts(&[(Gaps, 1), (DroppedGap, 1), (Records, 2)]),
        urgent(open(tls("urgent data passes", action::DEFUSE))).counts(&[(DroppedUrgent, 0)]),
        urgent(open(tls("urgent data is dropped under drop", action::DROP)))
            .dropped()
            .counts(&[(DroppedUrgent, 1)]),
    ]
}

/// Connections older than the guard.
fn joined() -> Vec<Case> {
    vec![
        tls("three records in a row are taken for records", action::DEFUSE)
            .client(data(30))
            .server(35, data(50))
            .client(data(40))
            .client(data(300))
            .client(data(50))
            .client(data(60))
            .leaves(state::OPEN)
            .counts(&[(FlowsJoined, 1), (Records, 2), (SmallRecords, 2)]),
        tls("within a segment, too, behind the rest of a longer one", action::DEFUSE)
            .server(0, data(50))
            .client([vec![0xAB; 90], data(30), data(31), data(32)].concat())
            .leaves(state::OPEN)
            .counts(&[(FlowsJoined, 1), (Records, 3)]),
        tls("a server that sends something else is not picked up midstream", action::DEFUSE)
            .server(0, b"HTTP/1.1 200 OK\r\n\r\n")
            .client([data(30), data(31), data(32)].concat())
            .leaves_no_flow(),
        tls("frames are no records", action::DEFUSE)
            .server(0, data(50))
            .client(noise())
            .leaves_no_flow()
            .counts(&[(FlowsJoined, 0), (Pings, 0)]),
    ]
}
