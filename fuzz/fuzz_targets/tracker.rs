//! The tracker, driven as in the guard, against the oracle.
//!
//! The input is a list of commands for an honest sender's segments over a stream that is itself
//! part of the input: 2 bytes length of the stream, the stream, then 3 bytes a command.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_guard_common::{
    flow::state,
    replay::{Mode, Verdict},
};
use ws_guard_oracle::{
    frames::{self, Side},
    guard::{Guard, OnHost, Watched},
    receiver::{Overlap, Receiver},
};

/// Limit: the number of pings that pass.
const ALLOWED: u32 = 4;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk() else { return };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (sent, commands) = rest.split_at(length);
    let base = 0xFFFF_FF00;
    let mut guard = OnHost::new(base, Mode::Guard, ALLOWED);
    let mut receiver = Receiver::new(base, Overlap::Linux);
    for command in commands.chunks_exact(3) {
        // From a little before the cursor or the acknowledged byte, this length.
        let at = if command[0] & 1 == 0 { guard.flow().client.resume() } else { receiver.ack() };
        let from = (at.wrapping_sub(base) as usize).saturating_sub(usize::from(command[1] >> 1));
        let to = (from + usize::from(command[2])).min(sent.len());
        if from >= to {
            continue;
        }
        let seq = base.wrapping_add(from as u32);
        let mut payload = sent[from..to].to_vec();
        let taken = command[0] & 2 == 0;
        let passed = guard.client(seq, &mut payload, taken) == Verdict::Pass;
        if passed && taken {
            receiver.take(seq, &payload);
        }
        if command[0] & 4 == 0 {
            guard.acknowledge(receiver.ack());
        }
        if command[0] & 8 != 0 {
            guard.acknowledge(receiver.ack());
            guard.rest();
        }
        check(sent, &guard, &receiver);
    }
});

/// Check the invariant: the flow has seen a prefix of the stream.
/// It has counted it exactly.
fn check(sent: &[u8], guard: &OnHost, receiver: &Receiver) {
    let flow = guard.flow();
    assert_eq!((flow.state, flow.unsynced_total), (state::OPEN, 0));
    let received = &receiver.stream;
    let mut answered = 0;
    let mut expected = sent[..received.len()].to_vec();
    for frame in frames::frames(received, Side::CLIENT) {
        if frame.opcode != sent[frame.at] % 16 {
            assert!(sent[frame.at] % 16 == 9 && frame.is_pong(), "changed at {}", frame.at);
            expected[frame.at] ^= 0x9 ^ 0xA;
        }
        answered += u32::from(frame.is_ping());
    }
    assert!(*received == expected, "changed elsewhere");
    assert!(answered <= ALLOWED - guard.allowance.left, "{answered} pings came through");
    let begun = frames::frames(sent, Side::CLIENT);
    let counted = &begun[..flow.frames_in as usize];
    assert_eq!(flow.pings_in, counted.iter().filter(|frame| frame.is_ping()).count() as u64);
    assert_eq!(guard.allowance.charged, flow.pings_in);
}
