//! A client that lies to the guard: segments that the receiver throws away, with other content at
//! the same sequence numbers. Whatever it does, the receiver reads no ping that was not charged.

mod oracle;
mod support;

use fastrand::Rng;
use oracle::{
    Side,
    receiver::{Overlap, Receiver},
};
use support::{Allowance, cases, frame, one_in};
use ws_guard_common::{
    flow::state,
    replay::{Mode, Replay, Verdict},
};

/// Streams that differ in their frames, but often stand at the same places between them.
fn variants(rng: &mut Rng, base: usize) -> Vec<Vec<u8>> {
    (0..rng.usize(2..5))
        .map(|_| {
            let mut bytes = Vec::new();
            let mut message_open = false;
            while bytes.len() < base {
                let next = bytes.len();
                match rng.u8(..5) {
                    0 => bytes.extend(frame(rng, true, false, &mut message_open)),
                    1 => bytes.extend([0x89, 0x80, 0, 0, 0, 0]),
                    2 => bytes.extend([0x89, 0x81, 0, 0, 0, 0, 0x89]),
                    // A message whose payload is pings, to where a multiple of 32 comes.
                    3 => {
                        let room = (next + 8).next_multiple_of(32) - next;
                        let length = room - 6 + 32 * rng.usize(..3);
                        if length < 126 {
                            bytes.extend([0x82, 0x80 | length as u8, 0, 0, 0, 0]);
                            bytes.extend([0x89, 0x80, 0, 0, 0, 0].iter().cycle().take(length));
                        }
                    }
                    _ => {
                        let room = (next + 14).next_multiple_of(32) - next;
                        let length = [room - 8, 126 + rng.usize(..100), 9000][rng.usize(..3)];
                        bytes.extend([0x82, 0xFE]);
                        bytes.extend((length as u16).to_be_bytes());
                        bytes.extend(
                            [0x89, 0x80, 0, 0, 0, 0].iter().cycle().take(4 + length.min(200)),
                        );
                    }
                }
            }
            bytes
        })
        .collect()
}

/// Pings in what a receiver took, if it reads frames as RFC 6455 says.
fn pings(stream: &[u8]) -> u64 {
    oracle::frames(stream, Side::CLIENT).iter().filter(|frame| frame.is_ping()).count() as u64
}

fn attack(rng: &mut Rng, overlap: Overlap) {
    let base = rng.u32(..);
    let streams = variants(rng, 400);
    let mut replay = Replay::open(base, 0, 0, Mode::Guard);
    replay.flow.generation = rng.u32(..);
    replay.flow.client.mark = replay.flow.generation;
    let mut receiver = Receiver::new(base, overlap);
    let mut allowance = Allowance::new(rng.u32(..6));
    let mut places = vec![0usize];
    let segments = rng.usize(2..40);
    for _ in 0..segments {
        // Time passes, and pings leave the window.
        allowance.left += if one_in(rng, 6) { rng.u32(..3) } else { 0 };
        let stream = &streams[rng.usize(..streams.len())];
        // Mostly where something interesting lies: a segment's border, the cursor, the high mark.
        let flow = &replay.flow;
        let cursor = flow.client.resume().wrapping_sub(base) as usize;
        let from = match rng.u8(..6) {
            0 => cursor,
            1 => flow.high.wrapping_sub(base) as usize,
            2 => receiver.stream.len(),
            3 => rng.usize(..stream.len()),
            _ => places[rng.usize(..places.len())],
        };
        if from >= stream.len() {
            continue;
        }
        let to = match rng.u8(..4) {
            0 => (from + 1).next_multiple_of(32),
            1 => places[rng.usize(..places.len())],
            _ => from + rng.usize(1..100),
        };
        let to = to.clamp(from + 1, stream.len());
        let seq = base.wrapping_add(from as u32);
        // Long silence: the server has acknowledged all that it holds in order.
        replay.settled = one_in(rng, 5);
        if replay.settled {
            replay.acknowledge(receiver.ack());
        }
        let mut payload = stream[from..to].to_vec();
        let verdict = replay.client(seq, &mut payload, &mut allowance);
        if verdict == Verdict::Pass {
            places.extend([from, to]);
            if !one_in(rng, 3) {
                receiver.take(seq, &payload);
            }
        }
        // Acknowledgements may be late, and so may their passing the guard.
        if one_in(rng, 4) {
            replay.acknowledge(receiver.ack());
        }
        assert_eq!((replay.flow.state, replay.flow.unsynced_total), (state::OPEN, 0));
        let read = pings(&receiver.stream);
        assert!(
            read <= allowance.passed,
            "the receiver reads {read} pings, {} were to pass",
            allowance.passed
        );
    }
}

#[test]
fn a_linux_receiver_reads_no_ping_that_was_not_charged() {
    cases(100_000, |rng| attack(rng, Overlap::Linux));
}
