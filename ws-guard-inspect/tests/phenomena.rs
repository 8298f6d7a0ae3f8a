//! Problems of connections, built packet by packet, and the findings on them.

mod common;

use common::{Packet, REQUEST, Talk, frame, inspected, pcap, switching};
use ws_guard_common::frame::Violation;
use ws_guard_inspect::{
    Side::{Client, Server},
    What,
    finding::{Broken, Kind},
    summary::LooksLike,
};

fn open() -> Talk {
    Talk::open(false, [1000, 2000], false)
}

fn text(side: ws_guard_inspect::Side, length: usize) -> Vec<u8> {
    frame(side, 0x81, &vec![b'x'; length])
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let mut talk = Talk::new(false, [1000, 2000]);
    talk.handshake();
    for byte in REQUEST {
        talk.send(Client, &[*byte]);
    }
    talk.send(Server, &switching(false));
    talk.send(Client, &text(Client, 4));
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!((flow.frames_client, flow.midstream, flow.request_unseen), (1, false, false));
}

#[test]
fn split_points_are_offsets_in_the_segment() {
    let mut talk = open();
    let three = [text(Client, 4), text(Client, 0), text(Client, 9)].concat();
    let packet = talk.send(Client, &three);
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!((flow.coalesced_segments, flow.split_points_total), (1, 1));
    let point = &flow.split_points[0];
    let (frames, len, offsets) = (3, three.len() as u32, vec![10, 16]);
    assert_eq!(point.what, What::SplitPoint { frames, len, offsets });
    assert_eq!((point.at.packet, point.at.offset), (packet, 10));
    assert_eq!(flow.looks_like, LooksLike::Framing);
    assert!(flow.summary.contains(&format!("first in packet {packet}")), "{}", flow.summary);
}

#[test]
fn headers_and_frames_that_boundaries_cut() {
    let mut talk = open();
    let long = text(Client, 300);
    let first = talk.send(Client, &long[..3]);
    talk.send(Client, &long[3..5]);
    talk.send(Client, &long[5..100]);
    let last = talk.send(Client, &long[100..]);
    let (told, _) = inspected(&talk.pcap());
    let found: Vec<_> =
        told.of(Client).into_iter().map(|f| (f.at.packet, f.what.clone())).collect();
    let (length, ends_in_packet) = (300, last);
    // The second segment cuts the key of a header whose first cut is counted already.
    assert_eq!(
        found,
        [
            (first, What::SplitHeader { frame: 1, have: 3 }),
            (first, What::SplitFrame { frame: 1, segments: 4, length, ends_in_packet }),
        ]
    );
}

#[test]
fn the_101_and_the_first_frame_in_one_segment() {
    let mut talk = Talk::new(false, [5, 6]);
    talk.handshake();
    talk.send(Client, REQUEST);
    let head = switching(false);
    talk.send(Server, &[head.clone(), text(Server, 2)].concat());
    let (told, _) = inspected(&talk.pcap());
    assert_eq!(told.flow().frames_server, 1);
    let offset = told.flow().split_points[0].at.offset;
    assert_eq!(offset as usize, head.len());
}

#[test]
fn violations_have_their_place_and_section() {
    let mut talk = open();
    talk.send(Client, &text(Client, 1));
    let packet = talk.send(Client, &[text(Client, 2), vec![0x83, 0x80, 1, 2, 3, 4]].concat());
    talk.send(Server, &frame(Server, 0xC1, b""));
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    let found: Vec<_> =
        flow.violations.iter().map(|v| (v.direction, v.kind, v.frame, v.rfc)).collect();
    assert_eq!(
        found,
        [
            (Client, Broken::Header(Violation::ReservedOpcode), 3, "RFC 6455, 5.2"),
            (Server, Broken::Header(Violation::ReservedBits), 1, "RFC 6455, 5.2"),
        ]
    );
    assert_eq!((flow.violations[0].at.packet, flow.violations[0].at.offset), (packet, 8));
    let json = serde_json::to_value(flow).unwrap();
    let first = &json["violations"][0];
    assert_eq!(
        (first["kind"].as_str(), first["offset"].as_u64()),
        (Some("reserved_opcode"), Some(8))
    );
    assert!(first["seq"].is_u64() && json["split_points"][0]["offsets"].is_array());
    assert!(flow.summary.contains("5.2"), "{}", flow.summary);
}

