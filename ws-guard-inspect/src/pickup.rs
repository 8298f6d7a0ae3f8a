//! Midstream pickup of frames in a capture: they are used only when proven.
//!
//! The proof is the search of the kernel programs, [`Search`]: eight consecutive headers, each
//! at the position that the previous one implies. A client's chain is followed across segments, a
//! server's has to be found in the bytes from one segment's start on.

use std::collections::VecDeque;

use ws_guard_common::search::{Candidate, Search};

use crate::reassembly::Chunk;

/// Maximum number of bytes kept for the search.
const KEPT: usize = 64 << 10;
/// Maximum number of segments kept as possible starts of a chain.
const STARTS: usize = 16;

/// Number of bytes from a chain's first header on that must not be a run.
const RUN: usize = 64;

/// Check whether the bytes at `seq` repeat every four, as masked equal bytes do.
/// One key in 64 makes them a chain of headers that was not sent.
fn is_masked_run(chunk: &Chunk<'_>, seq: u32) -> bool {
    let bytes = chunk.bytes.get(seq.wrapping_sub(chunk.seq) as usize..).unwrap_or_default();
    let bytes = &bytes[..bytes.len().min(RUN)];
    bytes.len() == RUN && bytes.iter().zip(&bytes[4..]).all(|(one, next)| one == next)
}

/// Search state of one direction's frames.
#[derive(Debug, Default)]
pub struct Pickup {
    candidate: Candidate,
    kept: VecDeque<Chunk<'static>>,
    kept_bytes: usize,
    /// Number of segments searched without a proof.
    pub searched: u32,
}

/// Proven start of frames at `seq`, and the `chunks` to be walked from there.
pub struct Found {
    pub seq: u32,
    pub chunks: Vec<Chunk<'static>>,
}

impl Pickup {
    /// Handle missing bytes: no chain continues across them.
    pub fn interrupt(&mut self) {
        *self = Pickup { searched: self.searched, ..Pickup::default() };
    }

    /// Search for a client's frames.
    pub fn as_client(&mut self, chunk: &Chunk<'_>) -> Option<Found> {
        let mut search = Search::new(self.candidate, chunk.seq, chunk.len);
        search.run(&&*chunk.bytes);
        self.searched = self.searched.saturating_add(1);
        if let Some(seq) = search.proven() {
            if is_masked_run(chunk, seq) {
                self.interrupt();
                return None;
            }
            self.keep(chunk);
            return self
                .whole_chain()
                .or_else(|| Some(Found { seq, chunks: vec![chunk.clone().into_owned()] }));
        }
        self.candidate = search.known();
        if self.candidate.proof > 0 && chunk.snapped() == 0 {
            self.keep(chunk);
        } else {
            (self.kept_bytes, self.kept) = (0, VecDeque::new());
        }
        None
    }

    /// Return the chain from its first frame on, as far as the kept bytes reach back.
    /// The headers that prove it are frames as well.
    fn whole_chain(&mut self) -> Option<Found> {
        self.prove(|seq, bytes| {
            let mut search = Search::new(Candidate::default(), seq, bytes.len() as u32);
            search.run(&bytes);
            search.proven()
        })
    }

    /// Search for a server's frames.
    pub fn as_server(&mut self, chunk: &Chunk<'_>) -> Option<Found> {
        self.searched = self.searched.saturating_add(1);
        if chunk.snapped() > 0 {
            self.interrupt();
            return None;
        }
        self.keep(chunk);
        let found = self.prove(|seq, bytes| {
            let mut search = Search::of_server(seq, bytes.len() as u32);
            search.run(&bytes);
            search.proven()
        });
        found.filter(|found| {
            !found.chunks.first().is_some_and(|first| is_masked_run(first, found.seq))
        })
    }

    fn keep(&mut self, chunk: &Chunk<'_>) {
        self.kept_bytes += chunk.bytes.len();
        self.kept.push_back(chunk.clone().into_owned());
        while self.kept_bytes > KEPT || self.kept.len() > STARTS {
            self.drop_first();
        }
    }

    /// Return the first kept segment from which `search` proves a chain.
    fn prove(&mut self, search: impl Fn(u32, &[u8]) -> Option<u32>) -> Option<Found> {
        let bytes: Vec<u8> = self.kept.iter().flat_map(|chunk| &*chunk.bytes).copied().collect();
        let mut at = 0;
        let (first, seq) = self.kept.iter().enumerate().find_map(|(index, chunk)| {
            let from = &bytes[at..];
            at += chunk.bytes.len();
            search(chunk.seq, from).map(|seq| (index, seq))
        })?;
        Some(Found { seq, chunks: self.kept.drain(first..).collect() })
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.kept.pop_front() {
            self.kept_bytes = self.kept_bytes.saturating_sub(first.bytes.len());
        }
    }
}
