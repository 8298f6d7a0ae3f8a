//! One fixture for each error that the property tests found.

use ws_guard_common::{
    flow::{Acknowledged, FIN_SEEN, OLDEST_ACK, Reset, SERVER_DONE, hidden, state},
    ledger::RING,
    maps::{Beginning, FAR, Old},
    replay::{Mode, Reason, Replay, Verdict},
    trail::TRACES,
    window::{Rate, RateWindow},
};
use ws_guard_oracle::guard::Allowance;

/// A guarded connection whose client starts at sequence number 0.
fn guarded() -> Replay {
    Replay::open(0, 0, 0, Mode::Guard)
}

/// A segment of the client that must pass, with no ping allowed.
fn pass(replay: &mut Replay, seq: u32, payload: &[u8]) {
    let verdict = replay.client(seq, &mut payload.to_vec(), &mut Allowance::new(0));
    assert_eq!(verdict, Verdict::Pass, "{payload:x?} at {seq}");
}

#[test]
fn a_boundary_inside_the_masking_key_splits_the_header() {
    let mut replay = guarded();
    pass(&mut replay, 0, &[0x81, 0x82, 1, 2]);
    pass(&mut replay, 4, &[3, 4, 0, 0]);
    assert_eq!((replay.flow.split_headers, replay.flow.split_frames), (1, 1));
    // Cut twice, it is still one header.
    pass(&mut replay, 8, &[0x81]);
    pass(&mut replay, 9, &[0x80, 1, 2]);
    pass(&mut replay, 12, &[3, 4]);
    assert_eq!((replay.flow.split_headers, replay.flow.split_frames), (2, 2));
}

/// A masked binary frame with `length` bytes of payload, at most 65,535.
fn message(length: u16) -> Vec<u8> {
    let mut bytes = vec![0x82, 0xFE];
    bytes.extend(length.to_be_bytes());
    bytes.resize(8 + usize::from(length), 0);
    bytes
}

#[test]
fn other_bytes_before_the_delayed_acknowledgement_are_refused() {
    let mut replay = guarded();
    pass(&mut replay, 0, &message(192));
    // The server holds 200 bytes, and has not acknowledged them. It would take the rest of this
    // one, and read it behind the first message, not inside a second one.
    let mut other = message(60_000);
    other.truncate(400);
    let verdict = replay.client(0, &mut other, &mut Allowance::new(0));
    assert_eq!(verdict, Verdict::Drop(Reason::Changed));
    // Had it held the first ones, it would have acknowledged them long ago.
    replay.settled = true;
    assert_eq!(replay.client(0, &mut other, &mut Allowance::new(0)), Verdict::Pass);
    assert_eq!(replay.flow.client.next, 60_008);
}

#[test]
fn a_segment_may_come_again_in_pieces() {
    let mut replay = guarded();
    let mut both = message(192);
    both.extend(message(292));
    pass(&mut replay, 0, &both);
    pass(&mut replay, 0, &both[..100]);
    replay.acknowledge(100);
    pass(&mut replay, 100, &both[100..300]);
    replay.acknowledge(300);
    pass(&mut replay, 300, &both[300..]);
    replay.acknowledge(500);
    assert_eq!((replay.flow.frames_in, replay.flow.traces), (2, 0));
}

#[test]
fn a_piece_of_a_cut_header_takes_nothing_back() {
    let mut replay = guarded();
    pass(&mut replay, 0, &[0x89, 0x80, 0, 0, 0, 0]);
    pass(&mut replay, 6, &[0x82, 0xFE, 1]);
    pass(&mut replay, 0, &[0x89, 0x80, 0, 0, 0, 0, 0x82, 0xFE]);
    assert_eq!(replay.acknowledge(9), Acknowledged::Fine);
    assert_eq!((replay.flow.frames_in, replay.flow.client.carried), (2, 3));
}

#[test]
fn a_longer_retransmission_does_not_change_a_cut_header() {
    let mut replay = guarded();
    pass(&mut replay, 0, &[0x89, 0x80, 0, 0, 0, 0]);
    pass(&mut replay, 6, &[0x82, 0xFE, 1]);
    let mut other = vec![0x89, 0x80, 0, 0, 0, 0, 0x82, 0x85, 0, 0, 0, 0];
    let verdict = replay.client(0, &mut other, &mut Allowance::new(0));
    assert_eq!(verdict, Verdict::Drop(Reason::Changed));
}