#[test]
fn who_closes_and_why() {
    let mut talk = open();
    talk.send(Server, &frame(Server, 0x88, b"\x03\xf0too long"));
    talk.send(Client, &frame(Client, 0x88, b"\x03\xf0"));
    talk.fin(Client);
    talk.fin(Server);
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!(flow.closed_by, Some(Server));
    let server = &flow.of_server;
    assert_eq!((server.close_code, server.close_reason.as_deref()), (Some(1008), Some("too long")));
    assert_eq!((flow.of_client.close_code, flow.violations_total), (Some(1008), 0));
    // Without close frames it is the first FIN or RST.
    let mut talk = open();
    talk.put(Client, talk.next[0], &[], "R");
    assert_eq!(inspected(&talk.pcap()).0.flow().closed_by, Some(Client));
}

#[test]
fn close_frames_that_must_not_be() {
    for (body, broken) in [
        (&b"\x03\xed"[..], Some(Broken::CloseCode)),
        (b"\x00\x01", Some(Broken::CloseCode)),
        (b"\x03", Some(Broken::CloseCode)),
        (b"\x03\xe8\xff", Some(Broken::CloseReason)),
        (b"", None),
        (b"\x03\xe8ok", None),
    ] {
        let mut talk = open();
        let close = frame(Client, 0x88, body);
        talk.send(Client, &close[..7.min(close.len())]);
        if close.len() > 7 {
            talk.send(Client, &close[7..]);
        }
        let (told, _) = inspected(&talk.pcap());
        let found: Vec<_> = told.flow().violations.iter().map(|violated| violated.kind).collect();
        assert_eq!(found, Vec::from_iter(broken), "{body:?}");
    }
    let mut talk = open();
    talk.send(Client, &[frame(Client, 0x88, b""), text(Client, 1)].concat());
    let (told, _) = inspected(&talk.pcap());
    assert_eq!(told.flow().violations[0].kind, Broken::AfterClose);
}

#[test]
fn compressed_messages_are_counted_and_others_are_legal_too() {
    let mut talk = Talk::open(false, [1, 2], true);
    talk.send(Client, &frame(Client, 0xC1, b"x"));
    talk.send(Client, &frame(Client, 0x41, b"x"));
    talk.send(Client, &frame(Client, 0x89, b""));
    talk.send(Client, &frame(Client, 0x80, b"x"));
    talk.send(Client, &frame(Client, 0x82, b"x"));
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!((flow.deflate, flow.violations_total), (Some(true), 0));
    assert_eq!((flow.of_client.messages, flow.of_client.compressed_messages), (3, 2));
}

/// Run a heartbeat of the server, with the client's answers.
fn beat(talk: &mut Talk, count: u64, answer_ms: impl Fn(u64) -> Option<u64>) {
    for number in 0..count {
        talk.send(Server, &frame(Server, 0x89, &number.to_be_bytes()));
        if let Some(ms) = answer_ms(number) {
            talk.wait_ms(ms);
            talk.send(Client, &frame(Client, 0x8A, &number.to_be_bytes()));
        } else {
            talk.ack(Client);
        }
        talk.wait_ms(500);
    }
}

#[test]
fn a_dead_heartbeat_names_the_silent_side() {
    let mut talk = open();
    beat(&mut talk, 8, |number| (number < 5).then_some(3));
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!((flow.of_server.pings_answered, flow.of_server.pings_unanswered), (5, 3));
    assert_eq!(flow.looks_like, LooksLike::Heartbeat);
    assert!(
        flow.summary.starts_with("the client has not answered any of 3 pings"),
        "{}",
        flow.summary
    );
    assert!(flow.summary.contains("program silent"), "{}", flow.summary);
    let unanswered = flow.findings.iter().filter(|finding| finding.what.kind() == Kind::Ping);
    assert_eq!(unanswered.count(), 3);
}

#[test]
fn without_acknowledgements_the_path_is_suspected() {
    let mut talk = open();
    beat(&mut talk, 2, |_| Some(3));
    talk.send(Server, &frame(Server, 0x89, b"lost"));
    talk.wait_ms(4000);
    talk.put(Server, talk.next[1] - 6, &frame(Server, 0x89, b"lost"), "PA");
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!(flow.of_server.retransmissions, 1);
    assert!(flow.summary.contains("nothing acknowledged the first"), "{}", flow.summary);
}

