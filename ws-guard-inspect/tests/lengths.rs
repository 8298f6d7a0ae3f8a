//! Length-delimited protocols, alone on a port.

mod common;

use common::{Talk, Told, frame, inspect_with, pcap};
use fastrand::Rng;
use ws_guard_inspect::{
    Inspector, Side,
    Side::{Client, Server},
    What,
    finding::Broken,
};
use ws_guard_oracle::{
    cases::{cases, one_in},
    streams,
};

const LENGTH_MAGIC: &str = "length-magic";

/// Layout, and a function to build a unit of it.
type Layout = (&'static str, fn(&[u8]) -> Vec<u8>);

const LAYOUTS: [Layout; 4] = [
    (LENGTH_MAGIC, length_magic),
    ("fixed-header", |body| {
        [b"\x12\x34\x01", &(body.len() as u32).to_be_bytes()[..], body].concat()
    }),
    ("length-prefix", |body| [&(body.len() as u32).to_be_bytes()[..], body].concat()),
    ("header:6,offset:2,width:3,order:little,counts:all", |body| {
        let length = (body.len() as u32 + 6).to_le_bytes();
        [b"ab", &length[..3], b"c", body].concat()
    }),
];

fn length_magic(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], b"\xca\xfe\xba\xbe", body].concat()
}

fn told(file: &[u8], layout: &str) -> Told {
    let mut inspector = Inspector::new(Told::default());
    inspector.know(format!("80={layout}").parse().unwrap());
    let (told, _, damage) = inspect_with(file, inspector);
    assert_eq!(damage, None);
    told
}

/// Return one side's units: each one's position and body length.
fn units(told: &Told, side: Side) -> Vec<(u32, u64)> {
    let found = told.of(side).into_iter();
    let units = found.filter_map(|finding| match finding.what {
        What::Unit { length, .. } => Some((finding.at.seq, length)),
        _ => None,
    });
    units.collect()
}

/// Generate units of random length, and their positions.
fn stream(rng: &mut Rng, unit: fn(&[u8]) -> Vec<u8>) -> (Vec<u8>, Vec<(usize, u64)>) {
    let (mut bytes, mut begins) = (Vec::new(), Vec::new());
    for _ in 0..rng.usize(1..30) {
        let length = [0, 1, 7, 300, 5000][rng.usize(..5)];
        begins.push((bytes.len(), length as u64));
        bytes.extend(unit(&vec![rng.u8(..); length]));
    }
    (bytes, begins)
}

#[test]
fn units_and_where_to_cut_are_those_that_were_sent() {
    cases(100, |rng| {
        let (layout, unit) = LAYOUTS[rng.usize(..LAYOUTS.len())];
        let mut talk = Talk::new(one_in(rng, 3), [streams::initial(rng), streams::initial(rng)]);
        talk.handshake();
        let first = talk.next;
        let mut sent = Vec::new();
        for side in [Client, Server] {
            let (bytes, begins) = stream(rng, unit);
            let boundaries = streams::boundaries(rng, bytes.len(), 2000);
            let mut from = 0;
            for to in &boundaries {
                talk.send(side, &bytes[from..*to]);
                from = *to;
            }
            sent.push((side, begins, boundaries));
        }
        let told = told(&talk.pcap(), layout);
        for (side, begins, boundaries) in sent {
            let seq = |at: usize| first[side as usize].wrapping_add(at as u32);
            let wanted: Vec<_> = begins.iter().map(|(at, length)| (seq(*at), *length)).collect();
            assert_eq!(units(&told, side), wanted, "{layout}");
            let inside = begins.iter().map(|(at, _)| *at);
            let inside = inside.filter(|at| *at > 0 && !boundaries.contains(at)).map(seq);
            let mut cuts = Vec::new();
            for finding in told.of(side) {
                if let What::SplitPoint { offsets, .. } = &finding.what {
                    let base = finding.at.seq.wrapping_sub(finding.at.offset);
                    cuts.extend(offsets.iter().map(|offset| base.wrapping_add(*offset)));
                }
            }
            assert_eq!(cuts, inside.collect::<Vec<_>>(), "{layout}");
        }
        assert_eq!((told.flow().violations_total, &*told.flow().protocol), (0, layout));
    });
}

#[test]
fn boundaries_in_headers_and_bodies() {
    let mut talk = Talk::new(false, [1, 2]);
    talk.handshake();
    let bytes = [length_magic(b"one"), length_magic(b"two"), length_magic(b"three")].concat();
    for (from, to) in [(0, 11), (11, 14), (14, 16), (16, 25), (25, bytes.len())] {
        talk.send(Client, &bytes[from..to]);
    }
    let told = told(&talk.pcap(), LENGTH_MAGIC);
    let flow = told.flow();
    assert_eq!((flow.frames_client, flow.coalesced_segments), (3, 0));
    // The second header is cut twice and counted once; the third, after three bytes.
    assert_eq!((flow.split_headers, flow.split_frames), (2, 2));
    let offsets: Vec<_> = flow.split_points.iter().map(|finding| finding.at.offset).collect();
    assert_eq!(offsets, [6]);
}

