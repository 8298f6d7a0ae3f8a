//! Memory budget of all connections' buffers.

use bytes::Bytes;
use prometheus::IntGauge;

/// Number of bytes held in memory, as counted by their holders.
#[derive(Clone, Debug)]
pub struct MemoryBudget(IntGauge);

impl MemoryBudget {
    /// Create an empty count, shown by `gauge`.
    pub fn new(gauge: IntGauge) -> MemoryBudget {
        MemoryBudget(gauge)
    }

    /// Record that a holder has `now` bytes, after `before`.
    pub fn change(&self, before: usize, now: usize) {
        if now != before {
            self.0.add(now as i64 - before as i64);
        }
    }

    pub fn bytes(&self) -> usize {
        usize::try_from(self.0.get()).unwrap_or_default()
    }

    /// Count shared bytes once, until their last reference is dropped.
    pub fn shared(&self, bytes: Bytes) -> Bytes {
        self.change(0, bytes.len());
        Bytes::from_owner(Shared { bytes, held: self.clone() })
    }
}

struct Shared {
    bytes: Bytes,
    held: MemoryBudget,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.held.change(self.bytes.len(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_counts_once_and_until_its_last_reference_goes() {
        let held = MemoryBudget::new(IntGauge::new("held", "Bytes.").unwrap());
        held.change(0, 100);
        let one = held.shared(vec![7; 1000].into());
        let many = vec![one.slice(10..20); 50];
        assert_eq!((held.bytes(), &many[49][..]), (1100, &[7; 10][..]));
        drop(one);
        assert_eq!(held.bytes(), 1100);
        drop(many);
        assert_eq!(held.bytes(), 100);
    }
}