#[test]
fn a_ping_at_the_end_of_a_capture_proves_nothing() {
    let mut talk = open();
    beat(&mut talk, 3, |_| Some(3));
    talk.send(Server, &frame(Server, 0x89, b"late"));
    let (told, _) = inspected(&talk.pcap());
    assert_eq!(told.flow().looks_like, LooksLike::Nothing, "{}", told.flow().summary);
    // Nor does one whose answer is missing while the client continues to send.
    talk.wait_ms(9000);
    talk.send(Client, &text(Client, 3));
    talk.wait_ms(9000);
    talk.ack(Server);
    let (told, _) = inspected(&talk.pcap());
    assert_eq!(told.flow().looks_like, LooksLike::Nothing, "{}", told.flow().summary);
}

#[test]
fn a_pause_is_one_answer_much_later_than_the_others() {
    let mut talk = open();
    beat(&mut talk, 9, |number| Some(if number == 6 { 900 } else { 2 }));
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!(flow.looks_like, LooksLike::Pause);
    assert!(flow.summary.contains("after 901.0 ms"), "{}", flow.summary);
    // A path that is always slow is no pause.
    let mut talk = open();
    beat(&mut talk, 9, |_| Some(900));
    assert_eq!(inspected(&talk.pcap()).0.flow().looks_like, LooksLike::Nothing);
}

#[test]
fn a_hole_in_a_payload_costs_nothing_else_and_one_in_a_header_is_said() {
    let mut talk = open();
    let mut long = text(Client, 3000);
    long.extend(text(Client, 1));
    let mut numbers = Vec::new();
    for part in long.chunks(1000) {
        numbers.push(talk.send(Client, part) as usize - 1);
        talk.ack(Server);
    }
    talk.send(Client, &frame(Client, 0x89, b""));
    let mut lossy = talk.clone();
    lossy.packets.remove(numbers[1]);
    let (told, _) = inspected(&lossy.pcap());
    let flow = told.flow();
    assert_eq!((flow.frames_client, flow.pings_client, flow.of_client.missing_bytes), (3, 1, 1000));
    assert!(flow.of_client.in_step);
    talk.packets.remove(numbers[3]);
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!((flow.frames_client, flow.of_client.gaps), (1, 1));
    assert!(!flow.of_client.in_step);
}

/// Bytes at the very end, known only from the acknowledgement.
#[test]
fn what_was_acknowledged_and_never_captured_is_missing() {
    let mut talk = open();
    talk.send(Client, &text(Client, 3));
    talk.send(Client, &text(Client, 90));
    talk.ack(Server);
    talk.packets.remove(6);
    let (told, _) = inspected(&talk.pcap());
    let found: Vec<_> = told.of(Client).iter().map(|f| (f.at.packet, f.what.clone())).collect();
    assert_eq!(found, [(7, What::Gap { len: 96 }), (7, What::Unsynced)]);
    assert_eq!(told.flow().of_client.missing_bytes, 96);
}

#[test]
fn after_a_lost_header_frames_are_taken_up_when_they_are_proven() {
    let mut talk = open();
    talk.send(Client, &text(Client, 10));
    let lost = talk.send(Client, &text(Client, 20)) as usize - 1;
    talk.ack(Server);
    for _ in 0..20 {
        talk.send(Client, &text(Client, 30));
    }
    talk.packets.remove(lost);
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert!(flow.of_client.in_step && flow.violations.is_empty());
    // The first, and all after the lost one: those that prove the chain are part of it.
    assert_eq!(flow.frames_client, 1 + 20);
}

/// Capture only the end of a busy connection.
fn midstream(skip: usize) -> Vec<u8> {
    let mut talk = open();
    for number in 0..30 {
        talk.send(Client, &text(Client, 10 + number));
        talk.send(Server, &text(Server, 20 + number));
    }
    pcap(1, &talk.packets[skip..])
}

