//! Walk of a [`Tracker`] through one segment.
use super::{
    FAR, FROM_CLIENT, IN_MESSAGE, MESSAGE_UNKNOWN, RECORDS, RECORDS_BIT, RSV1_AGREED, STRIDE,
    STRIDE_BITS, Seen, Segment, TOP_SET, Tracker, mark_after,
};
use crate::{
    frame::{self, Header, Violation, Violations, opcode},
    ledger::Interval,
    record::{self, Record},
};

/// Flags that [`Walk::sprint`] and [`Walk::only`] compare: a client's frames, no message open.
const COMMON: u8 = IN_MESSAGE | MESSAGE_UNKNOWN | FROM_CLIENT | RECORDS;

/// Maximum of headers per step: as many as one [trace](crate::trail::Trace) has room for.
/// Eight are 8 % faster where a segment has many, but bring Linux 6.1 to the limit of what it
/// verifies.
pub const SPRINT: u32 = crate::trail::TOGETHER;
/// Maximum of steps in addition to one per header: for carried bytes, strides of a frame from an
/// earlier segment, and the end.
const MORE_STEPS: u32 = 16;
/// Maximum of TLS records in a segment at a connection's beginning: ClientHello, change of cipher,
/// early data, one spare.
const FEW: u32 = 4;
/// First two bytes of a header: FIN and the RSV bits, and the mask bit...
const BITS: u16 = 0xF080;
/// ...of a client's unfragmented frame...
const PLAIN: u16 = 0x8080;
/// ...which may have this one if agreed, in frames of [`DATA`].
const COMPRESSED: u16 = 0x4000;
/// One bit an opcode: text and binary, then also close, ping and pong.
const DATA: u16 = 1 << opcode::TEXT | 1 << opcode::BINARY;
const WHOLE: u16 = DATA | 1 << opcode::CLOSE | 1 << opcode::PING | 1 << opcode::PONG;

/// Result of [`Walk::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// Call again.
    More,
    /// The segment is walked to its end.
    Done,
    /// A ping is next, and [`Walk::budget`] is still [`Walk::ASK`]: set it and call again.
    Ask,
    /// The segment was not readable where it should be, or has more headers than honest frames can
    /// have.
    Unreadable,
}

/// Maximum of steps for a segment of `len` bytes of honest frames.
/// A client's have a key, without which a server ends the connection (RFC 6455, 5.1), so that a
/// header has at least six bytes; a server's has two, a record's five.
#[inline(always)]
const fn most_steps(flags: u8, len: u32) -> u32 {
    let shortest = match flags & (FROM_CLIENT | RECORDS) {
        FROM_CLIENT => frame::SHORTEST_MASKED,
        _ => 2,
    };
    len / shortest + MORE_STEPS
}

/// 1 if there are more pings than a budget has, otherwise 0. Without a branch: the kernel's verifier
/// would follow both sides of each ping.
#[inline(always)]
const fn exceeds(pings: u32, budget: u32) -> u32 {
    ((budget as u64).wrapping_sub(pings as u64) >> 63) as u32
}

/// Walk through one segment.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Current position in the stream.
    pub tracker: Tracker,
    /// Sequence number of the segment's first payload byte.
    base: u32,
    /// Length of its payload in bytes.
    len: u32,
    /// Steps left.
    steps: u32,
    /// Headers that begin before this sequence number were counted earlier...
    fresh_begin: u32,
    /// ...and those that begin before this one were also complete.
    fresh_complete: u32,
    /// Mark of the stream there.
    fresh_mark: u32,
    fresh_beyond: u32,
    /// Already counted pings that are defused again.
    pub defused: Interval,
    /// Number of already counted pings that may pass again; those after them are defused.
    pub old_budget: u32,
    old_pings: u32,
    /// Number of new pings that may pass; the others are defused. [`Walk::ASK`] until it is known.
    pub budget: u32,
    /// The walk reached the flow's own tracker: what came before was the same.
    pub joined: bool,
    /// The segment ends inside the masking key of a header that is otherwise whole and new.
    pub cuts_key: bool,
    /// Sequence number after the first byte of the latest ping that passes.
    passed_to: u32,
    /// Frames that begin here for the first time, by their first byte.
    pub frames: u32,
    /// PING frames among them.
    pub pings: u32,
    /// PONG frames among them.
    pub pongs: u32,
    /// Frames with a violation in the header.
    pub violations: u32,
    /// The kinds among them.
    pub kinds: Violations,
    /// New headers of the latest step.
    pub seen: Seen,
}