#[test]
fn what_fills_a_hole_in_the_payload_is_let_through() {
    let mut replay = guarded();
    pass(&mut replay, 0, &message(192)[..100]);
    // 100 to 150 is lost on the way to the guard, and many small segments follow.
    pass(&mut replay, 150, &[0; 50]);
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    let mut seq = 200;
    for _ in 0..20 {
        pass(&mut replay, seq, &ping);
        seq += 6;
    }
    assert_eq!((replay.flow.traces, replay.flow.frames_in), (21, 21));
    replay.acknowledge(100);
    pass(&mut replay, 100, &[0; 50]);
    replay.acknowledge(seq);
    pass(&mut replay, seq, &ping);
}

#[test]
fn a_new_log_takes_the_last_seconds_before_the_clock_wraps_as_they_are() {
    let rate = Rate::new(1, 1000, 0).expect("in range");
    let mut log = RateWindow::new();
    assert_eq!(log.charge(u32::MAX - 9000, rate, 1), 1);
    assert_eq!(log.charge(u32::MAX - 4000, rate, 1), 1, "five windows later");
}

#[test]
fn no_ping_is_no_ping_when_the_log_is_over_the_limit() {
    let rate = Rate::new(2, 1000, 0).expect("in range");
    let mut log = RateWindow::new();
    assert_eq!(log.charge(0, rate, 1), 1);
    assert_eq!(log.charge(900, rate, 3), 1);
    assert_eq!(log.charge(1500, rate, 0), 0);
}

#[test]
fn a_header_that_was_cut_may_come_again_whole() {
    let mut replay = guarded();
    pass(&mut replay, 0, &[0x82]);
    pass(&mut replay, 1, &[0x82, 0, 0, 0, 0, 1, 1]);
    pass(&mut replay, 8, &[0x89, 0x80, 0, 0, 0, 0]);
    pass(&mut replay, 0, &[0x82, 0x82, 0, 0, 0, 0, 1, 1]);
    assert_eq!(replay.flow.frames_in, 2);
}

#[test]
fn a_hole_and_a_full_ring_may_come_with_one_segment() {
    let mut replay = guarded();
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    for number in 0..RING as u32 - 1 {
        pass(&mut replay, number * 6, &ping);
    }
    let at = 6 * (RING as u32 - 1);
    pass(&mut replay, at, &message(192)[..100]);
    // Its second half is lost on the way to the guard.
    let mut next = vec![0; 50];
    next.extend(ping);
    pass(&mut replay, at + 150, &next);
    replay.acknowledge(at + 100);
    pass(&mut replay, at + 100, &[0; 50]);
    pass(&mut replay, at + 150, &next);
    assert_eq!(replay.flow.frames_in, RING as u64 + 1);
}

/// The acknowledgement of data that waits in a queue is old when it arrives, by all that the server
/// has sent meanwhile.
#[test]
fn an_acknowledgement_that_others_have_overtaken_is_credible() {
    let flow = &mut guarded().flow;
    flow.server_high = 3 << 20;
    flow.hear(3 << 20);
    assert!(flow.is_credible(1 << 20), "two megabytes ago");
    assert!(!flow.is_credible((3 << 20) + 1), "of what the server has not sent");
    assert!(!flow.is_credible(0u32.wrapping_sub(1 << 20)), "from before the connection");
    flow.server_high = 1 << 30;
    flow.hear(1 << 30);
    assert!(!flow.is_credible((1 << 30) - OLDEST_ACK - 1), "older than any window");
}

