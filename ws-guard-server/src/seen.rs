//! Pings inside TLS, reported to a guard because the kernel cannot see them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use prometheus::{IntCounter, Registry};

use crate::register::Register;

/// Maximum number of waiting sources, one batch of reports.
/// More of them between two batches are lost and counted, and limited by the server alone.
pub const MOST: usize = 1000;

/// Pings by source since the last batch.
#[derive(Debug)]
pub struct Seen {
    by_source: Mutex<HashMap<IpNet, u32>>,
    noted: IntCounter,
    lost: IntCounter,
}

impl Seen {
    /// Create an empty record; its counters go to `registry`.
    pub fn new(registry: &Registry) -> prometheus::Result<Seen> {
        let register = Register::new(registry);
        Ok(Seen {
            by_source: Mutex::default(),
            noted: register.counter(
                "wsguard_server_tls_pings_total",
                "Pings inside TLS that were noted for the kernel's table of sources.",
            )?,
            lost: register.counter(
                "wsguard_server_tls_pings_lost_total",
                "Pings inside TLS that were not, because too many sources pinged at once.",
            )?,
        })
    }

    /// Record pings of a source.
    pub fn note(&self, source: IpNet, pings: u32) {
        let mut by_source = self.by_source();
        if by_source.len() >= MOST && !by_source.contains_key(&source) {
            return self.lost.inc_by(u64::from(pings));
        }
        let count = by_source.entry(source).or_default();
        *count = count.saturating_add(pings);
        self.noted.inc_by(u64::from(pings));
    }

    /// Take all pings since the last time.
    pub fn take(&self) -> HashMap<IpNet, u32> {
        std::mem::take(&mut self.by_source())
    }

    fn by_source(&self) -> MutexGuard<'_, HashMap<IpNet, u32>> {
        // A count is consistent whichever thread panics.
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn pings_add_up_until_they_are_taken() {
        let (seen, source) = (Seen::new(&Registry::new()).unwrap(), "10.0.0.1/32".parse().unwrap());
        seen.note(source, 3);
        seen.note(source, 4);
        seen.note(source, u32::MAX - 8);
        assert_eq!(seen.take(), HashMap::from([(source, u32::MAX - 1)]));
        assert!(seen.take().is_empty());
    }

    #[test]
    fn memory_is_bounded_and_loss_is_counted() {
        let seen = Seen::new(&Registry::new()).unwrap();
        let source = |n: u32| IpNet::from(std::net::IpAddr::from(Ipv4Addr::from_bits(n)));
        (0..2 * MOST as u32).for_each(|n| seen.note(source(n), 2));
        seen.note(source(0), 5);
        assert_eq!(seen.lost.get(), 2 * MOST as u64);
        let taken = seen.take();
        assert_eq!((taken.len(), taken[&source(0)]), (MOST, 7));
        seen.note(source(5000), 1);
        assert_eq!(seen.take().len(), 1);
    }
}
