//! Frames of one direction: the kernel programs' tracker, applied to a capture.

use std::sync::Arc;

use ws_guard_common::{
    frame::{FIN, Header, MAX_CONTROL_PAYLOAD, OPCODE, RSV, RSV1, Violations, opcode},
    replay::SeenHeader,
    tracker::{FROM_CLIENT, MESSAGE_UNKNOWN, RSV1_AGREED, Segment, Step, Tracker, Walk},
};

use crate::{
    finding::{At, Broken, Frame, Place, Side, What},
    message::Messages,
    nested::Nested,
    pickup::{Found, Pickup},
    protocol::Protocol,
    reassembly::Chunk,
    units::Units,
};

/// Maximum length of a control frame's masking key and payload in bytes.
const BODY: usize = 4 + MAX_CONTROL_PAYLOAD as usize;

/// Event of a lane.
#[derive(Debug)]
pub enum Event {
    Found(Side, At, What),
    /// Finding inside messages: `seq` and `offset` count bytes of their payload.
    Nested(Side, At, What),
    /// End of a frame, with its last byte at `ended`.
    /// `body`: unmasked payload of a control frame, if all of it was captured.
    Frame {
        side: Side,
        at: At,
        frame: Frame,
        body: Option<Vec<u8>>,
        ended: Place,
    },
}

impl Event {
    pub const fn side(&self) -> Side {
        match self {
            Event::Found(side, ..) | Event::Nested(side, ..) | Event::Frame { side, .. } => *side,
        }
    }

    /// Mark a finding as one inside messages.
    pub fn nested(self) -> Event {
        match self {
            Event::Found(side, at, what) => Event::Nested(side, at, what),
            event => event,
        }
    }
}

/// Totals of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that began.
    pub frames: u64,
    pub pings: u64,
    pub pongs: u64,
    /// Complete messages, and the compressed ones among them.
    pub messages: u64,
    pub compressed: u64,
    /// Payload bytes of the frames.
    pub payload: u64,
    /// Payload bytes of the longest frame.
    pub longest: u64,
    pub coalesced_segments: u64,
    pub split_headers: u64,
    pub split_frames: u64,
    /// Frames with a violation.
    pub violations: u64,
}

/// Frame that is not complete yet.
#[derive(Debug)]
struct Open {
    at: At,
    frame: Frame,
    /// Bytes of the frame after the latest segment.
    left: u64,
    /// Masking key and payload of a control frame so far; else the key, where needed.
    body: Vec<u8>,
    is_masked: bool,
    /// Number of payload bytes unmasked.
    unmasked: usize,
    /// `true` while more leading bytes are to be kept.
    is_kept: bool,
}

/// Header that is not complete yet.
#[derive(Clone, Copy, Debug)]
struct Cut {
    at: At,
    /// Number of segments that it spans so far.
    segments: u32,
}

/// Frame tracking of one direction.
#[derive(Debug)]
pub struct Lane {
    side: Side,
    /// Tracker; `None` while the position of frames is unknown.
    tracker: Option<Tracker>,
    flags: u8,
    pickup: Pickup,
    open: Option<Open>,
    /// Header cut by the end of the latest segment.
    cut: Option<Cut>,
    /// Headers of the current segment.
    headers: Vec<SeenHeader>,
    /// Number of leading bytes kept of each frame.
    keep: usize,
    /// Bytes of a cut header, at their positions.
    head: Vec<u8>,
    /// Number of the latest frame.
    number: u64,
    /// `true` while the current message is a compressed one.
    is_compressed: bool,
    is_closed: bool,
    /// Units followed instead of frames.
    units: Option<Units>,
    /// Protocol inside the messages.
    pub nested: Option<Nested>,
    /// Content of the messages.
    messages: Option<Messages>,
    pub counts: Counts,
}

