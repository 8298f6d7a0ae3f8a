//! A topic's latest publications, by position.
//!
//! A position is an offset, which grows by one, and the epoch in which the publication was stored. An
//! epoch begins with the topic, and whenever what stores it may have lost the latest publications. So
//! two publications that share an offset differ in their epoch, and a position is good exactly where
//! the log has an entry of both.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use super::rules::History;

/// A place in a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub epoch: u64,
    pub offset: u64,
}

impl Position {
    /// The beginning of a topic, in an epoch that no other has had in this process.
    pub fn beginning() -> Position {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = now.as_micros() as u64;
        let after = |last: u64| now.max(last + 1);
        let last =
            LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
        Position { epoch: after(last.unwrap_or_default()), offset: 0 }
    }
}

/// A publication as subscribers are sent it.
#[derive(Debug)]
pub struct Entry {
    pub topic: Arc<str>,
    /// Where the topic has positions.
    pub position: Option<Position>,
    pub text: Bytes,
    /// Milliseconds on the clock of its exchange.
    pub at: u64,
    /// What makes a repetition known.
    pub key: Option<Box<str>>,
}

/// What the bookkeeping of an entry takes besides its text, about.
const OVERHEAD: usize = 128;

impl Entry {
    fn cost(&self) -> usize {
        self.text.len() + self.key.as_ref().map_or(0, |key| 2 * key.len()) + OVERHEAD
    }
}

/// The latest publications of a topic.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Arc<Entry>>,
    keys: HashMap<Box<str>, Position>,
    bytes: usize,
    /// What came before the first of `entries`.
    floor: Position,
    bounds: History,
}

impl Log {
    pub fn new(floor: Position, bounds: History) -> Log {
        let (entries, keys) = (VecDeque::new(), HashMap::new());
        Log { entries, keys, bytes: 0, floor, bounds }
    }

    /// The position of the latest.
    pub fn last(&self) -> Position {
        self.entries.back().and_then(|entry| entry.position).unwrap_or(self.floor)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where a publication with this key is.
    pub fn find(&self, key: &str) -> Option<Position> {
        self.keys.get(key).copied()
    }

    /// Take the next entry; whether it is the next.
    pub fn append(&mut self, entry: Arc<Entry>) -> bool {
        let Some(position) = entry.position else { return false };
        if position.offset != self.last().offset + 1 || position.epoch < self.last().epoch {
            return false;
        }
        self.bytes += entry.cost();
        if let Some(key) = &entry.key {
            self.keys.insert(key.clone(), position);
        }
        let now = entry.at;
        self.entries.push_back(entry);
        self.trim(now);
        true
    }

    /// Have other bounds from now on.
    pub fn bound(&mut self, bounds: History, now: u64) {
        self.bounds = bounds;
        self.trim(now);
    }

    /// Let go of what is over a bound at this time.
    pub fn trim(&mut self, now: u64) {
        let age = self.bounds.age.as_millis() as u64;
        while self.entries.front().is_some_and(|oldest| {
            self.entries.len() > self.bounds.messages
                || self.bytes > self.bounds.bytes
                || now.saturating_sub(oldest.at) > age
        }) {
            self.drop_oldest();
        }
    }

    /// Let go of the oldest; whether there was one.
    pub fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.entries.pop_front() else { return false };
        self.bytes -= oldest.cost();
        self.floor = oldest.position.unwrap_or(self.floor);
        if let Some(key) = &oldest.key
            && self.keys.get(key) == oldest.position.as_ref()
        {
            self.keys.remove(key);
        }
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
        true
    }

    /// All that came after a position, if it is one of this log that it still reaches back to.
    pub fn since(&self, position: Position) -> Option<impl Iterator<Item = &Arc<Entry>>> {
        let index = usize::try_from(position.offset.checked_sub(self.floor.offset)?).ok()?;
        let there = match index.checked_sub(1) {
            None => self.floor,
            Some(before) => self.entries.get(before)?.position?,
        };
        (there == position).then(|| self.entries.range(index..))
    }

    /// The position before that of an entry.
    pub fn before(&self, position: Position) -> Position {
        let offset = position.offset.saturating_sub(1);
        let index =
            offset.checked_sub(self.floor.offset).and_then(|index| usize::try_from(index).ok());
        let known = match index {
            Some(0) => Some(self.floor),
            Some(index) => self.entries.get(index - 1).and_then(|entry| entry.position),
            None => None,
        };
        known.unwrap_or(Position { offset, ..position })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn bounds(messages: usize) -> History {
        History { messages, bytes: 1 << 20, age: Duration::from_millis(100) }
    }

    fn entry(epoch: u64, offset: u64, at: u64) -> Arc<Entry> {
        Arc::new(Entry {
            topic: "t".into(),
            position: Some(Position { epoch, offset }),
            text: Bytes::from(offset.to_string()),
            at,
            key: Some(offset.to_string().into()),
        })
    }

    fn since(log: &Log, epoch: u64, offset: u64) -> Option<Vec<u64>> {
        let entries = log.since(Position { epoch, offset })?;
        Some(entries.filter_map(|entry| Some(entry.position?.offset)).collect())
    }

    #[test]
    fn positions_are_good_where_the_log_reaches_back_to_them() {
        let mut log = Log::new(Position { epoch: 7, offset: 0 }, bounds(3));
        assert_eq!(since(&log, 7, 0), Some(vec![]));
        assert!((1..=5).all(|offset| log.append(entry(7, offset, 0))));
        assert_eq!(since(&log, 7, 1), None);
        assert_eq!(since(&log, 7, 2), Some(vec![3, 4, 5]));
        assert_eq!(since(&log, 7, 5), Some(vec![]));
        assert_eq!((since(&log, 7, 6), since(&log, 8, 4)), (None, None));
        assert!(!log.append(entry(7, 5, 0)) && !log.append(entry(7, 7, 0)));
        assert_eq!((log.find("2"), log.find("3").map(|at| at.offset)), (None, Some(3)));
    }

    /// What was stored in another epoch under the same offset is not the same publication.
    #[test]
    fn an_epoch_that_begins_on_the_way_keeps_earlier_positions_good() {
        let mut log = Log::new(Position { epoch: 7, offset: 0 }, bounds(10));
        for (epoch, offset) in [(7, 1), (7, 2), (9, 3), (9, 4)] {
            assert!(log.append(entry(epoch, offset, 0)));
        }
        assert_eq!(since(&log, 7, 2), Some(vec![3, 4]));
        assert_eq!((since(&log, 7, 3), since(&log, 9, 3)), (None, Some(vec![4])));
        assert_eq!(log.before(Position { epoch: 9, offset: 3 }), Position { epoch: 7, offset: 2 });
    }

    #[test]
    fn age_and_bytes_bound_it() {
        let mut log = Log::new(Position::default(), bounds(10));
        for offset in 1..=4 {
            assert!(log.append(entry(0, offset, offset * 40)));
        }
        assert_eq!(since(&log, 0, 1), Some(vec![2, 3, 4]), "the first is 120 ms old");
        log.trim(1000);
        assert_eq!((since(&log, 0, 3), since(&log, 0, 4)), (None, Some(vec![])));
        assert_eq!((log.bytes(), log.keys.len()), (0, 0));
        let few = History { bytes: 2 * (OVERHEAD + 3), ..bounds(10) };
        let mut log = Log::new(Position::default(), few);
        assert!((1..=5).all(|offset| log.append(entry(0, offset, 0))));
        assert_eq!((since(&log, 0, 2), since(&log, 0, 3)), (None, Some(vec![4, 5])));
    }
}