#[test]
fn a_connection_from_the_middle_is_taken_up_with_both_its_roles() {
    let (told, _) = inspected(&midstream(12));
    let flow = told.flow();
    assert!(flow.midstream && flow.deflate.is_none() && flow.violations.is_empty());
    assert_eq!(flow.ends.client.port(), 4711);
    assert!(flow.of_client.in_step && flow.of_server.in_step);
    assert!(flow.frames_client > 15 && flow.frames_server > 15);
    // Too little evidence: it is not shown as WebSocket.
    let (told, totals) = inspected(&midstream(5 + 50));
    assert!(told.flows.is_empty() && totals.other_connections == 1);
}

#[test]
fn a_capture_that_begins_between_request_and_answer() {
    let (told, _) = inspected(&midstream(4));
    let flow = told.flow();
    assert!(flow.request_unseen && flow.midstream);
    assert_eq!((flow.frames_client, flow.frames_server), (30, 30));
}

/// A mirror port may show one direction only.
#[test]
fn one_direction_alone() {
    let mut talk = open();
    for _ in 0..20 {
        talk.send(Client, &text(Client, 10));
        talk.send(Server, &text(Server, 10));
    }
    for (side, port) in [(Client, 4711u16), (Server, 80)] {
        let is_from = |packet: &&Packet| packet.data[34..36] == port.to_be_bytes();
        let packets: Vec<_> = talk.packets.iter().filter(is_from).cloned().collect();
        let (told, _) = inspected(&pcap(1, &packets));
        let flow = told.flow();
        assert_eq!(flow.ends.client.port(), 4711, "{side:?}");
        let frames = if side == Client { flow.frames_client } else { flow.frames_server };
        assert!(flow.midstream && frames == 20, "{frames}");
    }
}

