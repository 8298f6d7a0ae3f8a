//! TLS records through mangled streams: as frames are followed, so are they, and no byte is changed.

use fastrand::Rng;
use ws_guard_common::{
    flow::state,
    frame::Violation,
    record::{HEADER, Record, content},
    replay::{Mode, Replay, Verdict},
    search::RECORDS_PROOF,
};
use ws_guard_oracle::{
    cases::{cases, one_in},
    guard::{Allowance, OnHost},
    link::{Link, Path, Resend},
    streams::{boundaries, initial, stream as frames},
};

/// One record. Most hold application data of few bytes; some what looks like frames or records.
fn record(rng: &mut Rng) -> Vec<u8> {
    let kind = if one_in(rng, 8) { rng.u8(20..=24) } else { content::APPLICATION_DATA };
    let length = match rng.u8(..16) {
        0..=9 => rng.u16(17..200),
        10 => 0,
        11 => 1,
        12 if one_in(rng, 4) => rng.u16(16_000..=18_432),
        _ => rng.u16(..3000),
    };
    let mut bytes = vec![kind, 3, rng.u8(..5)];
    bytes.extend(length.to_be_bytes());
    let style = rng.u8(..4);
    bytes.extend((0..usize::from(length)).map(|index| match style {
        0 => [0x89, 0x80][index % 2],
        1 => [23, 3, 3, 0, 10][index % 5],
        2 => 0,
        _ => rng.u8(..),
    }));
    bytes
}

fn stream(rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rng.usize(1..30)).flat_map(|_| record(rng)).collect();
    if one_in(rng, 4) {
        bytes.truncate(rng.usize(1..=bytes.len()));
    }
    bytes
}

/// Findings of a plain reader: each record, its place, and the number that begin, the last one cut perhaps.
fn read(stream: &[u8]) -> (Vec<(usize, Record)>, u64) {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(rest) = stream.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(record) = Record::decode(rest) else {
            return (found.clone(), found.len() as u64 + 1);
        };
        found.push((at, record));
        at += HEADER + usize::from(record.length);
    }
    let begun = found.len() as u64;
    (found, begun)
}

/// Bad luck, but for loss behind the guard.
fn path(rng: &mut Rng) -> Path {
    let resend = [Resend::Same, Resend::Longer][rng.usize(..2)];
    Path { lost_behind: 0, resend, ..Path::any(rng) }
}

/// A stream through a mangling path: the guard before the link, and the link.
fn send(rng: &mut Rng, sent: &[u8], mode: Mode) -> (OnHost, Link) {
    let (base, path) = (initial(rng), path(rng));
    let boundaries = boundaries(rng, sent.len(), 0xFFFF);
    let mut guard = OnHost::new(base, mode, 0);
    guard.replay = Replay::open_records(base, 0, mode);
    let mut link = Link::new(base, sent.to_vec(), boundaries, path);
    assert!(link.run(rng, &mut guard), "stuck: {path:?}, dropped {:?}", link.dropped);
    assert!(link.receiver.stream == sent, "a byte was changed");
    assert_eq!((guard.allowance.charged, guard.replay.flow.defused), (0, 0));
    (guard, link)
}

#[test]
fn every_record_of_a_guarded_stream_is_counted_once() {
    cases(1_500, |rng| {
        let sent = stream(rng);
        let (guard, _) = send(rng, &sent, Mode::Guard);
        let flow = &guard.replay.flow;
        let (expected, begun) = read(&sent);
        assert_eq!((flow.state, flow.unsynced_total, flow.violations), (state::OPEN, 0, 0));
        assert_eq!(flow.frames_in, begun);
        let mut seen: Vec<_> = guard.replay.records.iter().collect();
        seen.sort_unstable_by_key(|seen| seen.seq.wrapping_sub(flow.client.resume()));
        let records: Vec<Record> = seen.iter().map(|seen| seen.record).collect();
        assert_eq!(records, expected.iter().map(|(_, record)| *record).collect::<Vec<_>>());
        assert!(guard.replay.headers.is_empty(), "records were taken for frames");
    });
}

