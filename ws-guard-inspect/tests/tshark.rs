//! Comparison with Debian's tshark, frame by frame.

mod common;

use common::{ETHERNET, Talk, frame, pcapng, tshark::compare};
use fastrand::Rng;
use ws_guard_inspect::Side;
use ws_guard_oracle::{
    cases::{cases, one_in},
    streams,
};

/// Number of streams of an ordinary run; starting tshark takes a third of a second.
const STREAMS: u64 = 8;

/// Generate valid frames of one side, in whole messages.
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
            for to in streams::boundaries(rng, stream.len(), 20_000) {
                talk.send(side, &stream[from..to]);
                from = to;
            }
        }
        if one_in(rng, 2) {
            compare(&talk.pcap(), 80);
        } else {
            compare(&pcapng(ETHERNET as u16, &talk.packets, false), 80);
        }
    });
}
