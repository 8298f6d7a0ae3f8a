//! Search for frames in a stream whose beginning was not seen.
//!
//! A client's frame header alone proves nothing: about one in forty offsets in random bytes looks
//! like one. But its length tells where the next one has to be. A [`Search`] follows such chains
//! through a segment, from the end of the last segment's chain and from each of its first bytes;
//! [`PROOF`] headers in a row count as frames. HTTP, HTTP/2 and TLS have no such chains: their
//! first bytes lack the mask bit or set bits that RFC 6455 reserves.

use core::hint::black_box;

use crate::{
    frame::{self, MASK, MAX_CONTROL_PAYLOAD, RSV, RSV1, opcode},
    record,
    seq::{after, before},
    tracker::Segment,
};

/// Headers in a row that prove a chain: random bytes have them once in 10¹² offsets.
pub const PROOF: u32 = 8;
/// The same for TLS records, whose headers are much longer.
pub const RECORDS_PROOF: u32 = 3;
/// Longest frame in a chain, in bytes: a longer one would end every search.
pub const LONGEST: u32 = 1 << 20;
/// Number of offsets at which a chain may begin in a segment: twice the length of a control frame.
const PLACES: u32 = 262;
/// Maximum of steps of a search in one segment.
pub const MAX_STEPS: u32 = 1024;

/// Candidate for a stream's next header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Candidate {
    /// Sequence number of that header.
    pub next: u32,
    /// Headers in a row that led there; 0 for none.
    pub proof: u32,
}

/// A search through one segment. Offsets count from its first payload byte.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Search {
    /// Candidate from earlier segments.
    known: Candidate,
    /// Sequence number of the segment's first byte.
    base: u32,
    /// Length of its payload in bytes.
    len: u32,
    /// Offset of the chain's next header.
    at: u32,
    /// Offset of its first header in this segment.
    origin: u32,
    /// Its headers so far, those in earlier segments included.
    count: u32,
    /// Next offset to try.
    place: u32,
    /// The chain continues from the known candidate.
    continues: bool,
    /// The frames come from the server: [`Search::of_server`].
    from_server: bool,
    /// TLS records are searched for: [`Search::of_records`].
    records: bool,
    pub _pad: u8,
}

impl Search {
    /// Begin a search through `len` bytes at sequence number `base`.
    #[inline(always)]
    pub fn new(known: Candidate, base: u32, len: u32) -> Search {
        let reaches = known.proof > 0
            && !after(base, known.next)
            && before(known.next, base.wrapping_add(len));
        let at = if reaches { known.next.wrapping_sub(base) } else { 0 };
        Search {
            known,
            base,
            len,
            at,
            origin: at,
            count: if reaches { known.proof } else { 0 },
            place: !reaches as u32,
            continues: reaches,
            from_server: false,
            records: false,
            _pad: 0,
        }
    }

    /// Search for TLS records instead of frames, if `yes`.
    #[inline(always)]
    pub const fn of_records(self, yes: bool) -> Search {
        Search { records: yes, ..self }
    }

    /// Headers in a row that prove a chain.
    #[inline(always)]
    const fn proof(&self) -> u32 {
        if self.records { RECORDS_PROOF } else { PROOF }
    }

    /// Begin a check whether a server's segment of `len` bytes consists of whole frames:
    /// [`Search::is_whole`].
    #[inline(always)]
    pub fn of_server(base: u32, len: u32) -> Search {
        let whole = Search::new(Candidate::default(), base, len);
        Search { from_server: true, place: PLACES, ..whole }
    }

    /// Check whether the segment consists of whole frames.
    /// Segments of WebSocket servers often do: their writes are small, or they wait for more. Segments
    /// of other protocols hardly ever do.
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.count > 0 && self.origin == 0 && self.at == self.len
    }

    /// Read one header. `true` when the search is over.
    #[inline(always)]
    pub fn step<S: Segment>(&mut self, segment: &S) -> bool {
        if self.at >= self.len {
            return true;
        }
        let length = if self.records {
            record::data_at(segment, self.at)
        } else {
            frame_at(segment, self.at, self.from_server)
        };
        if length != 0 {
            self.count += 1;
            self.at += length;
            return self.count >= self.proof() && !self.from_server;
        }
        self.count = 0;
        self.continues = false;
        (self.at, self.origin) = (self.place, self.place);
        self.place += 1;
        self.at >= PLACES
    }

    /// Search to the end.
    pub fn run<S: Segment>(&mut self, segment: &S) {
        let mut steps = 0;
        while steps < MAX_STEPS && !self.step(segment) {
            steps += 1;
        }
    }

    /// Sequence number of the first frame of a proven chain in this segment.
    #[inline(always)]
    pub const fn proven(&self) -> Option<u32> {
        if self.count >= self.proof() { Some(self.base.wrapping_add(self.origin)) } else { None }
    }

    /// Candidate after the segment.
    #[inline(always)]
    pub fn known(&self) -> Candidate {
        let end = self.base.wrapping_add(self.len);
        let inside = self.known.proof > 0 && !before(self.known.next, end);
        let reached = self.count > 0 && self.at >= self.len;
        // Clients mostly begin a segment with a frame. A chain from any other offset has to be
        // longer.
        let likely = self.continues || self.origin == 0 || self.count > 2;
        if reached && likely && (!inside || self.count >= self.known.proof) {
            Candidate { next: self.base.wrapping_add(self.at), proof: self.count }
        } else if inside {
            self.known
        } else {
            Candidate::default()
        }
    }
}

/// Length of the frame at `at`, in bytes; 0 when that side sends no such header, when the segment
/// splits it, or when it claims more than [`LONGEST`].
#[inline(always)]
fn frame_at<S: Segment>(segment: &S, at: u32, from_server: bool) -> u32 {
    let Some(word) = segment.u16_at(at) else {
        return 0;
    };
    let (first, second) = ((word >> 8) as u8, word as u8);
    let opcode = first & frame::OPCODE;
    let len7 = u32::from(second & frame::LEN7);
    let allowed = if opcode == opcode::TEXT || opcode == opcode::BINARY { RSV1 } else { 0 };
    let key = if from_server { 0 } else { 4 };
    // A server's fragment does not count either: in HTTP/2 many bytes look like empty ones.
    let fragment = from_server && first & frame::FIN == 0;
    if fragment
        || (second & MASK == 0) != from_server
        || first & RSV & !allowed != 0
        || opcode::is_reserved(opcode)
    {
        return 0;
    }
    if opcode::is_control(opcode) {
        let whole = first & frame::FIN != 0 && len7 <= MAX_CONTROL_PAYLOAD as u32;
        return if whole { 2 + key + len7 } else { 0 };
    }
    // Servers accept lengths in more bytes than they need, and do not write them.
    if len7 == 126 {
        return match segment.u16_at(at + 2) {
            Some(extended) if extended >= 126 || !from_server => 4 + key + u32::from(extended),
            _ => 0,
        };
    }
    if len7 == 127 {
        // Or LLVM reads both lengths with one check of bounds, which verifiers before Linux 6.12 do
        // not follow.
        return match segment.u64_at(black_box(at + 2)) {
            Some(extended) if extended <= LONGEST as u64 && (extended > 0xFFFF || !from_server) => {
                10 + key + extended as u32
            }
            _ => 0,
        };
    }
    2 + key + len7
}
