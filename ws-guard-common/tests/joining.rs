//! Streams joined in the middle: frames are found soon, and not where there are none.

use fastrand::Rng;
use ws_guard_common::{
    flow::state,
    replay::{Mode, Replay, Verdict},
    search::{PROOF, Search},
};
use ws_guard_oracle::{
    cases::{cases, one_in, wanted},
    frames::{self, Side},
    guard::Allowance,
    streams::frame,
};

/// A connection out of sync: the server acknowledged the unseen `base`.
fn unsynced(base: u32) -> Replay {
    let mut replay = Replay::open(base.wrapping_sub(1), 0, 0, Mode::Guard);
    replay.acknowledge(base);
    assert_eq!(replay.flow.state, state::UNSYNCED);
    replay
}

/// Frames of at most `longest` bytes of payload.
fn frames(rng: &mut Rng, count: usize, longest: usize) -> Vec<Vec<u8>> {
    let mut message_open = false;
    (0..count)
        .map(|_| {
            loop {
                let mut open = message_open;
                let frame = frame(rng, true, false, &mut open);
                if frame.len() <= longest {
                    message_open = open;
                    break frame;
                }
            }
        })
        .collect()
}

/// Number of frames that came before the stream was followed; the rest must be exact.
fn joins(rng: &mut Rng, frames: &[Vec<u8>], mut cut: impl FnMut(&mut Rng) -> usize) -> usize {
    let base = rng.u32(..);
    let mut replay = unsynced(base);
    let stream = frames.concat();
    let mut at = 0;
    while at < stream.len() {
        let end = (at + cut(rng)).min(stream.len());
        let mut payload = stream[at..end].to_vec();
        let seq = base.wrapping_add(at as u32);
        assert_eq!(replay.client(seq, &mut payload, &mut Allowance::new(1 << 30)), Verdict::Pass);
        replay.acknowledge(base.wrapping_add(end as u32));
        at = end;
    }
    let all = frames::frames(&stream, Side::CLIENT);
    if replay.flow.state != state::OPEN {
        return all.len();
    }
    // What led to the first frame may have been none itself; from there on all is exact.
    let seen = replay.flow.frames_in as usize;
    let (missed, invented) = (all.len().saturating_sub(seen), seen.saturating_sub(all.len()));
    assert!(invented < PROOF as usize, "{invented} frames were counted more than there are");
    let pings = all[missed..].iter().filter(|frame| frame.is_ping()).count() as u64;
    let wrong = replay.flow.pings_in.abs_diff(pings);
    assert!(wrong < PROOF.into(), "{wrong} frames were counted that are none");
    assert_eq!(replay.flow.client.resume(), base.wrapping_add(stream.len() as u32));
    missed
}

#[test]
fn a_client_that_writes_a_frame_a_segment_is_joined_within_ten() {
    cases(20_000, |rng| {
        let frames = frames(rng, 30, 4000);
        let lengths: Vec<usize> = frames.iter().map(Vec::len).collect();
        let mut next = lengths.into_iter();
        let missed = joins(rng, &frames, |_| next.next().unwrap_or(1));
        assert!(missed < 10, "{missed} frames were missed");
    });
}

/// Except where something in its payloads looks like the header of a longer frame, which leads to a real
/// one so far behind that too few are left: measured, 11 of 4,000,000 floods.
#[test]
fn a_flood_cut_anywhere_is_joined_in_its_second_segment() {
    let mut later = 0;
    cases(20_000, |rng| {
        let payload = rng.usize(..126);
        let ping = |rng: &mut Rng| {
            let mut bytes = vec![0x89, 0x80 | payload as u8];
            bytes.extend(random(rng, 4 + payload));
            bytes
        };
        let frames: Vec<_> = (0..400).map(|_| ping(rng)).collect();
        // The first segment begins anywhere in a frame.
        let mut first = Some(rng.usize(1..payload + 7));
        let missed = joins(rng, &frames, |_| first.take().unwrap_or(1448));
        let a_segment = 1448 / (payload + 6) + 1;
        assert!(missed <= 2 * a_segment, "{missed} of 400 pings were missed");
        later += u64::from(missed > a_segment);
    });
    assert!(later <= 2 + wanted(20_000) / 20_000, "{later} were joined later");
}