/// Bytes that came again in the middle of a segment: with other frames they are refused, wherever they
/// begin and end.
#[test]
fn a_segment_comes_again_from_anywhere_to_anywhere_but_only_with_its_own_frames() {
    let mut replay = guarded();
    let mut frames = Vec::new();
    for length in 0..40 {
        frames.extend([0x81, 0x80 | length, 1, 2, 3, 4]);
        frames.resize(frames.len() + usize::from(length), 0x89);
    }
    pass(&mut replay, 0, &frames);
    let length = frames.len();
    for from in (0..length).step_by(7) {
        for to in (from + 1..=length).step_by(11) {
            pass(&mut replay, from as u32, &frames[from..to]);
        }
    }
    // The tenth frame as a ping, and one byte longer.
    let at = (0..10).map(|length| 6 + length).sum::<usize>();
    for (byte, value) in [(at, 0x89), (at + 1, 0x8B)] {
        let mut other = frames.clone();
        other[byte] = value;
        for (from, to) in [(at - 3, at + 20), (at, at + 2), (at, length), (0, at + 30)] {
            let verdict =
                replay.client(from as u32, &mut other[from..to].to_vec(), &mut Allowance::new(0));
            assert_ne!(verdict, Verdict::Pass, "{byte}: {from} to {to}");
        }
    }
    assert_eq!((replay.flow.frames_in, replay.flow.pings_in), (40, 0));
}

/// A RST that only the guard believes must not make it deaf.
#[test]
fn a_closed_flow_takes_acknowledgements() {
    let mut replay = guarded();
    pass(&mut replay, 0, &message(192));
    assert!(replay.flow.client_reset(0));
    assert_eq!(replay.acknowledge(200), Acknowledged::Fine);
    assert!(!replay.flow.reopen(200), "the server has these bytes");
    assert!(replay.flow.reopen(201));
    assert_eq!(replay.flow.state, state::OPEN);
}

#[test]
fn what_the_server_takes_of_a_closed_flow_unseen_is_noticed() {
    let mut replay = guarded();
    assert!(replay.flow.client_reset(0));
    assert_eq!(replay.acknowledge(10), Acknowledged::Unsynced);
    assert_eq!((replay.flow.state, replay.flow.unsynced_total), (state::UNSYNCED, 1));
}

/// Reopened, it would be taken for one that is followed, with a cursor of the attacker's choice.
#[test]
fn a_flow_out_of_sync_is_not_ended_by_what_the_server_may_not_have_seen() {
    let out_of_sync = || {
        let mut replay = guarded();
        assert_eq!(replay.acknowledge(10), Acknowledged::Unsynced);
        replay.flow.client.next = 1 << 29;
        replay
    };
    let mut reset = out_of_sync();
    assert!(!reset.flow.client_reset(10));
    assert_eq!(reset.flow.state, state::UNSYNCED);
    let mut finished = out_of_sync();
    (finished.flow.fin, finished.flow.flags) = (30, FIN_SEEN);
    assert_eq!(finished.acknowledge(31), Acknowledged::Fine);
    assert_eq!(finished.flow.state, state::UNSYNCED);
    assert!(!finished.flow.has_ended());
    finished.flow.flags |= SERVER_DONE;
    assert!(finished.flow.has_ended());
}

/// Only the client knows what the server sends, and off path 2^32 numbers are as many guesses.
#[test]
fn a_reset_counts_where_the_server_may_take_it() {
    let in_flight = || {
        let mut replay = guarded();
        pass(&mut replay, 0, &message(192));
        replay.flow
    };
    let (known, unknown) = (in_flight().server_high, in_flight().server_high.wrapping_sub(1 << 30));
    for (seq, ack, wanted) in [
        (0, known, Reset::Closed),
        (0, unknown, Reset::Closed),
        (100, known, Reset::Gone),
        (200, known, Reset::Gone),
        (100, unknown, Reset::Forged),
        (5000, known, Reset::Gone),
        (5000, unknown, Reset::Forged),
        (2 * FAR, known, Reset::Forged),
        (1 << 31, known, Reset::Ignored),
        (u32::MAX, known, Reset::Gone),
        (u32::MAX, unknown, Reset::Forged),
        (u32::MAX - 1, known, Reset::Ignored),
    ] {
        let mut flow = in_flight();
        assert_eq!(flow.hear_reset(seq, 0, ack), wanted, "{seq}");
        assert_eq!(flow.is_gone(0), matches!(wanted, Reset::Gone | Reset::Closed), "{seq}");
    }
    let mut taken = in_flight();
    taken.client_ack = known;
    assert_eq!(taken.hear_reset(100, 0, known.wrapping_sub(1)), Reset::Forged, "acknowledges less");
    assert_eq!(taken.hear_reset(u32::MAX - 1, 3, known), Reset::Forged, "reaches the window");
    assert_eq!(taken.hear_reset(u32::MAX - 1, 1, known), Reset::Forged, "with its FIN");
}

