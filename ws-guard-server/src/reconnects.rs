//! Detection of reconnects, unlike new clients.
//!
//! After a pause of the server all clients that timed out reconnect. The table has a fixed size and
//! no lock: an address has one place, and another with the same place replaces it. So a few are
//! missed when many leave at once, and nothing grows.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::proxies::Caller;

/// Number of places in the table: 128 KiB.
const PLACES: usize = 16 * 1024;
/// Time after leaving within which a new connection counts as a reconnect.
const WINDOW: Duration = Duration::from_secs(60);

/// Addresses of recently ended connections.
pub struct Reconnects {
    started: Instant,
    hasher: RandomState,
    /// Half of an address's hash, and the second in which it left, from 1; 0: empty.
    places: Box<[AtomicU64]>,
}

impl Default for Reconnects {
    fn default() -> Reconnects {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Reconnects { started: Instant::now(), hasher: RandomState::new(), places }
    }
}

impl Reconnects {
    /// Record the end of a connection of this address.
    pub fn left(&self, client: Caller, now: Instant) {
        if let (tag, Some(place)) = self.place(client) {
            place.store(tag | self.second(now), Ordering::Relaxed);
        }
    }

    /// Check whether a connection of this address ended in the last minute.
    pub fn comes_back(&self, client: Caller, now: Instant) -> bool {
        let (tag, Some(place)) = self.place(client) else { return false };
        let kept = place.load(Ordering::Relaxed);
        let ago = self.second(now).saturating_sub(kept & u64::from(u32::MAX));
        kept != 0 && kept >> 32 == tag >> 32 && ago <= WINDOW.as_secs()
    }

    fn place(&self, client: Caller) -> (u64, Option<&AtomicU64>) {
        let hash = self.hasher.hash_one(client);
        (hash & !u64::from(u32::MAX), self.places.get(hash as usize % PLACES))
    }

    fn second(&self, now: Instant) -> u64 {
        1 + now.saturating_duration_since(self.started).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn whoever_left_within_a_minute_comes_back() {
        let (reconnects, now) = (Reconnects::default(), Instant::now());
        let [one, two] = ["10.0.0.1", "fd77::1"].map(|text| {
            let address: IpAddr = text.parse().unwrap();
            Caller::from(address)
        });
        assert!(!reconnects.comes_back(one, now));
        reconnects.left(one, now);
        assert!(reconnects.comes_back(one, now + WINDOW));
        assert!(!reconnects.comes_back(two, now));
        assert!(!reconnects.comes_back(one, now + WINDOW + Duration::from_secs(2)));
    }
}