impl Lane {
    /// Create a lane.
    ///
    /// `keep`: number of leading bytes to keep of each frame; `show`: of each message's payload.
    pub fn new(side: Side, keep: usize, show: Option<usize>) -> Lane {
        Lane {
            side,
            tracker: None,
            flags: if side == Side::Client { FROM_CLIENT } else { 0 },
            pickup: Pickup::default(),
            open: None,
            cut: None,
            headers: Vec::new(),
            keep,
            head: Vec::new(),
            number: 0,
            is_compressed: false,
            is_closed: false,
            units: None,
            nested: None,
            messages: show.map(|bytes| Messages::new(side, bytes)),
            counts: Counts::default(),
        }
    }

    /// Allow compressed frames: compression was negotiated, or that is unknown.
    pub fn allow_compression(&mut self) {
        self.flags |= RSV1_AGREED;
    }

    /// Follow a length-delimited protocol in messages. `is_begin`: from the first on.
    pub fn nest(&mut self, protocol: &Arc<Protocol>, is_begin: bool) {
        self.nested = Some(Nested::new(self.side, protocol, is_begin));
    }

    /// Follow a length-delimited protocol. `is_begin`: from its first byte on.
    pub fn follow(&mut self, protocol: &Arc<Protocol>, is_begin: bool) {
        self.units = Some(Units::new(self.side, Arc::clone(protocol), is_begin));
    }

    /// Begin at `seq`, where the first frame starts.
    pub fn begin(&mut self, seq: u32) {
        self.tracker = Some(Tracker::new(seq, self.flags));
    }

    /// Begin at `seq`, where a frame starts after an unknown part of the stream.
    fn join(&mut self, seq: u32) {
        // Whether a message is open is unknown too, so a continuation is not a violation.
        self.tracker = Some(Tracker::new(seq, self.flags | MESSAGE_UNKNOWN));
        self.pickup = Pickup::default();
        (self.open, self.cut) = (None, None);
        self.messages.iter_mut().for_each(Messages::interrupt);
    }

    /// Check whether the position of frames is known.
    pub fn is_in_step(&self) -> bool {
        self.units.as_ref().map_or(self.tracker.is_some(), |units| units.is_in_step)
    }

    /// Process the next bytes.
    pub fn take(&mut self, chunk: Chunk<'_>, out: &mut Vec<Event>) {
        if let Some(units) = &mut self.units {
            return units.take(&chunk, &mut self.counts, out);
        }
        if self.tracker.is_some() {
            return self.walk(&chunk, out);
        }
        let found = match self.side {
            Side::Client => self.pickup.as_client(&chunk),
            Side::Server => self.pickup.as_server(&chunk),
        };
        if let Some(found) = found {
            self.join_found(found, out);
        }
    }

    /// Continue a search that was begun while roles were unknown.
    pub fn adopt(&mut self, pickup: Pickup) {
        self.pickup = pickup;
    }

    /// Begin with the frames that a search has found.
    pub fn join_found(&mut self, found: Found, out: &mut Vec<Event>) {
        self.join(found.seq);
        let mut chunks = found.chunks.into_iter().peekable();
        if let Some(first) = chunks.peek() {
            let offset = found.seq.wrapping_sub(first.base);
            out.push(Event::Found(
                self.side,
                At::new(first.place, found.seq, offset),
                What::PickedUp,
            ));
        }
        for chunk in chunks {
            let before = found.seq.wrapping_sub(chunk.seq);
            self.walk(&chunk.skip(if before <= i32::MAX as u32 { before } else { 0 }), out);
        }
    }

    /// Skip bytes that are not in the capture; payload among them is all that is lost.
    pub fn miss(&mut self, place: Place, seq: u32, len: u32, out: &mut Vec<Event>) {
        if let Some(units) = &mut self.units {
            return units.miss(place, seq, len, out);
        }
        self.pickup.interrupt();
        let Some(tracker) = self.tracker else { return };
        let mut walk = Walk::new(tracker, &tracker, seq, len).unbounded();
        walk.budget = Walk::UNLIMITED;
        let passed = tracker.carried == 0 && walk.run(&mut &[][..]) == Step::Done;
        if !passed {
            return self.lose(place, seq, out);
        }
        self.tracker = Some(walk.tracker);
        self.go_on(place, &[], len, out);
    }