#[test]
fn what_a_server_says_behind_its_fin_is_what_it_said_before_or_another_connections() {
    for (end, len, gone) in
        [(1000, 100, false), (1000, 1000, false), (1001, 1, true), (50, 60, true)]
    {
        let mut flow = guarded().flow;
        flow.hear_server_end(0, false, 0);
        (flow.client_ack, flow.server_high) = (0, 1000);
        flow.hear_behind_end(end, len);
        assert_eq!(flow.is_gone(0), gone, "{end}, {len}");
    }
}

#[test]
fn a_fin_far_from_all_that_passed_is_not_the_clients() {
    for (end, counts) in [(0, true), (64 << 20, true), (1 << 27, false), (1 << 31, false)] {
        let mut flow = guarded().flow;
        flow.hear_fin(end);
        assert_eq!(flow.hidden & hidden::CLIENT_FIN != 0, counts, "{end}");
        assert_eq!(flow.flags & FIN_SEEN != 0, counts, "{end}");
    }
}

#[test]
fn a_connection_is_gone_once_both_have_ended_it_or_the_server_waits_no_longer() {
    const SECOND: u64 = 1_000_000_000;
    let mut flow = guarded().flow;
    flow.server_ms = 100_000;
    assert!(!flow.is_gone(1000 * SECOND));
    flow.hear_server_end(0, false, 100 * SECOND);
    assert!(!flow.is_gone(104 * SECOND), "its client may go on");
    let mut both = flow;
    both.hear_fin(0);
    assert!(both.is_gone(100 * SECOND));
    // What the client sends shows nothing.
    flow.last_ns = 105 * SECOND;
    assert!(flow.is_gone(105 * SECOND));
    flow.server_ms = 106_000;
    assert!(flow.is_gone(106 * SECOND), "for good");
}

/// Other numbers than those of its beginning begin no other connection (RFC 4987, 3.6).
#[test]
fn old_bytes_begin_no_other_connection() {
    let began = Beginning { client_next: 5000, server_next: 70_000, ..Beginning::default() };
    let acked = began.client_next + 1000;
    for (seq, ack, len, wanted) in [
        (5000, 70_000, 500, Old::Disarm),
        (5000, 70_003, 500, Old::Disarm),
        (5100, 70_100, 500, Old::Disarm),
        (5100, 70_100 - Beginning::LESS, 500, Old::Pass),
        (5000, 70_500, 500, Old::Pass),
        (5100, 70_100, 0, Old::Drop),
        (5998, 80_000, 0, Old::Drop),
        (5999, 80_000, 0, Old::Pass),
        (acked.wrapping_sub(FAR), 80_000, 500, Old::Pass),
        (acked.wrapping_sub(FAR + 1), 80_000, 500, Old::Drop),
    ] {
        assert_eq!(began.judge_old(acked, seq, ack, len), wanted, "{seq}, {ack}, {len}");
    }
}

/// An observing guard passes what it cannot judge, and knows no more than before.
#[test]
fn what_passes_unjudged_is_not_seen() {
    let mut replay = Replay::open(0, 0, 0, Mode::Observe);
    pass(&mut replay, 100, &[0; 50]);
    assert_eq!((replay.flow.high, replay.flow.gaps), (0, 1));
}

/// Of a length beyond 2^30 bytes the low part alone may be less than a header.
#[test]
fn a_frame_does_not_end_before_its_own_header() {
    let mut replay = guarded();
    let header = [0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xF7, 1, 2, 3, 4];
    pass(&mut replay, 0, &header[..7]);
    pass(&mut replay, 7, &header[7..]);
    assert_eq!(replay.flow.client.resume(), (1 << 30) + 5);
    pass(&mut replay, 14, &[0x89; 100]);
    assert_eq!((replay.flow.frames_in, replay.flow.pings_in), (1, 0));
}