#[test]
fn who_only_watches_counts_exactly_or_says_so() {
    let (mut exact, mut unsynced) = (0, 0);
    cases(1_500, |rng| {
        let sent = stream(rng);
        let (mut guard, link) = send(rng, &sent, Mode::Observe);
        guard.replay.acknowledge(link.receiver.ack());
        assert!(link.dropped.is_empty(), "{:?}", link.dropped);
        let flow = &guard.replay.flow;
        if flow.unsynced_total > 0 {
            unsynced += 1;
            return;
        }
        exact += 1;
        assert_eq!(flow.frames_in, read(&sent).1);
    });
    println!("{exact} exact, {unsynced} unsynced");
    assert!(exact > unsynced, "{exact} exact, {unsynced} unsynced");
}

#[test]
fn what_is_no_record_puts_the_flow_out_of_step_at_once() {
    cases(1_500, |rng| {
        let (base, good) = (initial(rng), record(rng));
        let mut replay = Replay::open_records(base, 0, Mode::Guard);
        let mut bad: [u8; 5] = [rng.u8(..), rng.u8(..), rng.u8(..), rng.u8(..), rng.u8(..)];
        if Record::decode(&bad).is_some_and(|record| record.violations().is_empty()) {
            bad[0] = 0x89;
        }
        let sent = [&good[..], &bad].concat();
        let mut at = 0;
        for end in [sent.len() - rng.usize(..5), sent.len()] {
            let mut payload = sent[at..end].to_vec();
            let seq = base.wrapping_add(at as u32);
            let mut nothing = Allowance::new(0);
            assert_eq!(replay.client(seq, &mut payload, &mut nothing), Verdict::Pass);
            assert!(payload == sent[at..end], "a byte was changed");
            at = end;
        }
        assert_eq!(replay.flow.state, state::UNSYNCED);
        assert_eq!(replay.by_kind[Violation::BadRecord as usize], 1);
    });
}

#[test]
fn a_stream_is_joined_at_the_third_record_and_exact_from_there() {
    cases(1_500, |rng| {
        let base = initial(rng);
        let mut replay = Replay::open_records(base.wrapping_sub(1), 0, Mode::Observe);
        replay.acknowledge(base);
        assert_eq!(replay.flow.state, state::UNSYNCED);
        let count = rng.u32(RECORDS_PROOF..20);
        let mut seq = base;
        for index in 0..count {
            let length = rng.u16(1..400);
            let mut bytes = vec![content::APPLICATION_DATA, 3, 3];
            bytes.extend(length.to_be_bytes());
            bytes.extend((0..length).map(|_| rng.u8(..)));
            let joined = index + 1 >= RECORDS_PROOF;
            assert_eq!(replay.client(seq, &mut bytes, &mut Allowance::new(0)), Verdict::Pass);
            assert_eq!(replay.flow.state == state::OPEN, joined, "record {index}");
            seq = seq.wrapping_add(u32::from(length) + HEADER as u32);
            replay.acknowledge(seq);
        }
        assert_eq!(replay.flow.frames_in, u64::from(count - RECORDS_PROOF + 1));
    });
}

#[test]
fn other_streams_are_never_taken_for_records() {
    cases(1_000, |rng| {
        let base = initial(rng);
        let mut replay = Replay::open_records(base.wrapping_sub(1), 0, Mode::Observe);
        replay.acknowledge(base);
        let frames = frames(rng, true, 40);
        let noise: Vec<u8> = (0..4000).map(|_| rng.u8(..)).collect();
        let mut seq = base;
        for part in frames.chunks(1448).chain(noise.chunks(1448)) {
            replay.client(seq, &mut part.to_vec(), &mut Allowance::new(0));
            seq = seq.wrapping_add(part.len() as u32);
        }
        assert_eq!(replay.flow.state, state::UNSYNCED);
    });
}