impl Walk {
    /// No budget is known yet: [`Walk::step`] stops at the first new ping.
    pub const ASK: u32 = u32::MAX;
    /// Every ping passes.
    pub const UNLIMITED: u32 = u32::MAX - 1;

    /// Begin a walk through the segment of `len` payload bytes at `base`.
    /// `tracker` is at or after `base`; `known` is the position up to which the stream has been
    /// followed: `tracker` itself, unless this is a retransmission.
    #[inline(always)]
    pub const fn new(tracker: Tracker, known: &Tracker, base: u32, len: u32) -> Walk {
        Walk {
            tracker,
            base,
            len,
            steps: most_steps(tracker.flags, len),
            fresh_begin: known.next.wrapping_add((known.carried != 0) as u32),
            fresh_complete: known.next,
            fresh_mark: known.mark,
            fresh_beyond: known.beyond,
            defused: Interval { from: 0, len: 0 },
            old_budget: Self::UNLIMITED,
            old_pings: 0,
            budget: Self::ASK,
            joined: false,
            cuts_key: false,
            passed_to: known.next.wrapping_add((known.carried != 0) as u32),
            frames: 0,
            pings: 0,
            pongs: 0,
            violations: 0,
            kinds: Violations(0),
            seen: Seen { seq: 0, mark: 0, flags: 0, count: 0, words: [0; SPRINT as usize] },
        }
    }

    /// Record `count` new headers at the current position.
    #[inline(always)]
    fn sees(&mut self, count: u32) {
        self.seen.seq = self.tracker.next;
        self.seen.mark = self.tracker.mark;
        self.seen.flags = self.tracker.flags as u32;
        self.seen.count = count;
    }

    /// Note a walk that begins inside the split header at `known`: what came before it was the
    /// same.
    #[inline(always)]
    pub fn begins_at(&mut self, known: &Tracker) {
        let apart = (self.tracker.next ^ known.next) | (self.tracker.mark ^ known.mark);
        self.joined = apart == 0 && self.tracker.carried != 0;
    }

    /// Sequence number of the segment's first byte.
    #[inline(always)]
    pub const fn base(&self) -> u32 {
        self.base
    }

    /// Length of the segment's payload in bytes.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)] // A walk is no collection.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Lift the limit of steps, for a segment known to have few headers.
    #[inline(always)]
    pub const fn unbounded(mut self) -> Walk {
        self.steps = u32::MAX;
        self
    }