#[test]
fn headers_that_are_skipped_at_once_count_as_steps() {
    // As many frames as these bytes could hold if all had a key, and more.
    let payload = [[0x81, 0].repeat(40), [0x89, 0x80, 0, 0, 0, 0].repeat(45)].concat();
    let verdict = guarded().client(0, &mut payload.clone(), &mut Allowance::new(0));
    assert_eq!(verdict, Verdict::Drop(Reason::Unreadable));
}

/// A guarded connection whose slot of the trails belongs to another one.
fn without_trail() -> Replay {
    let mut replay = guarded();
    replay.has_trail = false;
    replay
}

#[test]
fn without_a_trail_a_segment_of_many_frames_comes_again_whole() {
    let mut replay = without_trail();
    let frames = [0x81, 0x81, 0, 0, 0, 0, 9].repeat(200);
    let end = frames.len() as u32;
    for _ in 0..2 {
        pass(&mut replay, 0, &frames);
    }
    pass(&mut replay, end, &frames);
    pass(&mut replay, 0, &frames.repeat(2));
    pass(&mut replay, end, &frames);
    let mut other = frames.clone();
    other[700] = 0x82;
    for (seq, payload) in [(0, &other[..]), (0, &frames[..700]), (700, &frames[700..])] {
        let verdict = replay.client(seq, &mut payload.to_vec(), &mut Allowance::new(0));
        assert!(matches!(verdict, Verdict::Drop(_)), "{} bytes at {seq}", payload.len());
    }
    assert_eq!(replay.flow.frames_in, 400);
}

/// In the flow without a trail, or in a full trail.
#[test]
fn what_has_no_room_comes_again_with_what_was_before() {
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    for (mut replay, room) in [(without_trail(), RING as u32), (guarded(), TRACES)] {
        let count = room + 4;
        for number in 0..count {
            pass(&mut replay, 6 * number, &ping);
        }
        let first = room.saturating_sub(20);
        for from in (first..room - 1).chain([0, count - 1]) {
            pass(&mut replay, 6 * from, &ping.repeat((count - from) as usize));
        }
        let mut other = ping.repeat(8);
        other[6 * 6 + 1] = 0x81;
        let verdict = replay.client(6 * (count - 8), &mut other, &mut Allowance::new(0));
        assert_eq!(verdict, Verdict::Drop(Reason::Changed), "{room}");
        // It is not known where these began.
        for from in room - 1..count - 1 {
            let verdict = replay.client(6 * from, &mut ping.to_vec(), &mut Allowance::new(0));
            assert_eq!(verdict, Verdict::Drop(Reason::Untraced), "{from} of {room}");
        }
        replay.acknowledge(6 * count - 6);
        pass(&mut replay, 6 * count - 6, &ping);
        assert_eq!(replay.flow.frames_in, count.into());
    }
}

/// Shortened, it could not come again in other cuts, as behind a path that has become narrower.
#[test]
fn a_segment_of_many_frames_waits_for_room_in_a_full_trail() {
    let mut replay = guarded();
    let frame = [0x81, 0x81, 0, 0, 0, 0, 9];
    for number in 0..TRACES - 1 {
        pass(&mut replay, 7 * number, &frame);
    }
    let (seq, many) = (7 * (TRACES - 1), frame.repeat(30));
    let verdict = replay.client(seq, &mut many.clone(), &mut Allowance::new(0));
    assert_eq!(verdict, Verdict::Drop(Reason::Untraced));
    replay.acknowledge(seq - 7);
    pass(&mut replay, seq, &many);
    pass(&mut replay, seq + 70, &many[70..]);
    assert_eq!(replay.flow.frames_in, u64::from(TRACES) + 29);
}

/// A header with the longest of lengths, and the others that end in the same place of the sequence space.
#[test]
fn lengths_that_are_strides_apart_are_different() {
    for more in [1 << 30, 1 << 31, 3 << 30, 1 << 32, 1 << 62] {
        let header = |length: u64| [&[0x82, 0xFF], &length.to_be_bytes()[..], &[0; 4]].concat();
        let mut replay = guarded();
        pass(&mut replay, 0, &header(70_000 + more));
        let verdict = replay.client(0, &mut header(70_000), &mut Allowance::new(0));
        assert_eq!(verdict, Verdict::Drop(Reason::Changed), "{more:#x}");
        pass(&mut replay, 0, &header(70_000 + more));
    }
}