    fn walk(&mut self, chunk: &Chunk<'_>, out: &mut Vec<Event>) {
        let Some(start) = self.tracker else { return };
        let known = &*chunk.bytes;
        let mut walk = Walk::new(start, &start, chunk.seq, known.len() as u32).unbounded();
        walk.budget = Walk::UNLIMITED;
        let mut headers = std::mem::take(&mut self.headers);
        let step = walk.run(&mut Bytes { bytes: known, headers: &mut headers });
        self.tracker = Some(walk.tracker);
        self.count(&walk);
        self.go_on(chunk.place, known, chunk.len, out);
        out.extend(
            split_points(chunk, &walk, &headers)
                .map(|(at, what)| Event::Found(self.side, at, what)),
        );
        let cut = self.cut.take().map(|cut| Cut { segments: cut.segments + 1, ..cut });
        for seen in headers.drain(..) {
            let cut = cut.filter(|cut| cut.at.seq == seen.seq);
            self.header(chunk, &seen, cut, out);
        }
        self.headers = headers;
        self.keep_head(chunk, &walk);
        if chunk.snapped() > 0 {
            self.counts.split_frames += u64::from(walk.frames > 0 && self.open.is_some());
            self.snap(chunk, out);
        } else if step == Step::Done {
            self.counts.split_frames += u64::from(walk.splits_frame());
            self.split_header(chunk, &walk, &start, cut, out);
        } else {
            self.lose(chunk.place, walk.tracker.next, out);
        }
    }

    /// Return the finding on an incomplete frame, if there is one; for the end.
    pub fn unfinished(&self) -> Option<(At, What)> {
        if let Some(units) = &self.units {
            return units.unfinished();
        }
        let Open { at, frame, left, .. } = self.open.as_ref()?;
        let (frame, length) = (frame.frame, frame.length);
        Some((*at, What::Unfinished { frame, length, missing: *left }))
    }

    /// Record that the position of the next frame is lost.
    fn lose(&mut self, place: Place, seq: u32, out: &mut Vec<Event>) {
        out.push(Event::Found(self.side, At::new(place, seq, 0), What::Unsynced));
        self.tracker = None;
        (self.open, self.cut) = (None, None);
        self.messages.iter_mut().for_each(Messages::interrupt);
        if let Some(nested) = &mut self.nested {
            nested.interrupt(At::new(place, seq, 0), out);
        }
    }

    /// Process the truncated part of a segment, which belongs to the open frame.
    fn snap(&mut self, chunk: &Chunk<'_>, out: &mut Vec<Event>) {
        let seq = chunk.seq.wrapping_add(chunk.bytes.len() as u32);
        let open = self.open.take();
        self.miss(chunk.place, seq, chunk.snapped(), out);
        self.open = if self.is_in_step() { open } else { None };
    }

    /// Keep the bytes of a header that is cut by the end of the segment.
    fn keep_head(&mut self, chunk: &Chunk<'_>, walk: &Walk) {
        let carried = walk.tracker.carried > 0 && self.keep > 0;
        let begin = i64::from(walk.tracker.next.wrapping_sub(chunk.seq) as i32);
        if !carried || begin >= 0 {
            self.head.clear();
        }
        if carried {
            self.head.extend_from_slice(part(&chunk.bytes, begin, chunk.bytes.len() as i64));
        }
    }

    fn count(&mut self, walk: &Walk) {
        let counts = &mut self.counts;
        counts.frames += u64::from(walk.frames);
        counts.pings += u64::from(walk.pings);
        counts.pongs += u64::from(walk.pongs);
        counts.violations += u64::from(walk.violations);
        counts.coalesced_segments += u64::from(walk.coalesces());
    }

