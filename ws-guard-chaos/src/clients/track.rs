//! Where a client is in its topic: what is delivered, what is known already, and what is missing.

use serde_json::{Value, json};

/// How often the server is asked for what is missing before the application is told.
const ASKED: u32 = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: String,
    pub offset: u64,
}

impl Position {
    pub fn as_json(&self) -> Value {
        json!({"epoch": self.epoch, "offset": self.offset})
    }
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Deliver,
    Drop,
    /// Ask for what is missing.
    Ask,
    /// Tell the application that something is missing after this offset, and deliver.
    Tell(u64),
}

#[derive(Default)]
pub struct Track {
    pub at: Option<Position>,
    asked: u32,
    /// A subscription is on its way, and until it is answered nothing is delivered.
    pub asking: bool,
}

impl Track {
    pub fn offset(&self) -> u64 {
        self.at.as_ref().map_or(0, |at| at.offset)
    }

    pub fn restart(&mut self, at: Position) {
        (self.at, self.asked) = (Some(at), 0);
    }

    pub fn receive(&mut self, message: Position) -> Verdict {
        let last = self.offset();
        if self.asking || self.at.is_none() || message.offset <= last {
            return Verdict::Drop;
        }
        if message.offset > last + 1 && self.asked < ASKED {
            self.asked += 1;
            return Verdict::Ask;
        }
        let gap = message.offset > last + 1;
        self.restart(message);
        if gap { Verdict::Tell(last) } else { Verdict::Deliver }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Position {
        Position { epoch: "e".into(), offset }
    }

    #[test]
    fn in_order_and_once_and_gaps_are_asked_for_and_then_told() {
        let mut track = Track::default();
        assert_eq!(track.receive(at(1)), Verdict::Drop);
        track.restart(at(4));
        assert_eq!(track.receive(at(5)), Verdict::Deliver);
        assert_eq!(track.receive(at(5)), Verdict::Drop);
        for _ in 0..ASKED {
            assert_eq!(track.receive(at(7)), Verdict::Ask);
        }
        assert_eq!(track.receive(at(7)), Verdict::Tell(5));
        assert_eq!(track.receive(at(8)), Verdict::Deliver);
        track.asking = true;
        assert_eq!(track.receive(at(9)), Verdict::Drop);
    }
}
