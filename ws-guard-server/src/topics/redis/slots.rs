//! Which node of a Redis Cluster has which key.

use std::ops::RangeInclusive;

use crc::{CRC_16_XMODEM, Crc};

/// Slots of a cluster, of which each has one node.
const SLOTS: u16 = 16_384;
const DIGEST: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// A slot that no node has.
const NOWHERE: u16 = u16::MAX;

/// The number of the node that has each slot.
#[derive(Clone, Debug)]
pub struct Slots(Vec<u16>);

impl Default for Slots {
    fn default() -> Slots {
        Slots(vec![NOWHERE; usize::from(SLOTS)])
    }
}

impl Slots {
    /// These slots are of this node.
    pub fn set(&mut self, slots: RangeInclusive<u16>, node: usize) {
        let node = u16::try_from(node).unwrap_or(NOWHERE);
        let slots = usize::from(*slots.start())..=usize::from(*slots.end());
        if let Some(slots) = self.0.get_mut(slots) {
            slots.fill(node);
        }
    }

    /// Whether each slot has a node.
    pub fn are_all_there(&self) -> bool {
        !self.0.contains(&NOWHERE)
    }

    /// The node that has a key.
    pub fn node(&self, key: &str) -> usize {
        match self.0.get(usize::from(slot(key))) {
            Some(&node) if node != NOWHERE => node.into(),
            _ => 0,
        }
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
        slots.set(0..=9999, 1);
        assert!(!slots.are_all_there());
        slots.set(10_000..=16_383, 0);
        assert!(slots.are_all_there());
        assert_eq!([slots.node("foo"), slots.node("{b}")], [0, 1]);
        // One moves; a cluster that names others is not believed.
        slots.set(slot("foo")..=slot("foo"), 2);
        slots.set(16_384..=16_384, 2);
        assert_eq!([slots.node("foo"), slots.node("{b}")], [2, 1]);
    }
}
