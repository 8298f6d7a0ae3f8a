//! Sources as one JSON array, a line each, written in constant memory.

use crate::{
    domain::source::{SourceState, SourceView},
    guard::GuardError,
    state::reader::{Reader, sort},
};

/// Bytes that are passed on together.
const PIECE: usize = 128 * 1024;
/// Upper bound of a source's text.
const ONE: usize = 1024;
/// Maximum number of sorted sources, the most pings first.
/// More are in the table's order: to sort a million, all would have to be held.
pub const SORTED: usize = 10_000;

/// Receiver of the text, piece by piece; returns whether it takes more.
pub trait Take: FnMut(Vec<u8>) -> bool {}

impl<F: FnMut(Vec<u8>) -> bool> Take for F {}

/// Write all sources, or those in one state.
pub fn sources(
    reader: &Reader,
    state: Option<SourceState>,
    take: impl Take,
) -> Result<(), GuardError> {
    let mut listing = Listing::new(take);
    reader.each_source(state, |view| listing.add(view))?;
    listing.end();
    Ok(())
}

struct Listing<T> {
    /// Sources to be sorted, up to the maximum.
    few: Option<Vec<SourceView>>,
    take: T,
    piece: Vec<u8>,
    begun: bool,
    goes_on: bool,
}

impl<T: Take> Listing<T> {
    fn new(take: T) -> Listing<T> {
        let piece = Vec::with_capacity(PIECE);
        Listing { few: Some(Vec::new()), take, piece, begun: false, goes_on: true }
    }

    /// Add a source; return whether more are accepted.
    fn add(&mut self, view: SourceView) -> bool {
        match &mut self.few {
            Some(few) if few.len() < SORTED => few.push(view),
            few => {
                few.take().into_iter().flatten().for_each(|view| self.write(&view));
                self.write(&view);
            }
        }
        self.goes_on
    }

    fn write(&mut self, view: &SourceView) {
        if !self.goes_on {
            return;
        }
        self.piece.extend_from_slice(if self.begun { b",\n" } else { b"[\n" });
        self.begun = true;
        // Views hold nothing that JSON cannot represent, and writing to a vector cannot fail.
        let _ = serde_json::to_writer(&mut self.piece, view);
        if self.piece.len() >= PIECE - ONE {
            let full = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
            self.goes_on = (self.take)(full);
        }
    }

    fn end(mut self) {
        let mut few = self.few.take().unwrap_or_default();
        sort(&mut few);
        few.iter().for_each(|view| self.write(view));
        self.piece.extend_from_slice(if self.begun { b"\n]\n" } else { b"[]\n" });
        if self.goes_on {
            (self.take)(self.piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(pings_total: u64) -> SourceView {
        let [_, b, c, d] = (pings_total as u32).to_be_bytes();
        SourceView::sample(&format!("10.{b}.{c}.{d}"), pings_total)
    }

    /// Return the pings of the listed sources, in order, and the largest piece.
    fn listed(count: u64) -> (Vec<u64>, usize) {
        let (mut text, mut largest) = (Vec::new(), 0);
        let mut listing = Listing::new(|piece: Vec<u8>| {
            largest = piece.len().max(largest);
            text.extend(piece);
            true
        });
        assert!((0..count).all(|pings| listing.add(view(pings))));
        listing.end();
        let views: Vec<SourceView> = serde_json::from_slice(&text).unwrap();
        (views.iter().map(|view| view.pings_total).collect(), largest)
    }

    #[test]
    fn few_are_sorted_and_many_are_all_there() {
        assert!(listed(0).0.is_empty());
        assert_eq!(listed(3).0, [2, 1, 0]);
        let most = SORTED as u64;
        assert_eq!(listed(most).0, (0..most).rev().collect::<Vec<_>>());
        let (many, largest) = listed(3 * most);
        assert_eq!(many, (0..3 * most).collect::<Vec<_>>());
        assert!(largest <= PIECE, "{largest}");
    }

    #[test]
    fn a_reader_that_left_is_written_to_no_more() {
        let mut pieces = 0;
        let mut listing = Listing::new(|_| {
            pieces += 1;
            false
        });
        let wanted = (0..3 * SORTED as u64).take_while(|pings| listing.add(view(*pings))).count();
        assert!(wanted < 2 * SORTED, "{wanted}");
        listing.end();
        assert_eq!(pieces, 1);
    }
}