/// Headers past any window, which the server discards, would take the cursor around the sequence space.
#[test]
fn no_header_is_followed_past_any_window() {
    let mut replay = guarded();
    let length = 900_u64 << 20;
    let header = [&[0x82, 0xFF], &length.to_be_bytes()[..], &[0; 4]].concat();
    pass(&mut replay, 0, &header);
    let next = replay.flow.client.next;
    let verdict = replay.client(next, &mut header.clone(), &mut Allowance::new(0));
    assert_eq!(verdict, Verdict::Drop(Reason::OutOfReach));
    replay.acknowledge(next - 1000);
    pass(&mut replay, next, &header);
}

/// A client that has a header in flight at any time, over more than the sequence space.
#[test]
fn traces_of_the_lap_before_are_gone() {
    for has_trail in [true, false] {
        let mut replay = guarded();
        replay.has_trail = has_trail;
        let length = 60_u64 << 20;
        let header = [&[0x82, 0xFF], &length.to_be_bytes()[..], &[0; 4]].concat();
        let ping = [0x89, 0x80, 0, 0, 0, 0];
        // More than the flow has room for, and then never all acknowledged.
        for number in 0..=RING as u32 {
            pass(&mut replay, 6 * number, &[0x81, 0x80, 0, 0, 0, 0]);
        }
        for number in 0..100 {
            let next = replay.flow.client.next;
            assert_eq!(replay.flow.trail != 0, has_trail, "{number}");
            pass(&mut replay, next, &header);
            pass(&mut replay, next, &header);
            let verdict = replay.client(next, &mut ping.to_vec(), &mut Allowance::new(0));
            assert_eq!(verdict, Verdict::Drop(Reason::Changed), "{number}");
            replay.acknowledge(next + 1);
            assert!(number < 10 || replay.flow.traces < 8, "{number}: {}", replay.flow.traces);
        }
    }
}

/// Pings between the first and the last that was defused are defused again; those around them pass.
#[test]
fn a_ping_comes_again_as_it_passed_however_it_is_cut() {
    let mut replay = guarded();
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    let mut send = |seq: u32, pings: usize, allowed: u32| {
        let mut payload = ping.repeat(pings);
        let verdict = replay.client(seq, &mut payload, &mut Allowance::new(allowed));
        assert_eq!(verdict, Verdict::Pass);
        payload.chunks(6).map(|ping| ping[0] == 0x89).collect::<Vec<_>>()
    };
    assert_eq!(send(0, 4, 2), [true, true, false, false]);
    assert_eq!(send(24, 2, 2), [true, true]);
    assert_eq!(send(0, 6, 0), [true, true, false, false, true, true]);
    assert_eq!(send(6, 2, 0), [true, false]);
    assert_eq!(send(18, 3, 0), [false, true, true]);
}

/// What was in flight at an upgrade cannot be judged; all that follows can.
#[test]
fn a_flow_of_programs_with_checkpoints_goes_on_without_those() {
    for (checkpoints, verdict) in [(1, Verdict::Drop(Reason::Untraced)), (0, Verdict::Pass)] {
        let mut replay = guarded();
        pass(&mut replay, 0, &message(192)[..100]);
        if checkpoints == 0 {
            replay.acknowledge(100);
        }
        // As they left it; where the ledger is now were others' bytes.
        replay.flow.format = checkpoints << 8 | 7;
        replay.flow.provisional = 0x8000_0000;
        replay.flow.traced_from = replay.flow.client.next;
        replay.flow.traces = 0;
        replay.flow.adopt();
        let again = replay.client(0, &mut message(192)[..100].to_vec(), &mut Allowance::new(0));
        assert_eq!(again, verdict);
        pass(&mut replay, 100, &message(192)[100..]);
        pass(&mut replay, 100, &message(192)[100..]);
        pass(&mut replay, 200, &message(192));
        pass(&mut replay, 200, &message(192));
        replay.acknowledge(300);
        pass(&mut replay, 250, &message(192)[50..]);
        assert_eq!((replay.flow.frames_in, replay.flow.state), (2, state::OPEN));
    }
}
