//! Cost of each defence: packets of lying clients, and optional settings.
use ws_guard_common::maps::{
    Counter::{self, *},
    action,
};
use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::rows::{COSTLIEST, Hook, Opening, Row, pings};

/// A request without an upgrade: read to its end, and forgotten.
const PLAIN_REQUEST: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: server\r\nAccept: */*\r\n\r\n";
/// Bytes missing before a packet: more than any segment holds.
const SKIPPED: u32 = 3_000;
/// Nearly the maximum of bytes kept behind a gap.
const KEPT: usize = 60 * 1024;
/// Maximum cost of their refused filler in look-ups: no walk through them.
const FILLER: f64 = 8.0;
/// Excess of an acknowledgement over the sent bytes: more than a window.
const FUTURE: u32 = 50_000_000;

/// Return bytes that contain no frames.
fn noise() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..100).map(|_| random.u8(..)).collect()
}

/// Expect that the row's packet is dropped repeatedly, for this reason.
fn refused(row: Row, reason: Counter) -> Row {
    let tracked = matches!(reason, DroppedGap | DroppedUnreadable).into();
    let mut row = row.work(&[(reason, 1), (Tracked, tracked)]).dropped();
    row.again = true;
    row
}

/// Return the rows at `hook`: packets of clients, and settings.
pub fn rows(hook: Hook, program: &'static str) -> Vec<Row> {
    let row = |name| Row::new(hook, name, program);
    let mut kept = row("behind a gap, compared and copied");
    (kept.skips, kept.again) = (SKIPPED, true);
    let mut rows = vec![kept.work(&[(Tracked, 1), (Gaps, 1), (DroppedGap, 0), (Frames, 0)])];
    rows.push(filler(&row));
    rows.extend(crowded(&row));
    rows.extend(dropped(&row));
    rows.extend(sent_again(&row));
    rows.extend(unopened(&row));
    rows.extend(settings(&row));
    rows
}

/// Return the row of a costly filler before the maximum of kept bytes.
/// Its frames take the most steps: refused, it comes again and again.
fn filler(row: &dyn Fn(&'static str) -> Row) -> Row {
    let mut filler = row("the filler before 60 KiB of two-byte frames, again and again");
    filler.payload = encode(&[Frame::new(opcode::TEXT, [b'x'; 50])]);
    filler.behind = [0x81, 0].repeat(KEPT / 2);
    refused(filler, DroppedGap).times(FILLER)
}

/// Return rows with the maximum of frames in a segment, without a fast path.
fn crowded(row: &dyn Fn(&'static str) -> Row) -> Vec<Row> {
    let full = |name, frame: &[u8], count: u64| {
        let row = row(name).payload(frame.repeat(count as usize));
        row.work(&[(Tracked, 1), (Frames, count)]).acknowledged().times(COSTLIEST)
    };
    let unmasked = row("720 frames without a key").payload([0x81, 0].repeat(720));
    vec![
        full("240 pongs", &[0x8A, 0x80, 1, 2, 3, 4], 240),
        full("240 empty fragments", &[0x00, 0x80, 1, 2, 3, 4], 240),
        full("240 frames of no known kind", &[0x83, 0x80, 1, 2, 3, 4], 240),
        refused(unmasked, DroppedUnreadable).times(COSTLIEST),
    ]
}

fn dropped(row: &dyn Fn(&'static str) -> Row) -> Vec<Row> {
    // Nothing of a throttled source is kept.
    let mut gap = row("behind a gap, throttled, dropped");
    (gap.skips, gap.throttled) = (SKIPPED, Some(action::DEFUSE));
    let mut ruled = row("the same, with 4,000 rules");
    (ruled.skips, ruled.throttled, ruled.rules) = (SKIPPED, Some(action::DEFUSE), true);
    let mut forged = row("forged acknowledgement, dropped");
    forged.ack_ahead = FUTURE;
    let mut fragment = row("first fragment, dropped");
    fragment.fragment = true;
    let mut early = row("data before the answer, dropped");
    early.opening = Opening::Request;
    vec![
        refused(gap, DroppedGap),
        refused(ruled, DroppedGap),
        refused(forged, DroppedForged),
        refused(fragment, DroppedFragment),
        refused(early, DroppedEarly),
    ]
}

/// Return rows of retransmitted segments: walked again, and compared with their traces.
fn sent_again(row: &dyn Fn(&'static str) -> Row) -> Vec<Row> {
    let again = |name, payload: Vec<u8>| {
        let mut row = row(name).payload(payload.clone());
        (row.before, row.again) = (payload, true);
        row.work(&[(Tracked, 1), (Rewalked, 1), (Frames, 0), (Pings, 0)])
    };
    vec![
        again("sent again, 1 frame", encode(&[Frame::new(opcode::TEXT, [b'x'; 100])])),
        again("sent again, 1 ping", pings(1)),
        again("sent again, 32 pings", pings(32)),
    ]
}

/// Return rows of connections without a flow.
fn unopened(row: &dyn Fn(&'static str) -> Row) -> Vec<Row> {
    let unfollowed = [(Protected, 1), (Tracked, 0), (FlowsJoined, 0)];
    let mut nothing = row("no flow, no request").payload(noise()).work(&unfollowed);
    nothing.opening = Opening::Nothing;
    let mut request = row("request without upgrade").payload(PLAIN_REQUEST.to_vec());
    request.opening = Opening::Nothing;
    let mut midstream = row("older than the guard, searched").payload(noise()).work(&unfollowed);
    midstream.opening = Opening::Midstream;
    vec![nothing, request.work(&unfollowed), midstream]
}

/// Return rows of ordinary packets under costly settings.
fn settings(row: &dyn Fn(&'static str) -> Row) -> Vec<Row> {
    let one = [(Tracked, 1), (Frames, 1)];
    let mut ping = row("1 ping, with 4,000 rules").pings(1).acknowledged();
    ping.rules = true;
    let mut data = row("data, 1 frame, limits of classes").work(&one).acknowledged();
    data.classes = true;
    let pong = encode(&[Frame::new(opcode::PONG, [])]);
    let mut pong = row("1 pong, limits of classes").payload(pong).work(&one).acknowledged();
    (pong.classes, pong.limited) = (true, 1);
    let mut inside = row("data, 1 frame, inside VXLAN").work(&one).acknowledged();
    inside.tunnel = true;
    vec![ping, data, pong, inside]
}
