//! Streams known to the oracle, as captures: frames, boundaries, violations match.

mod common;

use common::{KEPT, Talk, Told, inspected};
use fastrand::Rng;
use ws_guard_common::frame::Violation;
use ws_guard_inspect::{
    Side, What,
    finding::{Broken, Kind},
};
use ws_guard_oracle::{
    cases::{cases, one_in},
    frames::{self, Counts},
    streams,
};

/// Number of streams of an ordinary run, in each direction.
const STREAMS: u64 = 120;
/// Longest payload of a segment in bytes, with room for overlaps.
const MOST: usize = 60_000;

/// Stream of one direction, and the ends of its segments.
struct Sent {
    side: Side,
    first: u32,
    stream: Vec<u8>,
    boundaries: Vec<usize>,
}

impl Sent {
    fn new(rng: &mut Rng, side: Side, first: u32) -> Sent {
        let frames = rng.usize(1..40);
        let stream = streams::stream(rng, side == Side::Client, frames);
        let boundaries = streams::boundaries(rng, stream.len(), MOST);
        Sent { side, first, stream, boundaries }
    }

    /// Return the segments: offset and bytes.
    fn segments(&self) -> Vec<(usize, &[u8])> {
        let starts = std::iter::once(0).chain(self.boundaries.iter().copied());
        let pairs = starts.zip(&self.boundaries);
        pairs.map(|(start, end)| (start, &self.stream[start..*end])).collect()
    }

    fn oracle_side(&self, deflate: bool) -> frames::Side {
        frames::Side { from_client: self.side == Side::Client, deflate }
    }

    /// Check position, opcode and length of each complete frame.
    fn check_frames(&self, told: &Told, deflate: bool) {
        let wanted = frames::frames(&self.stream, self.oracle_side(deflate));
        let wanted =
            wanted.iter().filter(|f| f.end.is_some_and(|e| e <= self.stream.len() as u128));
        let wanted = wanted.map(|frame| {
            let length = frame.end.unwrap() - frame.header_end.unwrap();
            (self.first.wrapping_add(frame.at as u32), frame.opcode, length as u64)
        });
        let found = told.frames(self.side);
        for (seq, _, frame) in &found {
            let at = seq.wrapping_sub(self.first) as usize;
            let whole = u64::from(frame.header) + frame.length;
            let kept = &self.stream[at..at + whole.min(KEPT as u64) as usize];
            assert_eq!(frame.bytes, kept, "first bytes of frame {}", frame.frame);
        }
        let found = found.iter().map(|(seq, _, frame)| (*seq, frame.opcode, frame.length));
        assert_eq!(found.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    }

    /// Check the counts that do not depend on segment boundaries.
    fn check_counts(&self, told: &Told, wanted: &Counts) {
        let flow = told.flow();
        let (frames, pings, pongs) = match self.side {
            Side::Client => (flow.frames_client, flow.pings_client, flow.pongs_client),
            Side::Server => (flow.frames_server, flow.pings_server, flow.pongs_server),
        };
        assert_eq!((frames, pings, pongs), (wanted.frames, wanted.pings, wanted.pongs));
        let mut by_kind = [0; Violation::COUNT];
        for finding in told.of(self.side) {
            if let What::Violation { violation: Broken::Header(kind), .. } = finding.what {
                by_kind[kind as usize] += 1;
            }
        }
        assert_eq!(by_kind, wanted.by_kind);
    }

    /// Check the counts that depend on boundaries, and the findings on each of these.
    fn check_boundaries(&self, told: &Told, wanted: &Counts) {
        let side = match self.side {
            Side::Client => &told.flow().of_client,
            Side::Server => &told.flow().of_server,
        };
        let found = (side.coalesced_segments, side.split_headers, side.split_frames);
        assert_eq!(found, (wanted.coalesced_segments, wanted.split_headers, wanted.split_frames));
        let of_kind = |kind| told.of(self.side).iter().filter(|f| f.what.kind() == kind).count();
        assert_eq!(of_kind(Kind::SplitHeader) as u64, wanted.split_headers);
        self.check_split_points(told);
    }

    /// Check that the suggested split points are the frames that start inside segments.
    fn check_split_points(&self, told: &Told) {
        let frames = frames::frames(&self.stream, self.oracle_side(false));
        let inside =
            frames.iter().map(|f| f.at).filter(|at| *at > 0 && !self.boundaries.contains(at));
        let mut found = Vec::new();
        for finding in told.of(self.side) {
            if let What::SplitPoint { offsets, .. } = &finding.what {
                let base = finding.at.seq.wrapping_sub(finding.at.offset).wrapping_sub(self.first);
                found.extend(offsets.iter().map(|offset| (base + offset) as usize));
            }
        }
        assert_eq!(found, inside.collect::<Vec<_>>());
    }
}

fn opened(rng: &mut Rng) -> (Talk, bool) {
    let deflate = one_in(rng, 3);
    let first = [streams::initial(rng), streams::initial(rng)];
    (Talk::open(one_in(rng, 3), first, deflate), deflate)
}

/// Generate both directions, alternating at random.
fn both(rng: &mut Rng, talk: &Talk) -> [Sent; 2] {
    [Side::Client, Side::Server].map(|side| Sent::new(rng, side, talk.next[side as usize]))
}

#[test]
fn in_order_all_is_as_the_oracle_says() {
    cases(STREAMS, |rng| {
        let (mut talk, deflate) = opened(rng);
        let sent = both(rng, &talk);
        let [mut client, mut server] = [0, 1].map(|i| sent[i].segments().into_iter().peekable());
        while client.peek().is_some() || server.peek().is_some() {
            let (side, next) = match rng.bool() {
                true => (Side::Client, client.next()),
                false => (Side::Server, server.next()),
            };
            if let Some((_, bytes)) = next {
                talk.send(side, bytes);
            }
        }
        let (told, _) = inspected(&talk.pcap());
        for sent in &sent {
            let wanted = frames::count(&sent.stream, sent.oracle_side(deflate), &sent.boundaries);
            sent.check_frames(&told, deflate);
            sent.check_counts(&told, &wanted);
            sent.check_boundaries(&told, &wanted);
        }
    });
}

/// Nearby segments swapped, repeated or overlapping: the frames stay the same.
#[test]
fn in_any_order_the_frames_are_the_same() {
    cases(STREAMS, |rng| {
        let (mut talk, deflate) = opened(rng);
        let sent = Sent::new(rng, Side::Client, talk.next[0]);
        let mut parts: Vec<(usize, &[u8])> = Vec::new();
        for (at, bytes) in sent.segments() {
            let earlier = if one_in(rng, 5) { rng.usize(..50) } else { 0 };
            let from = at.saturating_sub(earlier);
            let part = (from, &sent.stream[from..at + bytes.len()]);
            let copies = if one_in(rng, 6) { 2 } else { 1 };
            parts.extend(std::iter::repeat_n(part, copies));
        }
        for index in 1..parts.len() {
            if one_in(rng, 4) {
                parts.swap(index - 1, index);
            }
        }
        for (at, bytes) in parts {
            talk.put(Side::Client, sent.first.wrapping_add(at as u32), bytes, "PA");
        }
        let (told, _) = inspected(&talk.pcap());
        let wanted = frames::count(&sent.stream, sent.oracle_side(deflate), &sent.boundaries);
        sent.check_frames(&told, deflate);
        sent.check_counts(&told, &wanted);
    });
}
