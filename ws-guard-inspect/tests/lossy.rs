//! Captures that lack packets, also through Debian's tshark.
//! It reads some as we do, guesses right, is wrong or is silent: docs/inspect.md has the cases.

mod common;

use common::{
    ETHERNET, Packet, Talk, frame, pcap,
    tshark::{Seen, inspector, tshark},
};
use ws_guard_inspect::Side;

/// Packets of the opening: SYN, SYN-ACK, request, response, each acknowledged.
const OPENING: usize = 5;
const FRAMES: usize = 20;

/// Return distinct frame lengths, for identification without packet numbers.
fn length(number: usize) -> usize {
    [10, 200, 40, 3000, 60][number % 5] + number
}

fn frames() -> Vec<Vec<u8>> {
    let payload = |number| vec![b'a'; length(number)];
    (0..FRAMES).map(|number| frame(Side::Client, 0x82, &payload(number))).collect()
}

/// Build a client's segments, each acknowledged.
fn talk<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> Talk {
    let mut talk = Talk::open(false, [100, 200], false);
    for segment in segments {
        talk.send(Side::Client, segment);
        talk.ack(Side::Server);
    }
    talk
}

/// Lengths of the frames that both tools find.
struct Both {
    ours: Vec<u64>,
    theirs: Vec<u64>,
}

/// Run both tools on these packets; `None` where tshark is not installed.
fn both(packets: &[Packet]) -> Option<Both> {
    let file = pcap(ETHERNET, packets);
    let lengths = |seen: &[Seen]| seen.iter().map(|frame| frame.4).collect();
    let Some((theirs, _)) = tshark(&file, 80) else {
        println!("skipped: there is no tshark here (Debian: apt-get install tshark)");
        return None;
    };
    Some(Both { ours: lengths(&inspector(&file).0), theirs: lengths(&theirs) })
}

/// Return the packets without one of them.
fn without(packets: &[Packet], lost: usize) -> Vec<Packet> {
    [&packets[..lost], &packets[lost + 1..]].concat()
}

/// Return the lengths of all frames except those with these numbers.
fn but(lost: &[usize]) -> Vec<u64> {
    let left = (0..FRAMES).filter(|number| !lost.contains(number));
    left.map(|number| length(number) as u64).collect()
}

/// A whole number of frames is lost, and others follow: both find all of these.
#[test]
fn whole_frames_that_are_lost_cost_no_other() {
    let frames = frames();
    let talk = talk(frames.iter().map(Vec::as_slice));
    for lost in [0, 3, 8] {
        let Some(found) = both(&without(&talk.packets, OPENING + 2 * lost)) else { return };
        assert_eq!((&found.ours, &found.theirs), (&but(&[lost]), &but(&[lost])), "{lost}");
    }
    // Fewer than eight remain after the loss: they prove nothing, and tshark accepts them.
    let Some(found) = both(&without(&talk.packets, OPENING + 2 * 15)) else { return };
    assert_eq!(found.ours, but(&[15, 16, 17, 18, 19]));
    assert_eq!(found.theirs, but(&[15]));
}

/// The middle of a payload is lost: the frames after it are known all the same.
/// tshark does not count the frame that it cannot reassemble.
#[test]
fn a_hole_in_a_payload_costs_tshark_the_frame() {
    let stream = frames().concat();
    let talk = talk(stream.chunks(1000));
    // Frame 3 begins in the first segment and ends in the fourth.
    let Some(found) = both(&without(&talk.packets, OPENING + 2)) else { return };
    assert_eq!(found.ours, but(&[]));
    assert_eq!(found.theirs, but(&[3]));
}

/// A segment with headers is lost, and the next one begins in a payload.
/// tshark takes that for headers, and lists frames that were never sent; we report `unsynced` until
/// frames are proven.
#[test]
fn a_lost_header_makes_tshark_invent_frames() {
    let sent = frames();
    let stream = sent.concat();
    let talk = talk(stream.chunks(1000));
    let all = but(&[]);
    let headers_lost = (0..stream.len() / 1000).filter(|segment| {
        let mut at = 0;
        let begins = sent.iter().map(|frame| {
            at += frame.len();
            at
        });
        let (from, to) = (segment * 1000, (segment + 1) * 1000);
        let boundaries: Vec<usize> = begins.collect();
        boundaries.iter().any(|at| (from..to).contains(at)) && !boundaries.contains(&to)
    });
    let mut invented = 0;
    for segment in headers_lost {
        let Some(found) = both(&without(&talk.packets, OPENING + 2 * segment)) else { return };
        let ours = found.ours.iter().filter(|length| !all.contains(length)).count();
        assert_eq!(ours, 0, "{segment}: {:?}", found.ours);
        invented += found.theirs.iter().filter(|length| !all.contains(length)).count();
    }
    assert!(invented > 0, "tshark invents none any more");
}

/// Without the request, the response or both, tshark finds no frame at all.
#[test]
fn without_the_opening_tshark_is_silent() {
    let frames = frames();
    let talk = talk(frames.iter().map(Vec::as_slice));
    let opening = without(&talk.packets, 4);
    for packets in [&opening[..], &without(&talk.packets, 3), &talk.packets[OPENING..]] {
        let Some(found) = both(packets) else { return };
        assert_eq!((&found.ours, found.theirs.len()), (&but(&[]), 0));
    }
}