    /// Continue an earlier segment's frame by `len` bytes, of which `known` are known.
    fn go_on(&mut self, place: Place, known: &[u8], len: u32, out: &mut Vec<Event>) {
        let Some(mut open) = self.open.take() else { return };
        open.frame.segments += 1;
        let part = usize::try_from(open.left).unwrap_or(usize::MAX).min(known.len());
        let is_holed = part as u64 != open.left.min(len.into());
        self.keep(&mut open, &known[..part], is_holed);
        self.payload(&mut open, &known[..part], is_holed);
        open.left = open.left.saturating_sub(len.into());
        match open.left {
            0 => self.finish(open, place, out),
            _ => self.open = Some(open),
        }
    }

    /// Report a header that is cut by the end of the segment.
    fn split_header(
        &mut self,
        chunk: &Chunk<'_>,
        walk: &Walk,
        start: &Tracker,
        cut: Option<Cut>,
        out: &mut Vec<Event>,
    ) {
        let carried = walk.tracker.carried > 0;
        let same = cut.filter(|cut| carried && cut.at.seq == walk.tracker.next);
        if !walk.splits_header(start) {
            self.cut = same;
            return;
        }
        self.counts.split_headers += 1;
        let at = match (&self.open, carried) {
            (Some(open), false) => open.at,
            _ => here(chunk, walk.tracker.next),
        };
        let (frame, have) = (self.number + u64::from(carried), chunk.end().wrapping_sub(at.seq));
        out.push(Event::Found(self.side, at, What::SplitHeader { frame, have }));
        self.cut = carried.then_some(Cut { at, segments: 1 });
    }

    /// Process a complete header. `cut`: its start, if in an earlier segment.
    fn header(
        &mut self,
        chunk: &Chunk<'_>,
        seen: &SeenHeader,
        cut: Option<Cut>,
        out: &mut Vec<Event>,
    ) {
        let Cut { at, segments } = cut.unwrap_or(Cut { at: here(chunk, seen.seq), segments: 1 });
        self.number += 1;
        self.judge(at, &seen.header, seen.violations, out);
        let header = seen.header;
        let is_masked = header.masked();
        let frame = Frame {
            frame: self.number,
            opcode: header.first & OPCODE,
            fin: header.first & FIN != 0,
            rsv: (header.first & RSV) >> 4,
            length: header.payload_len & !(1 << 63),
            header: header.len() as u32,
            ends_in_packet: 0,
            segments,
            bytes: if begins_before(at, chunk) {
                std::mem::take(&mut self.head)
            } else {
                Vec::new()
            },
        };
        self.counts.payload = self.counts.payload.saturating_add(frame.length);
        self.counts.longest = self.counts.longest.max(frame.length);
        let begin = i64::from(seen.seq.wrapping_sub(chunk.seq) as i32);
        let total = i64::try_from(frame.length).unwrap_or(i64::MAX);
        let end = (begin + header.len() as i64).saturating_add(total);
        let from = begin + header.len() as i64 - if is_masked { 4 } else { 0 };
        let left = end.saturating_sub(chunk.len.into()).max(0) as u64;
        let (body, is_kept) = (Vec::new(), self.keep > 0);
        let mut open = Open { at, frame, left, body, is_masked, unmasked: 0, is_kept };
        let first = part(&chunk.bytes, begin, end);
        let is_holed = first.len() as i64 != end.min(chunk.len.into()) - begin.max(0);
        self.keep(&mut open, first, is_holed);
        if let (Some(nested), true) = (&mut self.nested, is_data(open.frame.opcode)) {
            nested.frame(open.frame.length, self.is_compressed);
        }
        if let (Some(messages), opcode::TEXT | opcode::BINARY) =
            (&mut self.messages, open.frame.opcode)
        {
            messages.begin(at, self.number, open.frame.opcode, self.is_compressed);
        }
        let known = part(&chunk.bytes, from, end);
        let is_holed = known.len() as i64 != end.min(chunk.len.into()) - from;
        self.payload(&mut open, known, is_holed);
        match left {
            0 => self.finish(open, chunk.place, out),
            _ => self.open = Some(open),
        }
    }