    /// Sequence number after the segment's last byte.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.base.wrapping_add(self.len)
    }

    /// Offset of the next byte to read; at least `len` when there is none in this segment.
    #[inline(always)]
    pub const fn at(&self) -> u32 {
        self.tracker.resume().wrapping_sub(self.base)
    }

    /// Check whether the segment's end splits a frame that begins in it: after its first byte,
    /// before its last.
    #[inline(always)]
    pub const fn splits_frame(&self) -> bool {
        let cuts = self.at() > self.len || self.tracker.carried != 0 || self.tracker.beyond != 0;
        self.frames > 0 && cuts
    }

    /// Check whether more than one frame begins in the segment.
    #[inline(always)]
    pub const fn coalesces(&self) -> bool {
        self.frames > 1
    }

    /// Check whether the last frame continues for more than `bytes` after the segment's end.
    #[inline(always)]
    pub const fn claims_more_than(&self, bytes: u32) -> bool {
        let behind = self.tracker.next.wrapping_sub(self.end());
        self.tracker.beyond != 0 || behind > bytes && behind < 1 << 31
    }

    /// Check whether the segment's end splits a header that no earlier segment had split; the walk
    /// started at `start`.
    #[inline(always)]
    pub const fn splits_header(&self, start: &Tracker) -> bool {
        let carried =
            self.tracker.carried != 0 && (start.carried == 0 || self.tracker.next != start.next);
        carried | self.cuts_key
    }

    /// Proceed to the next header.
    #[inline(always)]
    pub fn step<S: Segment>(&mut self, segment: &mut S) -> Step {
        let at = self.at();
        if self.tracker.carried == 0 {
            // Lengths that are strides apart have the same place and mark.
            let apart = (self.tracker.next ^ self.fresh_complete)
                | (self.tracker.mark ^ self.fresh_mark)
                | (self.tracker.beyond ^ self.fresh_beyond);
            self.joined |= apart == 0;
        }
        if at >= self.len {
            return Step::Done;
        }
        if self.steps == 0 {
            return Step::Unreadable;
        }
        self.steps -= 1;
        if self.tracker.beyond != 0 {
            self.tracker.beyond -= 1;
            self.tracker.next = self.tracker.next.wrapping_add(STRIDE);
            return Step::More;
        }
        if self.tracker.carried == 0 {
            if self.sprint(segment) {
                return Step::More;
            }
            if self.tracker.in_records() {
                return self.step_record(segment);
            }
        }
        // A single call for complete headers: two would double the work for the kernel's verifier,
        // and a nested one needs more stack than there is.
        let header = if self.tracker.carried != 0 {
            match self.carry(segment) {
                Step::Done => {}
                step => return step,
            }
            if self.tracker.in_records() {
                self.complete_carried_record(segment);
                return Step::More;
            }
            self.carried_header()
        } else {
            let Some(word) = segment.u16_at(at) else {
                return self.cut(segment);
            };
            let (first, second) = ((word >> 8) as u8, word as u8);
            let payload_len = match second & frame::LEN7 {
                126 => segment.u16_at(at + 2).map(u64::from),
                127 => segment.u64_at(at + 2),
                len => Some(u64::from(len)),
            };
            let Some(payload_len) = payload_len else {
                return self.cut(segment);
            };
            if !self.begin(segment, at, first) {
                return Step::Ask;
            }
            let header = Header { first, second, payload_len };
            let fresh = !crate::seq::before(self.tracker.next, self.fresh_begin);
            self.cuts_key = fresh & (self.len - at < header.len() as u32);
            header
        };
        self.complete(segment, header);
        Step::More
    }

    /// Pass up to [`SPRINT`] headers of the common kind: new, whole, with a 7 bit length, no
    /// fragments, no violations. `false` when the next one is of another kind.
    ///
    /// A shortcut with the result of as many steps.
    #[inline(always)]
    fn sprint<S: Segment>(&mut self, segment: &mut S) -> bool {
        let (mut next, mut mark) = (self.tracker.next, self.tracker.mark);
        if self.tracker.flags & COMMON != FROM_CLIENT
            || crate::seq::before(next, self.fresh_begin)
            || crate::seq::before(next, self.fresh_complete)
            || self.steps < SPRINT
        {
            return false;
        }
        let mut pings = self.pings;
        let agreed = (self.tracker.flags & RSV1_AGREED) as u16 * (COMPRESSED / RSV1_AGREED as u16);
        let mut i = 0;
        while i < SPRINT {
            let at = next.wrapping_sub(self.base);
            let Some(word) = segment.u16_near(at) else {
                break;
            };
            let (first, second) = ((word >> 8) as u8, word as u8);
            let opcode = first & frame::OPCODE;
            let payload_len = (second & frame::LEN7) as u32;
            let says_nothing = agreed * (DATA >> opcode & 1);
            if word & BITS & !says_nothing != PLAIN
                || WHOLE >> opcode & 1 == 0
                || payload_len > 125
                || self.len - at < 6
            {
                break;
            }
            if opcode == opcode::PING {
                if self.budget == Self::ASK {
                    break;
                }
                pings += 1;
                let over = exceeds(pings, self.budget);
                self.passes(next, over);
                if over != 0 {
                    segment.defuse(at);
                }
            }
            self.pongs += (opcode == opcode::PONG) as u32;
            let header = Header { first, second, payload_len: payload_len.into() };
            segment.header(next, header, Violations(0));
            if let Some(seen) = self.seen.words.get_mut(i as usize) {
                *seen = word;
            }
            mark = mark_after(mark, next, first, second, 0);
            next = next.wrapping_add(6 + payload_len);
            i += 1;
        }
        if next == self.tracker.next {
            return false;
        }
        self.sees(i);
        // This step is counted.
        self.steps -= i - 1;
        self.frames += i;
        self.pings = pings;
        (self.tracker.next, self.tracker.mark) = (next, mark);
        self.cuts_key = false;
        true
    }

    /// Finish the walk at once, if the segment is of the common kind: new bytes, in which exactly
    /// one frame begins, with a whole header of 7 or 16 bit length, no fragment and no violation.
    /// Otherwise nothing changes, and [`Walk::step`] has to do it.
    ///
    /// A shortcut with the result of the steps. A PING is counted as passed. Returns the header's
    /// first two bytes, or 0.
    #[inline(always)]
    pub fn only<S: Segment>(&mut self, segment: &S) -> u16 {
        let at = self.at();
        if self.tracker.flags & COMMON != FROM_CLIENT
            || self.tracker.carried != 0
            || self.tracker.beyond != 0
            || at >= self.len
        {
            return 0;
        }
        let Some(word) = segment.u16_at(at) else {
            return 0;
        };
        let (opcode, second) = ((word >> 8) as u8 & frame::OPCODE, word as u8);
        let mut payload_len = (second & frame::LEN7) as u32;
        let mut header_len = 6;
        if word & BITS != PLAIN || WHOLE >> opcode & 1 == 0 || payload_len == 127 {
            return 0;
        }
        if payload_len == 126 {
            let Some(extended) = segment.u16_at(at + 2) else {
                return 0;
            };
            payload_len = extended.into();
            header_len = 8;
            if extended < 126 || DATA >> opcode & 1 == 0 {
                return 0;
            }
        }
        self.pings = (opcode == opcode::PING) as u32;
        self.pongs = (opcode == opcode::PONG) as u32;
        self.budget = Self::UNLIMITED;
        self.only_one(word, header_len, payload_len)
    }

    /// [`Walk::only`] for a stream of TLS records.
    #[inline(always)]
    pub fn only_record<S: Segment>(&mut self, segment: &S) -> u16 {
        let at = self.at();
        if self.tracker.carried != 0 || at >= self.len {
            return 0;
        }
        // One after the other: as a pair they would be kept on the stack, read or not.
        let Some(word) = segment.u16_at(at) else {
            return 0;
        };
        let Some(length) = segment.u16_at(at + 3) else {
            return 0;
        };
        if !Record::new(word, length).violations().is_empty() {
            return 0;
        }
        self.only_one(word, record::HEADER as u32, length.into())
    }

    /// End of both: the one header has `header_len` bytes and begins with `word`.
    /// 0 where it is split, or another one follows.
    #[inline(always)]
    fn only_one(&mut self, word: u16, header_len: u32, payload_len: u32) -> u16 {
        let left = self.len - self.at();
        if left < header_len || header_len + payload_len < left {
            return 0;
        }
        let (first, second) = ((word >> 8) as u8, word as u8);
        self.tracker.mark = mark_after(self.tracker.mark, self.tracker.next, first, second, 0);
        self.tracker.next = self.tracker.next.wrapping_add(header_len + payload_len);
        self.frames = 1;
        word
    }

    /// Check whether the segment has the same bytes as the header that was split at `known`. Before
    /// the walk, which may defuse it; and only of one that [joins](Walk::joined) `known` in the end.
    #[inline(always)]
    pub fn agrees<S: Segment>(&self, segment: &S, known: &Tracker) -> bool {
        let at = known.next.wrapping_sub(self.base);
        let mut same = true;
        let mut i = 0u32;
        while i < frame::MAX_HEADER as u32 {
            // If the segment begins inside the header, the header's first bytes are before it.
            let place = at.wrapping_add(i);
            let both = i < known.carried as u32 && place < self.len;
            same &= !both || segment.u8_at(place) == Some(known.carry[i as usize]);
            i += 1;
        }
        same
    }

    /// Sequence number from which on no new ping passes.
    #[inline(always)]
    pub const fn passed_to(&self) -> u32 {
        self.passed_to
    }

    /// Record that the ping at `seq` passes, unless it is `over` its budget.
    #[inline(always)]
    const fn passes(&mut self, seq: u32, over: u32) {
        let to = seq.wrapping_add(1);
        self.passed_to ^= (self.passed_to ^ to) & over.wrapping_sub(1);
    }

    /// Walk to the end of the segment, or to a ping without a budget.
    pub fn run<S: Segment>(&mut self, segment: &mut S) -> Step {
        loop {
            match self.step(segment) {
                Step::More => {}
                end => return end,
            }
        }
    }

    /// Begin a header: count the frame, and judge it if it is a PING. `false` to ask.
    #[inline(always)]
    fn begin<S: Segment>(&mut self, segment: &mut S, at: u32, first: u8) -> bool {
        let fresh = !crate::seq::before(self.tracker.next, self.fresh_begin);
        // A record's first byte is no opcode.
        let is_frame = (self.tracker.flags >> RECORDS_BIT & 1).wrapping_sub(1);
        let opcode = first & frame::OPCODE & is_frame;
        if opcode == opcode::PING {
            if fresh && self.budget == Self::ASK {
                return false;
            }
            let (new, next) = (fresh as u32, self.tracker.next);
            self.pings += new;
            self.old_pings += new ^ 1;
            let old = exceeds(self.old_pings, self.old_budget) | self.defused.has(next);
            let over = new & exceeds(self.pings, self.budget) | (new ^ 1) & old;
            self.passes(next, over);
            if over != 0 {
                segment.defuse(at);
            }
        }
        self.frames += fresh as u32;
        self.pongs += (fresh & (opcode == opcode::PONG)) as u32;
        true
    }

    /// Complete a header: check it, and move to the end of its frame.
    #[inline(always)]
    fn complete<S: Segment>(&mut self, segment: &mut S, header: Header) {
        let mut violations = header.violations(self.tracker.expect());
        if self.tracker.flags & MESSAGE_UNKNOWN != 0 {
            violations = violations.without(Violation::UnexpectedContinuation);
        }
        if !crate::seq::before(self.tracker.next, self.fresh_complete) {
            self.violations += !violations.is_empty() as u32;
            self.kinds.0 |= violations.0;
            segment.header(self.tracker.next, header, violations);
            self.seen.words[0] = (header.first as u16) << 8 | header.second as u16;
            self.sees(1);
            self.seen.flags |= (header.payload_len >> 63) as u32 * TOP_SET as u32;
        }
        let in_message = header.in_message_after(self.tracker.flags & IN_MESSAGE != 0);
        let known = if opcode::is_control(header.opcode()) { 0 } else { MESSAGE_UNKNOWN };
        self.tracker.flags =
            self.tracker.flags & !(IN_MESSAGE | known) | if in_message { IN_MESSAGE } else { 0 };
        // The top bit of a length has no meaning: without it the sum cannot overflow either.
        let total = (header.payload_len & !(1 << 63)) + header.len() as u64;
        let low = total & (STRIDE - 1) as u64;
        // One stride is taken at once if it would end inside its own header: a segment may have
        // split that, and the end of a frame must not be before it. (1 or 0, without a branch.)
        let gone = low.wrapping_sub(header.len() as u64) >> 63;
        let strides = (total >> STRIDE_BITS) - gone;
        // The lower 30 bits of the length show in the position of the next header, and the next two in the
        // strides beyond it.
        let high = (header.payload_len >> 32) as u32;
        self.tracker.mark =
            mark_after(self.tracker.mark, self.tracker.next, header.first, header.second, high);
        let endless = ((strides >> 32).wrapping_neg() >> 63) as u32;
        self.tracker.beyond = strides as u32 | endless << 31;
        let far = (strides >> 31) as u32;
        // At most 3: of the longest frame it is 4.
        self.seen.flags |= (far - (far >> 2)) * FAR;
        let near = low + (gone << STRIDE_BITS);
        self.tracker.next = self.tracker.next.wrapping_add(near as u32);
        self.tracker.carried = 0;
    }

    /// Finish a walk through a segment of few TLS records, and check that all of them are records.
    /// `false` with more than [`FEW`] headers, or a split one.
    ///
    /// For the beginning of a connection: without the loop that is much less work for the kernel's
    /// verifier.
    #[inline(always)]
    pub fn few_records<S: Segment>(&mut self, segment: &mut S) -> bool {
        let mut i = 0;
        while i < FEW && self.at() < self.len {
            if !matches!(self.step_record(segment), Step::More) || self.tracker.carried != 0 {
                return false;
            }
            i += 1;
        }
        self.at() >= self.len && self.violations == 0
    }

    /// [`Walk::step`] to the next TLS record.
    #[inline(always)]
    fn step_record<S: Segment>(&mut self, segment: &mut S) -> Step {
        // Cut here and not there: one frame less on the stack.
        if self.whole_record(segment) { Step::More } else { self.cut(segment) }
    }

    /// Step over a record whose header the segment has whole. Not in line: walks over frames do not
    /// need it.
    #[inline(never)]
    fn whole_record<S: Segment>(&mut self, segment: &mut S) -> bool {
        let at = self.at();
        // One after the other: as a pair they would be kept on the stack, read or not.
        let Some(first) = segment.u16_at(at) else {
            return false;
        };
        let Some(length) = segment.u16_at(at + 3) else {
            return false;
        };
        self.frames += !crate::seq::before(self.tracker.next, self.fresh_begin) as u32;
        self.cuts_key = false;
        self.complete_record(segment, Record::new(first, length));
        true
    }

    /// Complete a record's header: check it, and move to the end of the record.
    #[inline(always)]
    fn complete_record<S: Segment>(&mut self, segment: &mut S, record: Record) {
        let violations = record.violations();
        if !crate::seq::before(self.tracker.next, self.fresh_complete) {
            self.violations += !violations.is_empty() as u32;
            self.kinds.0 |= violations.0;
            segment.record(self.tracker.next, record, violations);
            self.seen.words[0] = (record.kind as u16) << 8 | record.major as u16;
            self.sees(1);
        }
        self.tracker.mark =
            mark_after(self.tracker.mark, self.tracker.next, record.kind, record.major, 0);
        self.tracker.next = self.tracker.next.wrapping_add(record.total());
        self.tracker.carried = 0;
    }

    /// Carry over the first byte of a header that the segment splits; the others follow one by one.
    ///
    /// Not in line, like `carry`: the verifier merges all paths of failed reads here.
    #[cold]
    #[inline(never)]
    fn cut<S: Segment>(&mut self, segment: &mut S) -> Step {
        let at = self.at();
        let Some(first) = segment.u8_at(at) else {
            return Step::Unreadable;
        };
        if !self.begin(segment, at, first) {
            return Step::Ask;
        }
        self.tracker.carry[0] = first;
        self.tracker.carried = 1;
        Step::More
    }

    /// Take the next byte of a header split across segments; [`Step::Done`] when that completes it.
    /// Not one function with its caller: reading calls others, and their total stack is limited.
    ///
    /// A step takes one byte only: few headers are split, and a loop inside the loop over headers
    /// is too much for the kernel's verifier.
    #[cold]
    #[inline(never)]
    fn carry<S: Segment>(&mut self, segment: &S) -> Step {
        let have = self.tracker.carried as usize;
        let (Some(byte), true) = (segment.u8_at(self.at()), have < frame::MAX_HEADER) else {
            return Step::Unreadable;
        };
        self.tracker.carry[have] = byte;
        self.tracker.carried += 1;
        let needed = if self.tracker.in_records() {
            record::HEADER
        } else {
            frame::header_len(self.tracker.carry[1])
        };
        let whole = have > 0 && have + 1 >= needed;
        if whole { Step::Done } else { Step::More }
    }

    /// The carried header, which is complete.
    #[inline(always)]
    fn carried_header(&mut self) -> Header {
        let (first, second) = (self.tracker.carry[0], self.tracker.carry[1]);
        Header { first, second, payload_len: self.carried_len() }
    }

    /// Take the length from the carried header and clear that, so that two trackers in the same
    /// position are equal, however their headers were split.
    #[cold]
    #[inline(never)]
    fn carried_len(&mut self) -> u64 {
        let second = self.tracker.carry[1];
        let bytes = match second & frame::LEN7 {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        // One byte after the other: all at once take more stack than the kernel programs have.
        let mut payload_len = if bytes == 0 { u64::from(second & frame::LEN7) } else { 0 };
        let mut i = 0;
        while i < bytes {
            payload_len =
                payload_len << 8 | self.tracker.carry.get(2 + i).map_or(0, |byte| u64::from(*byte));
            i += 1;
        }
        self.tracker.carry = [0; frame::MAX_HEADER];
        payload_len
    }

    /// Complete the carried record header.
    #[cold]
    #[inline(never)]
    fn complete_carried_record<S: Segment>(&mut self, segment: &mut S) {
        let carry = &self.tracker.carry;
        let (kind, major) = (carry[0], carry[1]);
        let length = u16::from_be_bytes([carry[3], carry[4]]);
        self.complete_record(segment, Record { kind, major, length });
        self.tracker.carry = [0; frame::MAX_HEADER];
    }
}
