//! Header-by-header tracking of one direction of a length-delimited protocol.

use std::sync::Arc;

use crate::{
    finding::{At, Place, Side, What},
    lane::{Counts, Event, here},
    protocol::Protocol,
    reassembly::Chunk,
};

/// Unit that is not complete yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    at: At,
    length: u64,
    segments: u32,
}

/// Unit tracking of one direction.
#[derive(Debug)]
pub struct Units {
    side: Side,
    protocol: Arc<Protocol>,
    /// Bytes of the header so far.
    head: Vec<u8>,
    open: Option<Open>,
    /// Remaining bytes of the body.
    left: u64,
    number: u64,
    /// `true` while the position of the next header is known.
    pub is_in_step: bool,
}

impl Units {
    /// Create the state. `is_in_step`: the next byte is the first of a header.
    pub fn new(side: Side, protocol: Arc<Protocol>, is_in_step: bool) -> Units {
        Units { side, protocol, head: Vec::new(), open: None, left: 0, number: 0, is_in_step }
    }

    /// Resynchronise at a segment that begins with a header, its magic included.
    fn pick_up(&mut self, chunk: &Chunk<'_>, out: &mut Vec<Event>) {
        self.is_in_step = self.protocol.is_proven_by(&chunk.bytes);
        if self.is_in_step {
            self.left = 0;
            out.push(Event::Found(self.side, here(chunk, chunk.seq), What::PickedUp));
        }
    }

    /// Process the next bytes.
    pub fn take(&mut self, chunk: &Chunk<'_>, counts: &mut Counts, out: &mut Vec<Event>) {
        if !self.is_in_step {
            self.pick_up(chunk, out);
        }
        if let Some(open) = &mut self.open {
            open.segments += 1;
        }
        let (mut at, mut starts) = (0, Vec::new());
        while at < chunk.len && self.is_in_step {
            at += match self.left {
                0 => self.header(chunk, at, &mut starts, counts, out),
                _ => self.body(chunk.place, chunk.len - at, out),
            };
        }
        let begun = starts.len() as u32;
        counts.coalesced_segments += u64::from(begun > 1);
        counts.split_frames += u64::from(begun > 0 && self.open.is_some());
        self.split_header(chunk, begun, counts, out);
        self.split_point(chunk, &starts, out);
    }

    /// Skip bytes that are not in the capture; those of a body are all that is lost.
    pub fn miss(&mut self, place: Place, seq: u32, len: u32, out: &mut Vec<Event>) {
        if !self.is_in_step {
            return;
        }
        match u64::from(len) <= self.left {
            true => drop(self.body(place, len, out)),
            false => self.lose(At::new(place, seq, 0), out),
        }
    }

    /// Skip unseen units: whole ones, unless one is open.
    pub fn skip(&mut self, at: At, out: &mut Vec<Event>) {
        if self.open.is_some() {
            self.lose(at, out);
        }
    }

    /// Return the finding on an incomplete unit; a cut header was reported before.
    pub fn unfinished(&self) -> Option<(At, What)> {
        let open = self.open.filter(|_| self.left > 0)?;
        let (frame, length, missing) = (self.number, open.length, self.left);
        Some((open.at, What::Unfinished { frame, length, missing }))
    }

    /// Record that the position of the next header is lost.
    pub fn lose(&mut self, at: At, out: &mut Vec<Event>) {
        if self.is_in_step {
            out.push(Event::Found(self.side, at, What::Unsynced));
        }
        self.is_in_step = false;
        self.open = None;
        self.head.clear();
    }

    /// Process at most `len` bytes of a body, and return their number.
    fn body(&mut self, place: Place, len: u32, out: &mut Vec<Event>) -> u32 {
        let part = u32::try_from(self.left).unwrap_or(u32::MAX).min(len);
        self.left -= u64::from(part);
        if self.left == 0 {
            self.finish(place, out);
        }
        part
    }

    /// Process bytes of a header from `at` on, and return their number.
    fn header(
        &mut self,
        chunk: &Chunk<'_>,
        at: u32,
        starts: &mut Vec<u32>,
        counts: &mut Counts,
        out: &mut Vec<Event>,
    ) -> u32 {
        let seq = chunk.seq.wrapping_add(at);
        if self.open.is_none() {
            starts.push(seq.wrapping_sub(chunk.base));
            counts.frames += 1;
            self.number += 1;
            self.open = Some(Open { at: here(chunk, seq), length: 0, segments: 1 });
        }
        let known = chunk.bytes.get(at as usize..).unwrap_or_default();
        let part = known.len().min(self.protocol.header() - self.head.len());
        if part == 0 {
            // The capture truncated it.
            self.lose(here(chunk, seq), out);
            return chunk.len - at;
        }
        self.head.extend_from_slice(&known[..part]);
        if self.head.len() == self.protocol.header() {
            self.complete(chunk.place, counts, out);
        }
        part as u32
    }

    fn complete(&mut self, place: Place, counts: &mut Counts, out: &mut Vec<Event>) {
        let Some(open) = &mut self.open else { return };
        match self.protocol.body(&self.head) {
            Ok(length) => {
                (open.length, self.left) = (length, length);
                counts.payload = counts.payload.saturating_add(length);
                counts.longest = counts.longest.max(length);
                self.head.clear();
                if length == 0 {
                    self.finish(place, out);
                }
            }
            Err(violation) => {
                let at = open.at;
                let (frame, rfc) = (self.number, violation.rfc());
                counts.violations += 1;
                let what = What::Violation { violation, frame, rfc };
                out.push(Event::Found(self.side, at, what));
                self.lose(at, out);
            }
        }
    }

    fn finish(&mut self, ended: Place, out: &mut Vec<Event>) {
        let Some(Open { at, length, segments }) = self.open.take() else { return };
        let (frame, ends_in_packet) = (self.number, ended.packet);
        if segments > 1 {
            let what = What::SplitFrame { frame, segments, length, ends_in_packet };
            out.push(Event::Found(self.side, at, what));
        }
        let header = self.protocol.header() as u32;
        let what = What::Unit { frame, length, header, ends_in_packet, segments };
        out.push(Event::Found(self.side, at, what));
    }

    /// Report a header that begins in the segment and is cut by its end.
    fn split_header(
        &self,
        chunk: &Chunk<'_>,
        begun: u32,
        counts: &mut Counts,
        out: &mut Vec<Event>,
    ) {
        let (Some(open), 1..) = (self.open.filter(|_| !self.head.is_empty()), begun) else {
            return;
        };
        counts.split_headers += 1;
        let have = chunk.end().wrapping_sub(open.at.seq);
        let what = What::SplitHeader { frame: self.number, have };
        out.push(Event::Found(self.side, open.at, what));
    }

    /// Report the points where a reader has to split the segment.
    fn split_point(&self, chunk: &Chunk<'_>, starts: &[u32], out: &mut Vec<Event>) {
        let offsets: Vec<u32> = starts.iter().copied().filter(|offset| *offset > 0).collect();
        let Some(first) = offsets.first() else { return };
        let at = here(chunk, chunk.base.wrapping_add(*first));
        let len = chunk.end().wrapping_sub(chunk.base);
        let what = What::SplitPoint { frames: starts.len() as u32, len, offsets };
        out.push(Event::Found(self.side, at, what));
    }
}