    /// Keep a frame's leading bytes, up to the first that is missing.
    fn keep(&self, open: &mut Open, bytes: &[u8], is_holed: bool) {
        if open.is_kept {
            let room = self.keep.saturating_sub(open.frame.bytes.len());
            open.frame.bytes.extend_from_slice(&bytes[..room.min(bytes.len())]);
            open.is_kept = !is_holed && bytes.len() < room;
        }
    }

    /// Process bytes of a frame's key and payload. `is_holed`: uncaptured bytes follow.
    fn payload(&mut self, open: &mut Open, bytes: &[u8], is_holed: bool) {
        if opcode::is_control(open.frame.opcode) {
            let room = BODY.saturating_sub(open.body.len()).min(bytes.len());
            open.body.extend_from_slice(&bytes[..room]);
            return;
        }
        if self.nested.is_none() && self.messages.is_none() {
            return;
        }
        let missing = if open.is_masked { 4 - open.body.len() } else { 0 };
        let (key, payload) = bytes.split_at(missing.min(bytes.len()));
        open.body.extend_from_slice(key);
        let key = open.body.first_chunk().copied().unwrap_or([0; 4]);
        let first = open.unmasked;
        open.unmasked += payload.len();
        let plain = (first..).zip(payload).map(|(place, byte)| byte ^ key[place % 4]);
        if let Some(messages) = &mut self.messages {
            messages.push(&plain.clone().collect::<Vec<u8>>());
            if is_holed {
                messages.miss();
            }
        }
        if let Some(nested) = &mut self.nested {
            nested.push(plain);
            if is_holed {
                nested.miss();
            }
        }
    }

    /// Report the violations of a header.
    fn judge(&mut self, at: At, header: &Header, violations: Violations, out: &mut Vec<Event>) {
        for kind in violations.iter() {
            self.violates(at, Broken::Header(kind), out);
        }
        let is_data = !opcode::is_control(header.opcode());
        if is_data && header.first & OPCODE != opcode::CONTINUATION {
            self.is_compressed = header.first & RSV1 != 0 && self.flags & RSV1_AGREED != 0;
        }
        if is_data && header.fin() {
            self.counts.messages += 1;
            self.counts.compressed += u64::from(self.is_compressed);
        }
        if is_data && self.is_closed {
            self.counts.violations += u64::from(violations.is_empty());
            self.violates(at, Broken::AfterClose, out);
        }
    }

    fn violates(&self, at: At, violation: Broken, out: &mut Vec<Event>) {
        let rfc = violation.rfc();
        out.push(Event::Found(
            self.side,
            at,
            What::Violation { violation, frame: self.number, rfc },
        ));
    }

    /// Process the last byte of a frame.
    fn finish(&mut self, open: Open, ended: Place, out: &mut Vec<Event>) {
        let Open { at, mut frame, body, is_masked, .. } = open;
        frame.ends_in_packet = ended.packet;
        if frame.segments > 1 {
            let Frame { frame: number, segments, length, .. } = frame;
            let (frame, ends_in_packet) = (number, ended.packet);
            out.push(Event::Found(
                self.side,
                at,
                What::SplitFrame { frame, segments, length, ends_in_packet },
            ));
        }
        if let (Some(nested), true) = (&mut self.nested, is_data(frame.opcode) && frame.fin) {
            nested.end(ended, out);
        }
        if let (Some(messages), true) = (&mut self.messages, is_data(frame.opcode) && frame.fin) {
            self.counts.violations += u64::from(messages.end(out).is_some());
        }
        let body = unmasked(body, is_masked, frame.length);
        if frame.opcode == opcode::CLOSE {
            self.close(at, frame.frame, body.as_deref(), out);
        }
        out.push(Event::Frame { side: self.side, at, frame, body, ended });
    }

