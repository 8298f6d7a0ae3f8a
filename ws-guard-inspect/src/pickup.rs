//! Frames in a stream whose beginning was not captured: taken up only when proven.
//!
//! What proves them is the search of the kernel programs, [`Search`]: eight headers in a row, each
//! where the one before says. A client's chain is followed from segment to segment, a server's has to
//! be found in the bytes from one segment's start on.

use std::collections::VecDeque;

use ws_guard_common::search::{Candidate, Search};

use crate::reassembly::Chunk;

/// Bytes of a server that are kept to search in.
const KEPT: usize = 64 << 10;
/// Segments that may be the beginning of a server's chain.
const STARTS: usize = 16;

/// What is known of one direction's frames.
#[derive(Debug, Default)]
pub struct Pickup {
    candidate: Candidate,
    kept: VecDeque<Chunk<'static>>,
    kept_bytes: usize,
    /// Segments that were searched without a proof.
    pub searched: u32,
}

/// Frames begin at `seq`; `chunks` are to be walked from there.
pub struct Found {
    pub seq: u32,
    pub chunks: Vec<Chunk<'static>>,
}

impl Pickup {
    /// Bytes are missing, so that no chain goes on.
    pub fn interrupt(&mut self) {
        *self = Pickup { searched: self.searched, ..Pickup::default() };
    }

    /// Look for a client's frames.
    pub fn as_client(&mut self, chunk: &Chunk<'_>) -> Option<Found> {
        let mut search = Search::new(self.candidate, chunk.seq, chunk.len);
        search.run(&&*chunk.bytes);
        self.searched = self.searched.saturating_add(1);
        if let Some(seq) = search.proven() {
            return Some(Found { seq, chunks: vec![chunk.clone().into_owned()] });
        }
        self.candidate = search.known();
        None
    }

    /// Look for a server's frames.
    pub fn as_server(&mut self, chunk: &Chunk<'_>) -> Option<Found> {
        self.searched = self.searched.saturating_add(1);
        if chunk.snapped() > 0 {
            self.interrupt();
            return None;
        }
        self.kept_bytes += chunk.bytes.len();
        self.kept.push_back(chunk.clone().into_owned());
        while self.kept_bytes > KEPT || self.kept.len() > STARTS {
            self.drop_first();
        }
        let bytes: Vec<u8> = self.kept.iter().flat_map(|chunk| &*chunk.bytes).copied().collect();
        let mut at = 0;
        let proven = self.kept.iter().position(|chunk| {
            let from = &bytes[at..];
            at += chunk.bytes.len();
            let mut search = Search::of_server(chunk.seq, from.len() as u32);
            search.run(&from);
            search.proven().is_some()
        })?;
        let chunks: Vec<_> = self.kept.drain(proven..).collect();
        let seq = chunks.first()?.seq;
        Some(Found { seq, chunks })
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.kept.pop_front() {
            self.kept_bytes = self.kept_bytes.saturating_sub(first.bytes.len());
        }
    }
}
