//! Which node of a Redis Cluster has which key.

use crc::{CRC_16_XMODEM, Crc};

/// Slots of a cluster, of which each has one node.
const SLOTS: u16 = 16_384;
const DIGEST: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// Ranges of slots, and the number of the node that has each.
#[derive(Clone, Debug, Default)]
pub struct Slots(Vec<(u16, u16, usize)>);

impl Slots {
    /// These slots are of this node.
    pub fn add(&mut self, first: u16, last: u16, node: usize) {
        self.0.push((first, last, node));
    }

    /// Whether each slot has a node.
    pub fn are_all_there(&self) -> bool {
        let slots = self.0.iter().map(|(first, last, _)| usize::from(last - first) + 1);
        slots.sum::<usize>() == usize::from(SLOTS)
    }

    /// The node that has a key.
    pub fn node(&self, key: &str) -> usize {
        let slot = slot(key);
        let range = self.0.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        range.map_or(0, |(_, _, node)| *node)
    }
}

/// The slot of a key: of what is between its first braces, if that is something.
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let tag = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty());
    DIGEST.checksum(tag.unwrap_or(key).as_bytes()) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `CLUSTER KEYSLOT` says.
    #[test]
    fn a_key_has_the_slot_that_redis_gives_it() {
        assert_eq!(slot("123456789"), 12739);
        assert_eq!(slot("foo"), 12182);
        assert_eq!(slot("cluster:test:ws:topic:{foo}"), slot("foo"));
        assert_eq!(slot("foo{}"), DIGEST.checksum(b"foo{}") % SLOTS);
        let mut slots = Slots::default();
        slots.add(0, 9999, 1);
        assert!(!slots.are_all_there());
        slots.add(10_000, 16_383, 0);
        assert!(slots.are_all_there());
        assert_eq!([slots.node("foo"), slots.node("{b}")], [0, 1]);
    }
}