#[test]
fn what_is_not_websocket_is_counted_and_not_shown() {
    let noise: Vec<u8> = (0..4000u32).map(|n| ((n * n) >> 3) as u8).collect();
    let talks: [&[(ws_guard_inspect::Side, &[u8])]; 4] = [
        &[(Client, b"\x16\x03\x01\x02\x00\x01\x00"), (Server, b"\x16\x03\x03\x00\x7a\x02")],
        &[(Server, b"SSH-2.0-OpenSSH\r\n"), (Client, b"SSH-2.0-x\r\n")],
        &[
            (Client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            (Server, b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101"),
        ],
        // A 101 without a request, in what a server sends.
        &[
            (Client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            (Server, b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n"),
        ],
    ];
    for talk_of in talks {
        let mut talk = Talk::new(false, [1, 2]);
        talk.handshake();
        for (side, bytes) in talk_of {
            talk.send(*side, bytes);
        }
        talk.send(Client, &noise);
        let (told, totals) = inspected(&talk.pcap());
        assert_eq!((told.flows.len(), totals.other_connections), (0, 1), "{talk_of:?}");
        // Nor from its middle; except a 101, whose request may not have been captured.
        let (told, _) = inspected(&pcap(1, &talk.packets[4..]));
        let opens = talk_of[1].1.starts_with(b"HTTP/1.1 101");
        assert_eq!(told.flows.len(), usize::from(opens), "{talk_of:?}");
    }
}

#[test]
fn behind_a_proxy_and_after_other_requests() {
    for preface in [
        &b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c123456789012",
    ] {
        let mut talk = Talk::new(false, [1, 2]);
        talk.handshake();
        talk.send(Client, &[preface, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"].concat());
        talk.send(Server, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let (first, second) = REQUEST.split_at(40);
        talk.send(Client, first);
        talk.send(Client, second);
        let head = [b"HTTP/1.1 103 Early\r\n\r\n", &switching(false)[..]].concat();
        talk.send(Server, &head[..50]);
        talk.send(Server, &head[50..]);
        talk.send(Client, &text(Client, 3));
        let (told, _) = inspected(&talk.pcap());
        assert_eq!((told.flow().frames_client, told.flow().midstream), (1, false));
    }
}

/// Bytes that a client sends before the capture has the 101 are not lost.
/// An upgrade after other requests, whose responses come first, in segments of any size.
#[test]
fn an_upgrade_that_was_pipelined() {
    let other = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let switch = switching(false);
    let both = [&answer[..], &switch].concat();
    for (asked, answered) in [
        (vec![[&other[..], REQUEST].concat()], vec![answer.to_vec(), switch.clone()]),
        (vec![[&other[..], REQUEST].concat()], vec![both.clone()]),
        (vec![other.to_vec(), REQUEST.to_vec()], vec![both[..40].to_vec(), both[40..].to_vec()]),
        (vec![[&other[..], other, REQUEST].concat()], vec![[&answer[..], &both].concat()]),
        (vec![[&other[..], &REQUEST[..2]].concat(), REQUEST[2..].to_vec()], vec![both.clone()]),
    ] {
        let mut talk = Talk::new(false, [1000, 2000]);
        talk.handshake();
        for (side, parts) in [(Client, asked), (Server, answered)] {
            for bytes in parts {
                talk.send(side, &bytes);
            }
        }
        talk.send(Client, &text(Client, 3));
        talk.send(Server, &text(Server, 4));
        let (told, _) = inspected(&talk.pcap());
        let flow = told.flow();
        assert_eq!((flow.frames_client, flow.frames_server, flow.midstream), (1, 1, false));
    }
    // Data sent to a refused client is no response, whatever its content.
    let mut talk = Talk::new(false, [1000, 2000]);
    talk.handshake();
    talk.send(Client, REQUEST);
    let page = [b"HTTP/1.1 403 No\r\nContent-Length: 150\r\n\r\n", &switch[..]].concat();
    talk.send(Server, &page);
    talk.send(Client, &text(Client, 3));
    let (told, totals) = inspected(&talk.pcap());
    assert_eq!((told.flows.len(), totals.other_connections), (0, 1));
}

#[test]
fn the_101_may_be_captured_late() {
    let mut talk = open();
    talk.send(Client, &text(Client, 3));
    let count = talk.packets.len();
    talk.packets.swap(count - 1, count - 2);
    assert_eq!(inspected(&talk.pcap()).0.flow().frames_client, 1);
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let mut talk = open();
    talk.send(Client, &text(Client, 3));
    talk.fin(Client);
    talk.fin(Server);
    talk.next = [70_000, 80_000];
    let mut again = Talk { packets: Vec::new(), ..talk.clone() };
    again.handshake();
    again.send(Client, REQUEST);
    again.send(Server, &switching(false));
    again.send(Client, &[text(Client, 3), text(Client, 3)].concat());
    // A repeated SYN opens nothing.
    let syn = again.packets[0].clone();
    again.packets.insert(1, syn);
    talk.packets.extend(again.packets);
    let (told, totals) = inspected(&talk.pcap());
    let frames: Vec<_> = told.flows.iter().map(|flow| flow.frames_client).collect();
    assert_eq!((frames, totals.websocket), (vec![1, 2], 2));
}

#[test]
fn windows_that_close_are_timed() {
    let mut talk = open();
    talk.window = 0;
    let closed = talk.packets.len() as u64 + 1;
    talk.ack(Server);
    talk.wait_ms(249);
    talk.window = 500;
    talk.ack(Server);
    talk.window = 0;
    talk.ack(Server);
    let (told, _) = inspected(&talk.pcap());
    assert_eq!(told.flow().of_server.zero_windows, 2);
    let summary = &told.flow().summary;
    assert!(summary.contains("the server's receive window was closed for 250.0 ms"), "{summary}");
    let found: Vec<_> = told.of(Server).iter().map(|f| (f.at.packet, f.what.clone())).collect();
    assert_eq!(found[0], (closed, What::ZeroWindow { closed_us: Some(250_000) }));
    assert_eq!(found[1].1, What::ZeroWindow { closed_us: None });
}

/// Probe the window from the client; it is wide again.
fn probe(talk: &mut Talk) {
    talk.window = 65_000;
    talk.put(Client, talk.next[0].wrapping_sub(1), &[], "A");
}

/// Acknowledge `count` segments of 500 bytes from the server, with given windows.
fn windows(scale: bool, every_ms: u64, count: u32, window: impl Fn(u32) -> u16) -> Talk {
    let mut talk = open();
    if !scale {
        talk.packets.drain(..3);
    }
    for number in 0..count {
        talk.window = 65_000;
        talk.send(Client, &text(Client, 492));
        talk.window = window(number);
        talk.ack(Server);
        talk.wait_ms(every_ms);
    }
    probe(&mut talk);
    talk.ack(Server);
    talk
}

#[test]
fn held_windows_are_no_zero_windows() {
    // Every other segment gets some more room, never as much as was acknowledged.
    let talk =
        windows(true, 48, 10, |number| 3000 - 200 * number as u16 + 900 * (number as u16 % 2));
    let (told, _) = inspected(&talk.pcap());
    let server = &told.flow().of_server;
    assert_eq!((server.held_windows, server.zero_windows), (1, 0));
    assert_eq!(server.held_window_us, 500_000);
    let found: Vec<_> = told.of(Server).iter().map(|f| (f.at.packet, f.what.clone())).collect();
    let (held_us, acknowledged, advanced) = (Some(500_000), 5000, 3600);
    let (smallest, greatest) = (1400, 65_000);
    let held = What::HeldWindow { held_us, acknowledged, advanced, smallest, greatest };
    assert_eq!(found, [(7, held)]);
    assert_eq!(told.flow().of_client.held_windows, 0);
    let said = &told.flow().summary;
    assert!(
        said.ends_with("window was held for 500.0 ms, as where a guard paces the client"),
        "{said}"
    );
}

/// A full buffer, occasionally read by a program: the receiver announces the room.
#[test]
fn a_slow_reader_is_not_held() {
    for tells_by_itself in [true, false] {
        let mut talk = open();
        for _ in 0..10 {
            for left in (0..4).rev() {
                talk.window = 65_000;
                talk.send(Client, &text(Client, 492));
                talk.window = 500 * left;
                talk.ack(Server);
            }
            talk.wait_ms(100);
            if !tells_by_itself {
                probe(&mut talk);
            }
            talk.window = 2000;
            talk.ack(Server);
        }
        let (told, _) = inspected(&talk.pcap());
        let server = &told.flow().of_server;
        let held = u64::from(!tells_by_itself);
        assert_eq!((server.held_windows, server.zero_windows), (held, 10));
    }
}

#[test]
fn what_looks_like_a_held_window_and_is_none() {
    let of = |talk: Talk| {
        let (told, _) = inspected(&talk.pcap());
        let server = &told.flow().of_server;
        (server.held_windows, server.zero_windows)
    };
    // The program reads late, but in time: the edge waits, the window stays wide.
    assert_eq!(of(windows(true, 48, 40, |number| 65_000 - 500 * (number as u16 % 10))), (0, 0));
    // It does not read: the window closes.
    assert_eq!(of(windows(true, 48, 5, |_| 0)), (0, 1));
    // It fills slowly, and is never read.
    assert_eq!(of(windows(true, 48, 45, |number| 65_000 - 1625 * number.min(40) as u16)), (0, 1));
    // A full buffer read at speed: the edge moves by 500 bytes each 2 ms.
    assert_eq!(of(windows(true, 0, 400, |_| 900)), (0, 0));
    // Two small windows in a row are normal.
    assert_eq!(of(windows(true, 300, 2, |_| 900)), (0, 0));
    // Without the SYNs the scale of a window is unknown.
    assert_eq!(of(windows(false, 48, 10, |_| 900)), (0, 0));
}

/// A million frames, with bounded memory for them.
#[test]
fn lists_are_bounded_and_say_how_long_they_would_be() {
    let mut talk = open();
    let many = frame(Client, 0xB1, b"").repeat(50);
    for _ in 0..200 {
        talk.send(Client, &many);
    }
    let (told, _) = inspected(&talk.pcap());
    let flow = told.flow();
    assert_eq!((flow.violations.len(), flow.violations_total), (1000, 10_000));
    assert_eq!((flow.frames_client, flow.split_points_total), (10_000, 200));
}

#[test]
fn fragments_and_packets_cut_in_their_headers_are_counted() {
    let mut talk = open();
    talk.send(Client, &text(Client, 3));
    let mut fragment = talk.packets[5].clone();
    fragment.data[20] = 0x20;
    let short = Packet { cut: talk.packets[5].data.len() - 40, ..talk.packets[5].clone() };
    let arp = Packet { data: [&[1; 12][..], &[8, 6], &[0; 28]].concat(), ..fragment.clone() };
    talk.packets.extend([fragment, short, arp]);
    let (_, totals) = inspected(&talk.pcap());
    assert_eq!((totals.fragments, totals.unreadable, totals.not_tcp), (1, 1, 1));
    let (_, totals) = inspected(&pcap(195, &talk.packets));
    assert_eq!(totals.unknown_link, talk.packets.len() as u64);
}
