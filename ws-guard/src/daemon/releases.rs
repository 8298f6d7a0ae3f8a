//! Start and end of each throttle, reported once.
//! The source is the kernel's event, or its table if the event is late (a release waits for the
//! source's next ping) or lost.

use std::collections::HashMap;

use ws_guard_common::maps::SourceKey;

/// Throttles without a reported end: source → start, ns of CLOCK_MONOTONIC.
#[derive(Default)]
pub struct Releases {
    open: HashMap<SourceKey, u64>,
}

/// Change seen in the table before any event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Source and start of its throttle.
    Throttled(SourceKey, u64),
    Released(SourceKey),
}

impl Releases {
    /// Return the sources whose throttle is not known to have ended.
    pub fn open(&self) -> impl Iterator<Item = &SourceKey> {
        self.open.keys()
    }

    /// Record the start of a throttle, and return whether it is news.
    pub fn throttled(&mut self, source: SourceKey, since: u64) -> bool {
        let known = self.open.entry(source).or_insert(0);
        let news = since > *known;
        *known = since.max(*known);
        news
    }

    /// Record a release by the kernel at `time`, and return whether it is news.
    /// One that is not later than the known throttle ended an earlier one, whose end was reported
    /// already.
    pub fn released(&mut self, source: &SourceKey, time: u64) -> bool {
        let news = self.open.get(source).is_some_and(|since| *since < time);
        if news {
            self.open.remove(source);
        }
        news
    }

    /// Compare with the table's throttled sources, and return the news.
    pub fn seen(&mut self, throttled: &HashMap<SourceKey, u64>) -> Vec<News> {
        let mut news = Vec::new();
        self.open.retain(|source, since| {
            let now = throttled.get(source);
            // Gone, or ended and started again since the last look.
            if now.is_none_or(|now| now > since) {
                news.push(News::Released(*source));
            }
            now.is_some()
        });
        for (source, since) in throttled {
            if self.throttled(*source, *since) {
                news.push(News::Throttled(*source, *since));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use ws_guard_common::maps::Address;

    use super::*;

    const SOURCE: SourceKey = SourceKey { address: Address([1, 2, 3, 4]), scope: 0 };

    fn table(since: Option<u64>) -> HashMap<SourceKey, u64> {
        since.map(|since| (SOURCE, since)).into_iter().collect()
    }

    #[test]
    fn the_table_tells_first_and_the_kernel_is_not_repeated() {
        let mut releases = Releases::default();
        assert!(releases.throttled(SOURCE, 10));
        assert_eq!(releases.seen(&table(Some(10))), []);
        assert_eq!(releases.seen(&table(None)), [News::Released(SOURCE)]);
        assert_eq!(releases.seen(&table(None)), []);
        assert!(!releases.released(&SOURCE, 30));
    }

    #[test]
    fn the_kernel_tells_first_and_the_table_is_silent() {
        let mut releases = Releases::default();
        assert!(releases.throttled(SOURCE, 10));
        assert!(releases.released(&SOURCE, 30));
        assert_eq!(releases.seen(&table(None)), []);
    }

    #[test]
    fn released_and_throttled_again_by_one_ping() {
        let mut releases = Releases::default();
        assert!(releases.throttled(SOURCE, 10));
        // The table shows the new throttle before the kernel's two events are read.
        assert_eq!(
            releases.seen(&table(Some(30))),
            [News::Released(SOURCE), News::Throttled(SOURCE, 30)]
        );
        assert!(!releases.released(&SOURCE, 30));
        assert!(!releases.throttled(SOURCE, 30));
        assert_eq!(releases.seen(&table(None)), [News::Released(SOURCE)]);
    }

    #[test]
    fn what_no_event_told_the_table_tells() {
        let mut releases = Releases::default();
        assert_eq!(releases.seen(&table(Some(10))), [News::Throttled(SOURCE, 10)]);
        assert!(!releases.throttled(SOURCE, 10));
        assert!(releases.released(&SOURCE, 40));
    }
}
