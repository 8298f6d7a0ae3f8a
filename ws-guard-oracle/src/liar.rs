//! Client that lies to the guard.
//! It sends segments that the receiver discards, with other content at the same sequence numbers.

use fastrand::Rng;
use ws_guard_common::replay::Verdict;

use crate::{
    cases::one_in,
    frames::{Side, frames},
    guard::Watched,
    receiver::{Overlap, Receiver},
    streams::frame,
};

/// Approximate length of each of its streams in bytes.
const LENGTH: usize = 400;

/// Generate streams of different frames, which often share frame positions.
fn variants(rng: &mut Rng) -> Vec<Vec<u8>> {
    (0..rng.usize(2..5))
        .map(|_| {
            let mut bytes = Vec::new();
            let mut message_open = false;
            while bytes.len() < LENGTH {
                let next = bytes.len();
                match rng.u8(..5) {
                    0 => bytes.extend(frame(rng, true, false, &mut message_open)),
                    1 => bytes.extend([0x89, 0x80, 0, 0, 0, 0]),
                    2 => bytes.extend([0x89, 0x81, 0, 0, 0, 0, 0x89]),
                    // A message whose payload is pings, up to where a multiple of 32 comes.
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

/// Connection of such a client.
#[derive(Clone, Debug)]
pub struct Liar {
    pub receiver: Receiver,
    /// Longest segment, in bytes of payload.
    pub longest: usize,
    base: u32,
    streams: Vec<Vec<u8>>,
    /// Starts and ends of segments that passed.
    places: Vec<usize>,
}

impl Liar {
    /// Create a client whose frames begin at sequence number `base`.
    pub fn new(rng: &mut Rng, base: u32, overlap: Overlap) -> Liar {
        let streams = variants(rng);
        Liar {
            receiver: Receiver::new(base, overlap),
            longest: 0xFFFF,
            base,
            streams,
            places: vec![0],
        }
    }

    /// Send a segment, or pass the receiver's feedback.
    pub fn step(&mut self, rng: &mut Rng, guard: &mut impl Watched) {
        let stream = &self.streams[rng.usize(..self.streams.len())];
        // Mostly at an interesting place: a segment boundary, the cursor, the high mark.
        let flow = guard.flow();
        let cursor = flow.client.resume().wrapping_sub(self.base) as usize;
        let from = match rng.u8(..6) {
            0 => cursor,
            1 => flow.high.wrapping_sub(self.base) as usize,
            2 => self.receiver.stream.len(),
            3 => rng.usize(..stream.len()),
            _ => self.places[rng.usize(..self.places.len())],
        };
        if from >= stream.len() {
            return;
        }
        let to = match rng.u8(..4) {
            0 => (from + 1).next_multiple_of(32),
            1 => self.places[rng.usize(..self.places.len())],
            _ => from + rng.usize(1..100),
        };
        let to = to.min(from + self.longest).clamp(from + 1, stream.len());
        let seq = self.base.wrapping_add(from as u32);
        if one_in(rng, 5) {
            // Long silence: the server has acknowledged all in-order data that it holds.
            guard.acknowledge(self.receiver.ack());
            guard.rest();
        }
        let mut payload = stream[from..to].to_vec();
        let taken = !one_in(rng, 3);
        if guard.client(seq, &mut payload, taken) == Verdict::Pass {
            self.places.extend([from, to]);
            if taken {
                self.receiver.take(seq, &payload);
            }
        }
        // Acknowledgements may be late, both at the client and at the guard.
        if one_in(rng, 4) {
            guard.acknowledge(self.receiver.ack());
        }
    }

    /// Count the pings that a receiver reads according to RFC 6455.
    pub fn pings_read(&self) -> u64 {
        let read = frames(&self.receiver.stream, Side::CLIENT);
        read.iter().filter(|frame| frame.is_ping()).count() as u64
    }
}
