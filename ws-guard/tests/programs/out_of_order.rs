//! Segments behind a gap: they pass, and the gap's filler is judged by them.
use ws_guard_common::{
    flow::state,
    maps::{Counter::*, action},
    out_of_order::RANGES,
};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    packets::flag,
};

use crate::case::{Case, case, pings, rate, text};

pub fn cases() -> Vec<Case> {
    let mut cases = filled();
    cases.extend(several());
    cases.extend(refused());
    cases.extend(again());
    cases.extend(not_kept());
    cases
}

/// Return a binary frame of 8 bytes of header and this payload.
fn binary(payload: &[u8]) -> Vec<u8> {
    encode(&[Frame::new(opcode::BINARY, payload)])
}

/// Length of `text("x")`, 7 bytes: the gap before the next bytes in these rows.
const GAP: i64 = 7;

/// The beginning of the second range in these rows, behind `pings(1)` and another `text("x")`.
const SECOND: i64 = GAP + 6 + 7;

fn filled() -> Vec<Case> {
    let long = [binary(&[7; 300]), pings(2)].concat();
    let split = [text("x"), pings(2)].concat();
    let burst = pings(31);
    vec![
        case("a gap is filled, and what came behind it is counted")
            .open()
            .client_at(GAP, pings(3))
            .client_at(GAP + 18, text("y"))
            .client_at(0, text("x"))
            .client_at(GAP + 25, pings(28))
            .defused(&[27 * 6])
            .leaves(state::OPEN)
            .counts(&[
                (Gaps, 2),
                (DroppedGap, 0),
                (Frames, 33),
                (Pings, 31),
                (Coalesced, 2),
                (Defused, 1),
            ]),
        case("nothing of it is counted before")
            .open()
            .client_at(GAP, pings(3))
            .leaves(state::OPEN)
            .counts(&[(Gaps, 1), (Frames, 0), (Pings, 0)]),
        case("in two pieces")
            .open()
            .client_at(GAP, pings(1))
            .client_at(0, &text("x")[..3])
            .client_at(3, &text("x")[3..])
            .client_at(GAP + 6, pings(1))
            .counts(&[(Gaps, 1), (Frames, 3), (Pings, 2), (SplitFrames, 1)]),
        case("a header cut between the filler and what is kept")
            .open()
            .client_at(8, &split[8..])
            .client_at(0, &split[..8])
            .client_at(19, text("z"))
            .counts(&[(Gaps, 1), (Frames, 4), (Pings, 2), (SplitHeaders, 1), (DroppedGap, 0)]),
        case("a filler whose frame ends inside what is kept")
            .open()
            .client_at(200, &long[200..])
            .client_at(0, &long[..150])
            .client_at(150, &long[150..200])
            .client_at(long.len() as i64, text("z"))
            .counts(&[(Gaps, 1), (Frames, 4), (Pings, 2), (SplitFrames, 1), (DroppedGap, 0)]),
        case("a filler that overlaps what is kept, with the same bytes")
            .open()
            .client_at(GAP, &split[7..])
            .client_at(0, &*split)
            .client_at(19, pings(28))
            .client_at(187, pings(1))
            .defused(&[0])
            .counts(&[(Frames, 32), (Pings, 31), (DroppedGap, 0), (DroppedChanged, 0)]),
        case("violations behind a gap are counted")
            .open()
            .client_at(GAP, [0x83, 0x80, 1, 2, 3, 4])
            .client_at(0, text("x"))
            .violates(&[ws_guard_common::frame::Violation::ReservedOpcode])
            .counts(&[(Frames, 2)]),
        case("a filler over the limit, and again: the same ping is defused")
            .open()
            .client_at(186, text("x"))
            .client_at(0, &*burst)
            .defused(&[180])
            .client_at(0, &*burst)
            .defused(&[180])
            .counts(&[(Gaps, 1), (Frames, 32), (Pings, 31), (Defused, 1), (Rewalked, 1)]),
        case("many segments behind a gap")
            .open()
            .client_at(GAP, pings(1))
            .client_at(GAP + 6, pings(1))
            .client_at(GAP + 12, pings(1))
            .client_at(GAP + 18, pings(1))
            .client_at(GAP + 24, pings(1))
            .client_at(GAP + 30, pings(1))
            .client_at(GAP + 36, pings(1))
            .client_at(GAP + 42, pings(1))
            .client_at(GAP + 48, pings(1))
            .client_at(GAP + 54, pings(1))
            .client_at(0, text("x"))
            .server(GAP + 48, "")
            .client_at(GAP + 48, pings(1))
            .counts(&[(Gaps, 10), (Frames, 11), (Pings, 10), (Rewalked, 1), (DroppedGap, 0)]),
    ]
}

