//! Evidence: statements no stronger than what was captured.

mod common;

use std::io::Cursor;

use common::{Packet, Talk, Told, frame, inspected, pcap};
use ws_guard_inspect::{
    Inspector,
    Side::{self, Client, Server},
    What,
    finding::Kind,
    input::Capture,
    summary::LooksLike,
};

fn open() -> Talk {
    Talk::open(false, [1000, 2000], false)
}

/// Return the packets of one side, by its port.
fn of_side(talk: &Talk, side: Side) -> Vec<u8> {
    let port = if side == Client { talk.client.port() } else { talk.server.port() };
    let is_its = |packet: &&Packet| packet.data[34..36] == port.to_be_bytes();
    pcap(1, &talk.packets.iter().filter(is_its).cloned().collect::<Vec<_>>())
}

#[test]
fn a_side_that_was_not_captured_is_not_called_silent() {
    let mut talk = open();
    for number in 0..5 {
        talk.send(Server, &frame(Server, 0x89, &[number]));
        talk.send(Client, &frame(Client, 0x8A, &[number]));
        talk.wait_ms(1000);
    }
    let (told, _) = inspected(&of_side(&talk, Server));
    let flow = told.flow();
    assert_eq!((flow.pings_server, flow.looks_like), (5, LooksLike::Nothing));
    assert!(flow.summary.contains("the capture has no packet of the client"), "{}", flow.summary);
}

#[test]
fn the_first_boundary_is_no_other_finding() {
    let mut talk = open();
    talk.send(Server, &frame(Server, 0x89, b"never answered"));
    talk.send(Client, &frame(Client, 0x81, b"whole"));
    let long = frame(Client, 0x82, &[7; 300]);
    let first = talk.send(Client, &long[..100]);
    talk.send(Client, &long[100..]);
    let (told, _) = inspected(&talk.pcap());
    let summary = &told.flow().summary;
    assert!(summary.contains(&format!(", first in packet {first}):")), "{summary}");
}

#[test]
fn where_frames_were_lost_or_none_was_captured_is_said() {
    let (told, _) = inspected(&open().pcap());
    assert!(told.flow().summary.starts_with("no frame was captured"), "{}", told.flow().summary);
    let mut talk = open();
    talk.send(Client, &frame(Client, 0x81, b"whole"));
    let next = talk.next[0];
    talk.next[0] = next.wrapping_add(100);
    talk.send(Client, &frame(Client, 0x81, b"whole"));
    talk.ack(Server);
    let (told, _) = inspected(&talk.pcap());
    let summary = &told.flow().summary;
    assert!(summary.contains("where the client's frames begin was not known"), "{summary}");
}

#[test]
fn a_frame_that_does_not_end_is_found() {
    let mut talk = open();
    let long = frame(Server, 0x82, &[7; 300]);
    talk.send(Server, &frame(Server, 0x81, b"whole"));
    let packet = talk.send(Server, &long[..104]);
    let (told, _) = inspected(&talk.pcap());
    let open: Vec<_> =
        told.of(Server).into_iter().filter(|f| f.what.kind() == Kind::Unfinished).collect();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].what, What::Unfinished { frame: 2, length: 300, missing: 200 });
    assert_eq!((open[0].at.packet, open[0].at.offset), (packet, 0));
    let summary = &told.flow().summary;
    let said =
        format!("the server's frame 2 (packet {packet}) lacked 200 of its 300 bytes at the end");
    assert!(summary.ends_with(&said), "{summary}");
    // With its rest it is a frame like any other.
    talk.send(Server, &long[104..]);
    let (told, _) = inspected(&talk.pcap());
    assert!(told.of(Server).iter().all(|finding| finding.what.kind() != Kind::Unfinished));
}

/// `tcpdump -s 96`: the upgrade is cut, the headers are there.
#[test]
fn a_clients_frames_are_proven_through_payloads_that_were_cut_off() {
    let mut talk = open();
    for _ in 0..20 {
        talk.send(Client, &frame(Client, 0x82, &[7; 500]));
    }
    for packet in &mut talk.packets {
        packet.cut = packet.data.len().saturating_sub(96);
    }
    let (told, totals) = inspected(&talk.pcap());
    let flow = told.flow();
    assert!(flow.midstream && flow.violations_total == 0 && flow.of_client.in_step, "{flow:?}");
    assert_eq!((flow.frames_client, flow.of_client.longest_frame, totals.snapped), (13, 500, 22));
}

/// Bytes before the 101 are kept in bounded memory, and then need their own proof.
#[test]
fn a_client_that_gets_no_101_costs_little() {
    let mut talk = Talk::new(false, [1000, 2000]);
    talk.handshake();
    talk.send(Client, common::REQUEST);
    for _ in 0..3000 {
        talk.send(Client, &frame(Client, 0x81, b""));
    }
    let mut inspector = Inspector::new(Told::default());
    let file = talk.pcap();
    let mut capture = Capture::new(Cursor::new(file), 1).unwrap();
    while let Some(packet) = capture.packet().unwrap() {
        inspector.packet(&packet);
    }
    // It is given up during the capture: findings are reported at once.
    assert!(inspector.visitor().findings.len() >= 3000);
    let (told, _) = inspector.end();
    let flow = told.flow();
    assert!(flow.midstream && flow.deflate.is_none());
    assert_eq!(flow.frames_client, 3000);
}

/// A payload of equal bytes repeats its masking key, which may look like a header.
#[test]
fn a_masked_run_is_no_chain_of_frames() {
    for header in [[0x82, 70, 1, 1], [0x82, 0x80 | 70, 1, 1]] {
        let mut talk = open();
        for _ in 0..10 {
            talk.send(Client, &header.repeat(350));
        }
        let (told, totals) = inspected(&pcap(1, &talk.packets[5..]));
        assert_eq!((told.flows.len(), totals.other_connections), (0, 1), "{header:x?}");
    }
}