#[test]
fn a_wrong_magic_is_a_violation_and_the_next_header_the_way_back() {
    let mut talk = Talk::new(false, [1, 2]);
    talk.handshake();
    talk.send(Client, &length_magic(b"good"));
    let wrong = talk.send(Client, b"\0\0\0\x04\xca\xfe\xba\xbfbad!");
    talk.send(Client, b"no header either, whatever it is");
    talk.send(Client, &length_magic(b"good again"));
    let told = told(&talk.pcap(), LENGTH_MAGIC);
    let flow = told.flow();
    let violation = &flow.violations[0];
    assert_eq!((violation.kind, violation.at.packet), (Broken::Magic, wrong));
    assert_eq!((flow.violations_total, units(&told, Client).len()), (1, 2));
    assert!(flow.of_client.in_step);
}

#[test]
fn a_hole_in_a_body_costs_nothing_else() {
    let mut talk = Talk::new(false, [1, 2]);
    talk.handshake();
    let bytes = [length_magic(&[0; 3000]), length_magic(b"next")].concat();
    for part in bytes.chunks(1000) {
        talk.send(Client, part);
        talk.ack(Server);
    }
    talk.packets.remove(5);
    let told = told(&talk.pcap(), LENGTH_MAGIC);
    assert_eq!(units(&told, Client).len(), 2);
    assert_eq!(told.flow().of_client.missing_bytes, 1000);
}

#[test]
fn in_the_middle_only_a_magic_proves_it() {
    for (layout, unit) in LAYOUTS {
        let mut talk = Talk::new(false, [1, 2]);
        talk.handshake();
        for _ in 0..3 {
            talk.send(Server, b"the rest of a body");
            talk.send(Client, &unit(b"body"));
        }
        talk.send(Server, &unit(b"answer"));
        let told = told(&pcap(1, &talk.packets[3..]), layout);
        let has_magic = layout == LENGTH_MAGIC || layout == "fixed-header";
        assert_eq!(told.flows.len(), usize::from(has_magic), "{layout}");
        if has_magic {
            assert_eq!((units(&told, Client).len(), units(&told, Server).len()), (3, 1));
            assert!(told.flow().midstream && told.flow().violations_total == 0);
            assert_eq!(told.flow().ends.server.port(), 80);
        }
    }
}

/// Inspect frames that carry units.
fn nested(frames: &[(u8, Vec<u8>)], deflate: bool, chunk: usize) -> Told {
    let mut talk = Talk::open(false, [1, 2], deflate);
    let bytes: Vec<u8> =
        frames.iter().flat_map(|(first, payload)| frame(Client, *first, payload)).collect();
    for part in bytes.chunks(chunk) {
        talk.send(Client, part);
    }
    let mut inspector = Inspector::new(Told::default());
    inspector.know_nested("80=length-magic".parse().unwrap());
    inspect_with(&talk.pcap(), inspector).0
}

#[test]
fn units_inside_of_messages_however_segments_cut_them() {
    let units = [length_magic(b"one"), length_magic(b"two"), length_magic(&[7; 300])];
    let together = [&units[0][..], &units[1][..]].concat();
    let (head, tail) = units[2].split_at(100);
    let (some, rest) = together.split_at(4);
    let frames = [
        (0x82, together.clone()),
        (0x82, head.to_vec()),
        (0x89, b"ping".to_vec()),
        // Fragments of a message are no boundary.
        (0x02, tail[..50].to_vec()),
        (0x80, [&tail[50..], some].concat()),
        (0x82, rest.to_vec()),
        (0x82, units[0].clone()),
    ];
    for chunk in [1, 2, 5, 11, 64, 10_000] {
        let told = nested(&frames, false, chunk);
        let flow = told.flow();
        let report = flow.of_client.nested.unwrap();
        let found = (report.units, report.coalesced_messages, report.split_units);
        assert_eq!((found, report.violations), ((6, 1, 2), 0), "{chunk}");
        let lengths: Vec<u64> = units_inside(&told).collect();
        assert_eq!(lengths, [3, 3, 300, 3, 3, 3], "{chunk}");
        let cuts = flow.findings.iter().filter(|finding| finding.nested);
        let cuts = cuts.filter_map(|finding| match &finding.what {
            What::SplitPoint { offsets, .. } => Some(offsets.clone()),
            _ => None,
        });
        assert_eq!(cuts.collect::<Vec<_>>(), [vec![11], vec![208], vec![7]], "{chunk}");
    }
}

fn units_inside(told: &Told) -> impl Iterator<Item = u64> {
    told.of(Client).into_iter().filter(|finding| finding.nested).filter_map(|finding| match finding
        .what
    {
        What::Unit { length, .. } => Some(length),
        _ => None,
    })
}

#[test]
fn compressed_messages_are_not_looked_into() {
    let unit = length_magic(b"one");
    let frames = [(0x82, unit.clone()), (0xC2, vec![1; 20]), (0x82, unit.clone())];
    let report = nested(&frames, true, 10_000).flow().of_client.nested.unwrap();
    assert_eq!((report.units, report.compressed_messages, report.violations), (2, 1, 0));
}