/// Several gaps: the first at 0, the second before `SECOND`.
fn several() -> Vec<Case> {
    let long = [binary(&[7; 300]), pings(2)].concat();
    let all = [text("x"), pings(1), text("y"), pings(2)].concat();
    let split = [pings(1), text("y")[..3].to_vec()].concat();
    let counts = [(Gaps, 2), (DroppedGap, 0), (Frames, 6), (Pings, 4)];
    vec![
        case("two gaps are filled, the first one first")
            .open()
            .client_at(GAP, pings(1))
            .client_at(SECOND, pings(2))
            .client_at(0, text("x"))
            .client_at(GAP + 6, text("y"))
            .client_at(SECOND + 12, pings(1))
            .leaves(state::OPEN)
            .counts(&counts)
            .counts(&[(Coalesced, 1), (SplitFrames, 0)]),
        case("what is past the second gap is not counted before that is filled")
            .open()
            .client_at(GAP, pings(1))
            .client_at(SECOND, pings(2))
            .client_at(0, text("x"))
            .counts(&[(Gaps, 2), (DroppedGap, 0), (Frames, 2), (Pings, 1)]),
        case("two gaps are filled, the second one first")
            .open()
            .client_at(GAP, pings(1))
            .client_at(SECOND, pings(2))
            .client_at(GAP + 6, text("y"))
            .client_at(0, text("x"))
            .client_at(SECOND + 12, pings(1))
            .leaves(state::OPEN)
            .counts(&[(Gaps, 3), (DroppedGap, 0), (Frames, 6), (Pings, 4), (Coalesced, 1)]),
        case("the second range comes before the first")
            .open()
            .client_at(SECOND, pings(2))
            .client_at(GAP, pings(1))
            .client_at(0, text("x"))
            .client_at(GAP + 6, text("y"))
            .client_at(SECOND + 12, pings(1))
            .counts(&counts),
        case("a filler of both gaps, with the same bytes")
            .open()
            .client_at(GAP, &all[7..13])
            .client_at(SECOND, &all[20..])
            .client_at(0, &*all)
            .client_at(SECOND + 12, pings(1))
            .counts(&counts),
        case("a kept segment over both ranges, with the same bytes")
            .open()
            .client_at(GAP, &all[7..13])
            .client_at(SECOND, &all[20..])
            .client_at(GAP - 2, &all[5..])
            .client_at(0, &all[..5])
            .client_at(SECOND + 12, pings(1))
            .counts(&[(Gaps, 3), (DroppedGap, 0), (Frames, 6), (Pings, 4)]),
        case("a frame's payload goes on past both gaps")
            .open()
            .client_at(100, &long[100..150])
            .client_at(200, &long[200..])
            .client_at(0, &long[..100])
            .client_at(150, &long[150..200])
            .client_at(long.len() as i64, text("z"))
            .counts(&[(Gaps, 2), (Frames, 4), (Pings, 2), (SplitFrames, 1), (DroppedGap, 0)]),
        case("a header cut by the second gap")
            .open()
            .client_at(GAP, &*split)
            .client_at(SECOND, pings(2))
            .client_at(0, text("x"))
            .client_at(GAP + 9, &text("y")[3..])
            .client_at(SECOND + 12, pings(1))
            .counts(&counts)
            .counts(&[(SplitHeaders, 1), (SplitFrames, 1)]),
        case("new gaps while others are filled")
            .open()
            .client_at(GAP, pings(1))
            .client_at(SECOND, pings(2))
            .client_at(0, text("x"))
            .client_at(SECOND + 12 + 7, pings(1))
            .client_at(GAP + 6, text("y"))
            .client_at(SECOND + 12, text("z"))
            .client_at(SECOND + 25, text("w"))
            .counts(&[(Gaps, 3), (DroppedGap, 0), (Frames, 8), (Pings, 4)]),
        case("pings over the limit past the second gap: only the first is filled")
            .open()
            .client_at(GAP, pings(1))
            .client_at(SECOND, pings(30))
            .client_at(0, text("x"))
            .client_at(GAP + 6, text("y"))
            .dropped()
            .client_at(GAP + 6, text("y"))
            .dropped()
            .counts(&[(Gaps, 2), (DroppedGap, 2), (Frames, 2), (Pings, 1), (Throttled, 1)]),
        case("and of two gaps that one frame passes over, none")
            .open()
            .client_at(100, &long[100..150])
            .client_at(308, pings(31))
            .client_at(0, &long[..100])
            .dropped()
            .counts(&[(Gaps, 2), (DroppedGap, 1), (Frames, 0), (Pings, 0), (Throttled, 1)]),
        case("other bytes in place of those past the second gap")
            .open()
            .client_at(GAP, pings(1))
            .client_at(SECOND, text("abc"))
            .client_at(SECOND, [pings(1), vec![0x82, 0x80, 1]].concat())
            .dropped()
            .client_at(GAP + 6, [text("y"), pings(1), vec![0x82, 0x80, 1]].concat())
            .dropped()
            .client_at(0, [text("x"), pings(1), text("y"), pings(1)].concat())
            .dropped()
            .client_at(0, text("x"))
            .client_at(GAP + 6, text("y"))
            .counts(&[(Gaps, 4), (DroppedGap, 3), (Frames, 4), (Pings, 1)]),
        eight(),
    ]
}

