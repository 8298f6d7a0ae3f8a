//! Oracle for the frames in a stream.
//!
//! Written from RFC 6455 and from what the modules' documentation promises, sharing no code with
//! the tracker but the names of the violations: whole streams in memory, offsets of 64 and 128
//! bits, no state carried from one byte to the next.

use ws_guard_common::frame::Violation;

/// Frame of a stream, complete or not.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Offset of the first byte in the stream.
    pub at: usize,
    /// Four bits of the opcode.
    pub opcode: u8,
    /// Offset after the header with the masking key.
    /// `None` if the stream ends before the length is known.
    pub header_end: Option<u128>,
    /// Offset after the last payload byte.
    /// `None` if the stream ends before the length is known.
    pub end: Option<u128>,
    /// Violations of the header; empty while the length is not known.
    pub violations: Vec<Violation>,
}

impl Frame {
    pub fn is_ping(&self) -> bool {
        self.opcode == 9
    }

    pub fn is_pong(&self) -> bool {
        self.opcode == 10
    }
}

/// Sender of the stream, and negotiated extensions.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub from_client: bool,
    pub deflate: bool,
}

impl Side {
    pub const CLIENT: Side = Side { from_client: true, deflate: false };
}

/// Return all frames that begin in `stream`, which starts at a frame's first byte.
pub fn frames(stream: &[u8], side: Side) -> Vec<Frame> {
    let mut found = Vec::new();
    let mut at: u128 = 0;
    let mut message_open = false;
    while at < stream.len() as u128 {
        let frame = frame_at(stream, at as usize, side, message_open);
        let fin = stream[frame.at] >= 0x80;
        if frame.header_end.is_some() && matches!(frame.opcode, 0..=2) {
            message_open = !fin;
        }
        let end = frame.end;
        found.push(frame);
        match end {
            Some(end) => at = end,
            None => break,
        }
    }
    found
}

/// Read the frame whose first byte is at `at`.
fn frame_at(stream: &[u8], at: usize, side: Side, message_open: bool) -> Frame {
    let bytes = &stream[at..];
    let opcode = bytes[0] % 16;
    let mut frame = Frame { at, opcode, header_end: None, end: None, violations: Vec::new() };
    let Some(second) = bytes.get(1) else { return frame };
    let masked = *second >= 128;
    let (length_bytes, length) = match second % 128 {
        126 if bytes.len() >= 4 => (2, u64::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 if bytes.len() >= 10 => (8, u64::from_be_bytes(bytes[2..10].try_into().unwrap())),
        126 | 127 => return frame,
        short => (0, u64::from(short)),
    };
    let header_end = at as u128 + 2 + length_bytes + if masked { 4 } else { 0 };
    frame.header_end = Some(header_end);
    // A set top bit is a violation, after which RFC 6455 defines nothing: as in the tracker, the
    // other bits are the length.
    frame.end = Some(header_end + u128::from(length % (1 << 63)));
    frame.violations =
        violations(bytes[0], masked, length_bytes as u64, length, side, message_open);
    frame
}

/// Return the violations of RFC 6455, 5.1 to 5.5, rule by rule.
fn violations(
    first: u8,
    masked: bool,
    length_bytes: u64,
    length: u64,
    side: Side,
    message_open: bool,
) -> Vec<Violation> {
    let fin = first & 0b1000_0000 != 0;
    let (rsv1, rsv2, rsv3) = (first & 0x40 != 0, first & 0x20 != 0, first & 0x10 != 0);
    let opcode = first % 16;
    let control = opcode >= 8;
    let mut found = Vec::new();
    let mut rule = |violated: bool, kind| {
        if violated {
            found.push(kind);
        }
    };
    rule(matches!(opcode, 3..=7 | 11..=15), Violation::ReservedOpcode);
    // RFC 7692, 6: RSV1 marks the first frame of a compressed message, so text and binary only.
    let compressed = side.deflate && matches!(opcode, 1 | 2);
    rule(rsv2 || rsv3 || rsv1 && !compressed, Violation::ReservedBits);
    rule(side.from_client && !masked, Violation::Unmasked);
    rule(!side.from_client && masked, Violation::Masked);
    // 5.5: control frames "MUST have a payload length of 125 bytes or less"; the length field of
    // one that uses an extended form means more, and where it does not, it is not minimal.
    rule(control && length_bytes > 0, Violation::ControlTooLong);
    rule(control && !fin, Violation::ControlFragmented);
    rule(length_bytes == 2 && length < 126, Violation::NonMinimalLength);
    rule(length_bytes == 8 && length < 65_536, Violation::NonMinimalLength);
    rule(length_bytes == 8 && length >= 1 << 63, Violation::LengthTopBit);
    rule(opcode == 0 && !message_open, Violation::UnexpectedContinuation);
    rule(matches!(opcode, 1 | 2) && message_open, Violation::InterleavedData);
    found
}

/// Totals of a stream that arrived in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub frames: u64,
    pub pings: u64,
    pub pongs: u64,
    /// Frames with at least one violation.
    pub violations: u64,
    pub by_kind: [u64; Violation::COUNT],
    /// Segments in which several frames begin.
    pub coalesced_segments: u64,
    /// Frames with a segment boundary inside their header.
    pub split_headers: u64,
    /// Frames with a segment boundary inside them.
    pub split_frames: u64,
}

/// Count a stream whose segments end at the offsets in `boundaries`, ascending.
pub fn count(stream: &[u8], side: Side, boundaries: &[usize]) -> Counts {
    let all = frames(stream, side);
    let mut counts = Counts { frames: all.len() as u64, ..Counts::default() };
    for frame in &all {
        counts.pings += u64::from(frame.is_ping());
        counts.pongs += u64::from(frame.is_pong());
        counts.violations += u64::from(!frame.violations.is_empty());
        for kind in &frame.violations {
            counts.by_kind[*kind as usize] += 1;
        }
        // A boundary at the end of the stream cuts what would have followed it.
        let cut = |from: u128, to: u128| {
            let first = boundaries.partition_point(|boundary| *boundary as u128 <= from);
            boundaries.get(first).is_some_and(|boundary| (*boundary as u128) < to)
        };
        let at = frame.at as u128;
        counts.split_headers += u64::from(cut(at, frame.header_end.unwrap_or(u128::MAX)));
        counts.split_frames += u64::from(cut(at, frame.end.unwrap_or(u128::MAX)));
    }
    let mut starts = all.iter().map(|frame| frame.at).peekable();
    for boundary in boundaries {
        let mut begun = 0;
        while starts.next_if(|start| start < boundary).is_some() {
            begun += 1;
        }
        counts.coalesced_segments += u64::from(begun > 1);
    }
    counts
}