    /// Process the code and reason of a close frame.
    fn close(&mut self, at: At, frame: u64, body: Option<&[u8]>, out: &mut Vec<Event>) {
        self.is_closed = true;
        let (code, text) = match body {
            Some([high, low, text @ ..]) => (Some(u16::from_be_bytes([*high, *low])), text),
            _ => (None, &[][..]),
        };
        let mut broken = |violation| {
            self.counts.violations += 1;
            self.violates(at, violation, out);
        };
        let is_odd = body.is_some_and(|body| body.len() == 1);
        if is_odd || code.is_some_and(|code| !may_be_sent(code)) {
            broken(Broken::CloseCode);
        }
        if std::str::from_utf8(text).is_err() {
            broken(Broken::CloseReason);
        }
        let reason = String::from_utf8_lossy(text).into_owned();
        out.push(Event::Found(self.side, at, What::Close { frame, code, reason }));
    }
}

/// Check whether an opcode is that of a message's frame.
const fn is_data(opcode: u8) -> bool {
    opcode <= opcode::BINARY
}

/// Check whether an end point may send a close code (RFC 6455, 7.4).
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Check whether a position is in an earlier segment.
const fn begins_before(at: At, chunk: &Chunk<'_>) -> bool {
    at.packet != chunk.place.packet || at.file != chunk.place.file
}

/// Return the position of `seq` in a segment.
pub fn here(chunk: &Chunk<'_>, seq: u32) -> At {
    At::new(chunk.place, seq, seq.wrapping_sub(chunk.base))
}

/// Return the bytes between two offsets, as far as they exist.
fn part(bytes: &[u8], from: i64, to: i64) -> &[u8] {
    let within =
        |offset: i64| usize::try_from(offset.max(0)).unwrap_or(usize::MAX).min(bytes.len());
    bytes.get(within(from)..within(to)).unwrap_or_default()
}

/// Unmask a control frame's payload; `None` where some of it is missing.
fn unmasked(body: Vec<u8>, is_masked: bool, length: u64) -> Option<Vec<u8>> {
    let whole = length + if is_masked { 4 } else { 0 };
    if body.len() as u64 != whole {
        return None;
    }
    let Some((key, payload)) = body.split_first_chunk::<4>().filter(|_| is_masked) else {
        return Some(body);
    };
    Some(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect())
}

/// Return the points where a reader has to split the segment.
fn split_points(chunk: &Chunk<'_>, walk: &Walk, headers: &[SeenHeader]) -> Option<(At, What)> {
    let carried = (walk.tracker.carried > 0).then_some(walk.tracker.next);
    let starts = headers.iter().map(|seen| seen.seq).chain(carried);
    let inside = starts.filter(|seq| seq.wrapping_sub(chunk.seq) < chunk.len);
    let offsets = inside.map(|seq| seq.wrapping_sub(chunk.base)).filter(|offset| *offset > 0);
    let offsets: Vec<u32> = offsets.collect();
    let first = *offsets.first()?;
    let at = here(chunk, chunk.base.wrapping_add(first));
    let len = chunk.end().wrapping_sub(chunk.base);
    Some((at, What::SplitPoint { frames: walk.frames, len, offsets }))
}

/// Bytes of a segment, and the headers in it.
struct Bytes<'a> {
    bytes: &'a [u8],
    headers: &'a mut Vec<SeenHeader>,
}

impl Segment for Bytes<'_> {
    fn u8_at(&self, at: u32) -> Option<u8> {
        self.bytes.u8_at(at)
    }

    fn u16_at(&self, at: u32) -> Option<u16> {
        self.bytes.u16_at(at)
    }

    fn u64_at(&self, at: u32) -> Option<u64> {
        self.bytes.u64_at(at)
    }

    fn defuse(&mut self, _at: u32) {}

    fn header(&mut self, seq: u32, header: Header, violations: Violations) {
        self.headers.push(SeenHeader { seq, header, violations });
    }
}