/// Eight gaps, all filled from the last to the first, and one too many.
fn eight() -> Case {
    let ranges = i64::try_from(RANGES).unwrap_or(0);
    let mut case = case("a gap for each range, and no further one").open();
    for range in 0..ranges {
        case = case.client_at(GAP + 13 * range, pings(1));
    }
    case = case.client_at(GAP + 13 * ranges, pings(1)).dropped();
    for range in (0..ranges).rev() {
        case = case.client_at(13 * range, text("x"));
    }
    let both = 2 * RANGES as u64;
    case.counts(&[
        (Gaps, both),
        (DroppedGap, 1),
        (Frames, both),
        (Pings, RANGES as u64),
        (Coalesced, 1),
    ])
}

fn refused() -> Vec<Case> {
    vec![
        case("pings over the limit behind a gap: it is not filled")
            .open()
            .client_at(GAP, pings(31))
            .client_at(0, text("x"))
            .dropped()
            .client_at(0, text("x"))
            .dropped()
            .counts(&[(Gaps, 1), (DroppedGap, 2), (Frames, 0), (Pings, 0), (Throttled, 1)]),
        case("so far behind that no window reaches there: no slot is taken")
            .open()
            .client_at(GAP + (1 << 20), text("y"))
            .dropped()
            .client(text("x"))
            .counts(&[(Gaps, 1), (DroppedGap, 1), (Frames, 1)]),
        case("over the connection's own limit")
            .policy(|policy| policy.connection_rate = rate(5, 10_000))
            .open()
            .client_at(GAP, pings(6))
            .client_at(0, text("x"))
            .dropped()
            .counts(&[(Gaps, 1), (DroppedGap, 1), (Frames, 0), (Throttled, 1)]),
        case("the filler's own pings count with them")
            .open()
            .client_at(12, pings(29))
            .client_at(0, pings(2))
            .dropped()
            .counts(&[(DroppedGap, 1), (Pings, 0), (Throttled, 1)]),
        case("the source is throttled meanwhile: the connection's share may pass")
            .open()
            .client_at(GAP, pings(2))
            .throttle()
            .client_at(0, text("x"))
            .counts(&[(DroppedGap, 0), (Pings, 2), (Spared, 2)]),
        case("and no more")
            .open()
            .client_at(GAP, pings(3))
            .throttle()
            .client_at(0, text("x"))
            .dropped()
            .counts(&[(DroppedGap, 1), (Pings, 0)]),
        case("other bytes in place of those that are kept, by the filler")
            .open()
            .client_at(GAP, text("abc"))
            .client_at(0, [text("x"), pings(1), vec![0x82, 0x80, 1]].concat())
            .dropped()
            .client_at(0, text("x"))
            .counts(&[(DroppedGap, 1), (Frames, 2), (Pings, 0)]),
    ]
}

