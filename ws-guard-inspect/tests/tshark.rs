//! The same captures through Debian's tshark, frame by frame.

mod common;

use std::process::Command;

use common::{ETHERNET, Talk, frame, inspected, pcapng};
use fastrand::Rng;
use ws_guard_inspect::Side;
use ws_guard_oracle::{
    cases::{cases, one_in},
    streams,
};

/// Streams of an ordinary run; each starts tshark, which takes a third of a second.
const STREAMS: u64 = 8;

/// One frame as both see it: from the client, packet in which it ends, FIN, opcode, length.
type Seen = (bool, u64, bool, u8, u64);

/// What tshark says; `None` where there is none.
fn tshark(file: &[u8]) -> Option<Vec<Seen>> {
    let capture = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(capture.path(), file).unwrap();
    let fields = ["frame.number", "tcp.dstport", "websocket.fin", "websocket.opcode"];
    let lengths = ["websocket.payload_length", "websocket.payload_length_ext_16"];
    let mut command = Command::new("tshark");
    command.args(["-n", "-Y", "websocket", "-T", "fields", "-r"]).arg(capture.path());
    for field in fields.iter().chain(&lengths).chain(&["websocket.payload_length_ext_64"]) {
        command.args(["-e", field]);
    }
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().lines().flat_map(frames_of).collect())
}

/// The frames in a line of a packet: each field is a list of what all of them have.
fn frames_of(line: &str) -> Vec<Seen> {
    let fields: Vec<&str> = line.split('\t').collect();
    let list = |index: usize| fields[index].split(',').filter(|part| !part.is_empty());
    let packet = fields[0].parse().unwrap();
    let from_client = fields[1] == "80";
    let (mut short, mut long) = (list(5), list(6));
    let lengths: Vec<u64> = list(4)
        .map(|length| match length {
            "126" => short.next().unwrap().parse().unwrap(),
            "127" => long.next().unwrap().parse().unwrap(),
            length => length.parse().unwrap(),
        })
        .collect();
    let all = list(2).zip(list(3)).zip(lengths);
    all.map(|((fin, opcode), length)| {
        (from_client, packet, ["1", "True"].contains(&fin), opcode.parse().unwrap(), length)
    })
    .collect()
}

/// What the inspector says, in the order in which frames end.
fn inspector(file: &[u8]) -> Vec<Seen> {
    let (told, _) = inspected(file);
    let mut seen: Vec<Seen> = Vec::new();
    for (side, is_client) in [(Side::Client, true), (Side::Server, false)] {
        let frames = told.frames(side).into_iter().map(|(_, _, frame)| {
            (is_client, frame.ends_in_packet, frame.fin, frame.opcode, frame.length)
        });
        seen.extend(frames);
    }
    seen.sort_by_key(|(_, packet, ..)| *packet);
    seen
}

fn compare(file: &[u8]) -> bool {
    let Some(theirs) = tshark(file) else {
        println!("skipped: there is no tshark here (Debian: apt-get install tshark)");
        return false;
    };
    let ours = inspector(file);
    if let Some(place) = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
        panic!("frame {place}: {:?}, tshark {:?}", ours[place], theirs[place]);
    }
    assert!(!ours.is_empty(), "no frames");
    assert_eq!(ours.len(), theirs.len(), "frames");
    true
}

/// Valid frames of one side, whole messages.
fn spoken(rng: &mut Rng, side: Side, deflate: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut is_open = false;
    for _ in 0..rng.usize(5..40) {
        let lengths = if one_in(rng, 6) { 7 } else { 5 };
        let length = [0, 5, 125, 126, 2000, 65_535, 70_000][rng.usize(..lengths)];
        let payload = vec![b'a'; length];
        let first = match rng.u8(..6) {
            0 => 0x89,
            1 => 0x8A,
            _ if is_open => u8::from(rng.bool()) << 7,
            2 => 0x01,
            _ if deflate && one_in(rng, 2) => 0xC2,
            _ => 0x82,
        };
        if first & 8 == 0 {
            is_open = first & 0x80 == 0;
        }
        let payload = if first & 8 != 0 { &payload[..length.min(125)] } else { &payload };
        bytes.extend(frame(side, first, payload));
    }
    if is_open {
        bytes.extend(frame(side, 0x80, b"end"));
    }
    bytes.extend(frame(side, 0x88, b"\x03\xe8bye"));
    bytes
}

#[test]
fn frames_are_those_that_tshark_finds() {
    cases(STREAMS, |rng| {
        let deflate = one_in(rng, 3);
        let first = [streams::initial(rng), streams::initial(rng)];
        let mut talk = Talk::open(one_in(rng, 3), first, deflate);
        for side in [Side::Client, Side::Server] {
            let stream = spoken(rng, side, deflate);
            let mut from = 0;
            for to in streams::borders(rng, stream.len(), 20_000) {
                talk.send(side, &stream[from..to]);
                from = to;
            }
        }
        if one_in(rng, 2) {
            compare(&talk.pcap());
        } else {
            compare(&pcapng(ETHERNET as u16, &talk.packets, false));
        }
    });
}