/// Something in these segments was taken for frames.
fn false_joins(rng: &mut Rng, segments: impl Iterator<Item = Vec<u8>>) -> bool {
    let base = rng.u32(..);
    let mut replay = unsynced(base);
    let mut seq = base;
    segments.into_iter().any(|mut payload| {
        replay.client(seq, &mut payload, &mut Allowance::new(1 << 30));
        seq = seq.wrapping_add(payload.len() as u32);
        replay.flow.state == state::OPEN
    })
}

fn random(rng: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.u8(..)).collect()
}

#[test]
fn random_bytes_are_no_frames() {
    cases(2_000, |rng| {
        let mut bytes = rng.fork();
        assert!(!false_joins(rng, (0..50).map(|_| random(&mut bytes, 1448))));
    });
}

#[test]
fn http_is_no_frames() {
    cases(2_000, |rng| {
        let mut inner = rng.fork();
        let requests = (0..40).map(|i| {
            if one_in(&mut inner, 2) {
                return random(&mut inner, 900);
            }
            format!("POST /{i} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n").into_bytes()
        });
        assert!(!false_joins(rng, requests));
    });
}

/// RFC 9113, 4.1: length 24, type 8, flags 8, stream 32.
#[test]
fn http_2_is_no_frames() {
    cases(2_000, |rng| {
        let mut inner = rng.fork();
        let segments = (0..60).map(|i| {
            let mut segment = Vec::new();
            while segment.len() < 1000 {
                let length =
                    if one_in(&mut inner, 3) { inner.usize(..16_384) } else { inner.usize(..200) };
                segment.extend(&(length as u32).to_be_bytes()[1..]);
                segment.extend([inner.u8(..10), inner.u8(..2) * 5, 0, 0, 0, i]);
                segment.extend(random(&mut inner, length));
            }
            segment
        });
        assert!(!false_joins(rng, segments));
    });
}

/// RFC 8446, 5.1: type 8, version 16, length 16.
#[test]
fn tls_is_no_frames() {
    cases(2_000, |rng| {
        let mut inner = rng.fork();
        let segments = (0..60).map(|_| {
            let mut segment = Vec::new();
            for _ in 0..inner.usize(1..12) {
                let length = inner.usize(20..300);
                segment.extend([23, 3, 3]);
                segment.extend((length as u16).to_be_bytes());
                segment.extend(random(&mut inner, length));
            }
            segment
        });
        assert!(!false_joins(rng, segments));
    });
}

#[test]
fn a_frame_that_claims_too_much_does_not_blind_the_search() {
    let mut replay = unsynced(100);
    let mut giant = vec![0x82, 0xFF, 0x3F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
    replay.client(100, &mut giant, &mut Allowance::new(0));
    let mut large = vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0x0F, 0xFF, 0xFF, 1, 2, 3, 4];
    replay.client(110, &mut large, &mut Allowance::new(0));
    let mut pings = [0x89, 0x80, 0, 0, 0, 0].repeat(PROOF as usize);
    replay.client(124, &mut pings, &mut Allowance::new(0));
    assert_eq!((replay.flow.state, replay.flow.pings_in), (state::OPEN, PROOF.into()));
    assert_eq!(pings[0], 0x8A);
}

#[test]
fn what_was_joined_is_left_again_when_it_proves_wrong() {
    let mut replay = unsynced(0);
    let mut pings = [0x89, 0x80, 0, 0, 0, 0].repeat(PROOF as usize);
    replay.client(0, &mut pings, &mut Allowance::new(99));
    assert_eq!(replay.flow.state, state::OPEN);
    for (wrong, unsynced_total) in [
        (vec![0x83, 0x80, 0, 0, 0, 0], 2),
        (vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0x20, 0, 0, 1, 2, 3, 4], 3),
    ] {
        let seq = replay.flow.high;
        replay.client(seq, &mut wrong.clone(), &mut Allowance::new(99));
        assert_eq!(
            (replay.flow.state, replay.flow.unsynced_total),
            (state::UNSYNCED, unsynced_total)
        );
        let seq = seq.wrapping_add(wrong.len() as u32);
        replay.client(seq, &mut pings.clone(), &mut Allowance::new(99));
        assert_eq!(replay.flow.state, state::OPEN);
    }
}