fn again() -> Vec<Case> {
    let (kept, two) = (text("abc"), pings(2));
    vec![
        case("what is kept may come again")
            .open()
            .client_at(GAP, &*kept)
            .client_at(GAP, &*kept)
            .client_at(GAP, &kept[..4])
            .client_at(GAP + 4, [&kept[4..], &pings(1)].concat())
            .client_at(0, text("x"))
            .counts(&[(Gaps, 4), (DroppedGap, 0), (Frames, 3), (Pings, 1)]),
        case("but not with other bytes")
            .open()
            .client_at(GAP, &*kept)
            .client_at(GAP, [pings(1), vec![0x82, 0x80, 1]].concat())
            .dropped()
            .client_at(0, text("x"))
            .counts(&[(Gaps, 2), (DroppedGap, 1), (Frames, 2), (Pings, 0)]),
        case("what was kept comes again behind its gap: the same verdict")
            .open()
            .client_at(GAP, &*two)
            .client_at(0, text("x"))
            .client_at(GAP, &*two)
            .client_at(GAP, text("other"))
            .dropped()
            .counts(&[(Rewalked, 2), (DroppedChanged, 1), (Frames, 3), (Pings, 2)]),
    ]
}

fn not_kept() -> Vec<Case> {
    vec![
        case("before a range, with other bytes in it")
            .open()
            .client_at(GAP, pings(1))
            .client_at(GAP - 1, pings(1))
            .dropped()
            .counts(&[(Gaps, 2), (DroppedGap, 1)]),
        case("of a connection over the limit")
            .open()
            .client(pings(31))
            .defused(&[180])
            .client_at(186 + GAP, text("y"))
            .dropped()
            .client_at(186, text("x"))
            .client_at(186 + GAP, text("y"))
            .counts(&[(Gaps, 1), (DroppedGap, 1), (Frames, 33)]),
        case("not of its neighbour")
            .open()
            .throttle()
            .client_at(GAP, text("y"))
            .client_at(0, text("x"))
            .counts(&[(Gaps, 1), (DroppedGap, 0), (Frames, 2)]),
        case("where classes of frames have limits")
            .policy(|policy| policy.flags |= ws_guard_common::maps::LIMITS_CLASSES)
            .open()
            .client_at(GAP, text("y"))
            .dropped()
            .counts(&[(Gaps, 1), (DroppedGap, 1)]),
        case("where the stream was joined in the middle")
            .server(0, [0x81, 1, b'x'])
            .client_at(0, pings(20))
            .client_at(130, text("y"))
            .dropped()
            .counts(&[(FlowsJoined, 1), (DroppedGap, 1)]),
        case("under drop as under defuse")
            .policy(|policy| policy.action = action::DROP)
            .open()
            .client_at(GAP, pings(31))
            .client_at(0, text("x"))
            .dropped()
            .counts(&[(DroppedGap, 1), (Throttled, 1)]),
        case("a reset behind a gap ends nothing")
            .open()
            .client_at(GAP, text("y"))
            .client_at(GAP, [])
            .with(|packet| packet.flags = flag::RST)
            .client_at(0, text("x"))
            .counts(&[(FlowsClosed, 0), (Frames, 2)]),
    ]
}
