//! The tracker, driven as in the guard, against the oracle.
//!
//! The input is a list of commands for an honest sender's segments over a stream that is itself
//! part of the input: 2 bytes length of the stream, the stream, then 3 bytes a command.
#![no_main]

#[path = "../../ws-guard-common/tests/oracle/mod.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;
use oracle::{
    Side,
    receiver::{Overlap, Receiver},
};
use ws_guard_common::{
    flow::state,
    replay::{Budget, Mode, Replay, Verdict},
};

/// Four pings pass.
struct Four {
    left: u32,
    charged: u64,
}

impl Budget for Four {
    fn room(&mut self) -> u32 {
        self.left
    }

    fn charge(&mut self, pings: u32, passed: u32) {
        self.left -= passed;
        self.charged += u64::from(pings);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk() else { return };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (sent, commands) = rest.split_at(length);
    let base = 0xFFFF_FF00;
    let mut replay = Replay::open(base, 0, 0, Mode::Guard);
    let mut receiver = Receiver::new(base, Overlap::Linux);
    let mut four = Four { left: 4, charged: 0 };
    for command in commands.chunks_exact(3) {
        // From a little before the cursor or the acknowledged byte, so long.
        let at = if command[0] & 1 == 0 { replay.flow.client.resume() } else { receiver.ack() };
        let from = (at.wrapping_sub(base) as usize).saturating_sub(usize::from(command[1] >> 1));
        let to = (from + usize::from(command[2])).min(sent.len());
        if from >= to {
            continue;
        }
        let seq = base.wrapping_add(from as u32);
        let mut payload = sent[from..to].to_vec();
        let passed = replay.client(seq, &mut payload, &mut four) == Verdict::Pass;
        if passed && command[0] & 2 == 0 {
            receiver.take(seq, &payload);
        }
        if command[0] & 4 == 0 {
            replay.acknowledge(receiver.ack());
        }
        check(sent, &replay, &receiver, &four);
    }
});

/// What holds at any time: the flow has seen a prefix of the stream, and counted it exactly.
fn check(sent: &[u8], replay: &Replay, receiver: &Receiver, four: &Four) {
    assert_eq!((replay.flow.state, replay.flow.unsynced_total), (state::OPEN, 0));
    let received = &receiver.stream;
    let mut answered = 0;
    let mut expected = sent[..received.len()].to_vec();
    for frame in oracle::frames(received, Side::CLIENT) {
        if frame.opcode != sent[frame.at] % 16 {
            assert!(sent[frame.at] % 16 == 9 && frame.is_pong(), "changed at {}", frame.at);
            expected[frame.at] ^= 0x9 ^ 0xA;
        }
        answered += u32::from(frame.is_ping());
    }
    assert!(*received == expected, "changed elsewhere");
    assert!(answered <= 4 - four.left, "{answered} pings came through");
    let begun = oracle::frames(sent, Side::CLIENT);
    let counted = &begun[..replay.flow.frames_in as usize];
    assert_eq!(replay.flow.pings_in, counted.iter().filter(|frame| frame.is_ping()).count() as u64);
    assert_eq!(four.charged, replay.flow.pings_in);
}