/// A known limit: where a payload holds frames and the search begins inside it, they are taken for the
/// stream's own, and what they say of lengths can hide the real ones.
#[test]
fn a_stream_that_can_be_read_in_two_ways_is_read_in_the_first_one_that_proves_itself() {
    let mut replay = unsynced(0);
    let mut inner = [0x81, 0x80, 0, 0, 0, 0].repeat(PROOF as usize);
    // 65,536 bytes to follow, for who believes it.
    inner.extend([0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    // The real header went by unseen: the server reads all of this as its payload.
    replay.client(0, &mut inner.clone(), &mut Allowance::new(0));
    assert_eq!((replay.flow.state, replay.flow.frames_in), (state::OPEN, u64::from(PROOF) + 1));
    let mut pings = [0x89, 0x80, 0, 0, 0, 0].repeat(100);
    replay.client(inner.len() as u32, &mut pings, &mut Allowance::new(0));
    assert_eq!((replay.flow.pings_in, pings[0]), (0, 0x89));
    // It takes a client that reads nothing: pongs would tell.
    replay.flow.pongs_out = 100;
    assert_eq!((replay.flow.unseen_pings(), replay.flow.state), (100, state::UNSYNCED));
}

#[test]
fn pongs_reveal_unseen_pings() {
    let mut replay = unsynced(0);
    replay.flow.pongs_out = 5;
    assert_eq!((replay.flow.unseen_pings(), replay.flow.unseen_pings()), (5, 0));
    let mut pings = [0x89, 0x80, 0, 0, 0, 0].repeat(10);
    replay.client(0, &mut pings, &mut Allowance::new(10));
    replay.flow.pongs_out = 15;
    assert_eq!((replay.flow.unseen_pings(), replay.flow.state), (0, state::OPEN));
    replay.flow.pongs_out = 18;
    assert_eq!((replay.flow.unseen_pings(), replay.flow.state), (3, state::UNSYNCED));
    // One that was followed from its first frame on may have a server that sends pongs unasked.
    let mut followed = Replay::open(0, 0, 0, Mode::Guard);
    followed.flow.pongs_out = 7;
    assert_eq!((followed.flow.unseen_pings(), followed.flow.state), (0, state::OPEN));
}

/// Kind of a server's segment, as the search tells.
fn is_whole(bytes: &[u8]) -> bool {
    let mut search = Search::of_server(7, bytes.len() as u32);
    search.run(&bytes);
    search.is_whole()
}

#[test]
fn a_server_that_speaks_websocket_is_known_by_whole_frames() {
    cases(20_000, |rng| {
        let mut open = false;
        let count = rng.usize(1..20);
        let frames: Vec<_> = (0..count).map(|_| frame(rng, false, false, &mut open)).collect();
        let whole = frames.concat();
        assert_eq!(is_whole(&whole), frames.iter().all(|frame| frame[0] >> 7 == 1));
        assert!(!is_whole(&whole[..whole.len() - 1]) || whole.len() == 1);
    });
    // Masked ones are a client's; HTTP/2 begins with a length, TLS with a type.
    for other in [
        &[0x89, 0x80, 0, 0, 0, 0][..],
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"A text that begins like a compressed fragment",
        // Two empty DATA frames.
        &[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 3],
        &[0, 0, 60, 0, 0, 0, 0, 0, 1, 0x89, 0x80, 0, 0, 0, 0],
        &[23, 3, 3, 0, 17, 1, 2, 3],
    ] {
        assert!(!is_whole(other), "{other:?}");
    }
}
