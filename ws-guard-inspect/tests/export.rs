//! Connection exported as pcapng: the same packets, with comments for Wireshark.

mod common;

use std::{io::Cursor, process::Command};

use common::{Talk, Told, frame, inspected};
use ws_guard_inspect::{
    Ends, Finding, FlowReport, Inspector, Side, Visitor,
    export::{Export, Written},
    input::{Capture, Packet},
    packet::Segment,
};

/// Export in progress, and the reports.
struct Exporting {
    export: Export<Cursor<Vec<u8>>>,
    told: Told,
}

impl Visitor for Exporting {
    fn segment(&mut self, packet: &Packet<'_>, segment: &Segment<'_>) {
        self.export.packet(packet, segment);
    }

    fn finding(&mut self, ends: &Ends, finding: &Finding) {
        self.export.finding(ends, finding);
        self.told.finding(ends, finding);
    }

    fn flow(&mut self, report: FlowReport) {
        Visitor::flow(&mut self.told, report);
    }
}

/// Write the connection whose client has `port`.
fn export(file: &[u8], port: u16) -> (Vec<u8>, Written) {
    let export = Export::new(Cursor::new(Vec::new()));
    let mut inspector = Inspector::new(Exporting { export, told: Told::default() });
    let mut capture = Capture::new(Cursor::new(file.to_vec()), 1).unwrap();
    while let Some(packet) = capture.packet().unwrap() {
        inspector.packet(&packet);
    }
    let (Exporting { export, told }, _) = inspector.end();
    let flow = told.flows.iter().find(|flow| flow.ends.client.port() == port).unwrap();
    let mut out = Vec::new();
    let written = export.write(flow, &mut out).unwrap();
    (out, written)
}

/// Build two interleaved connections, the second truncated by the capture once.
fn two(v6: bool) -> (Vec<u8>, Talk) {
    let mut talks = [Talk::open(v6, [7, 9], false), Talk::open(v6, [70, 90], false)];
    talks[1].client.set_port(4712);
    let mut other = Talk::open(v6, [70, 90], false);
    other.client.set_port(4712);
    for (talk, count) in [(&mut talks[0], 2), (&mut other, 3)] {
        talk.packets.clear();
        talk.handshake();
        talk.send(Side::Client, common::REQUEST);
        talk.send(Side::Server, &common::switching(false));
        let pings = frame(Side::Client, 0x89, b"p").repeat(count);
        talk.send(Side::Client, &pings);
        talk.send(Side::Server, &frame(Side::Server, 0x8A, b"p"));
        talk.send(Side::Client, &frame(Side::Client, 0x88, b"\x03\xe8so long \xc3\xa9"));
    }
    other.packets.last_mut().unwrap().cut = 3;
    let [first, _] = talks;
    let pairs = first.packets.iter().zip(&other.packets);
    let packets: Vec<_> = pairs.flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    (common::pcap(common::ETHERNET, &packets), other)
}

#[test]
fn one_connection_is_written_with_its_packets_and_comments() {
    for v6 in [false, true] {
        let (file, talk) = two(v6);
        let (written, counts) = export(&file, 4712);
        assert_eq!(counts.packets, talk.packets.len() as u64);
        let mut capture = Capture::new(Cursor::new(written.clone()), 1).unwrap();
        for packet in &talk.packets {
            let found = capture.packet().unwrap().unwrap();
            assert_eq!(found.data, &packet.data[..packet.data.len() - packet.cut]);
            assert_eq!(found.original as usize, packet.data.len());
            assert_eq!(found.place.time_ns, packet.time_ns);
        }
        assert!(capture.packet().unwrap().is_none());
        // The comments on it are the same as among other connections.
        let (whole, _) = inspected(&file);
        let (alone, _) = inspected(&written);
        let of_it = whole.flows.iter().find(|flow| flow.ends.client.port() == 4712).unwrap();
        let flow = alone.flow();
        assert_eq!(
            (flow.frames_client, flow.coalesced_segments, flow.of_client.snapped_bytes),
            (of_it.frames_client, of_it.coalesced_segments, of_it.of_client.snapped_bytes)
        );
        assert_eq!((flow.frames_client, flow.of_client.snapped_bytes), (4, 3));
    }
}

#[test]
fn wireshark_shows_the_comments() {
    let (file, _) = two(false);
    let (written, counts) = export(&file, 4711);
    let capture = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(capture.path(), written).unwrap();
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-T", "fields", "-e", "frame.number", "-e", "frame.comment", "-r"]);
    let output = match tshark.arg(capture.path()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no tshark here (Debian: apt-get install tshark)");
            return;
        }
        output => output.unwrap(),
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let comments: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, text)| !text.is_empty())
        .collect();
    println!("{comments:#?}");
    assert!(output.status.success());
    let of = |packet: &str| comments.iter().find(|(number, _)| *number == packet).unwrap().1;
    // Packet 6 has two pings; a pong in packet 7 answers the second.
    assert!(
        of("6").contains("split_point: 2 frames begin in 14 bytes: cut at 7 (client, offset 7)")
    );
    // The pong has another number here than in the capture.
    let answered = of("6").matches("in packet 7 (").count();
    assert_eq!((answered, of("6").matches("ping: answered").count()), (1, 1), "{comments:?}");
    assert!(of("8").contains("close: 1000"), "{comments:?}");
    assert_eq!(comments.len(), 2, "{comments:?}");
    assert_eq!(counts.comments, 4);
}
