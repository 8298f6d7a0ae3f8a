//! Counts of a region's connections.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{IntCounter, IntGauge};

use super::Metrics;

/// Maximum number of regions with their own time series; further ones are `other`.
const REGIONS: usize = 64;
/// Region of connections that name none.
const UNKNOWN: &str = "unknown";

/// State of a live connection, as in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    /// Connection with an overdue pong.
    Suspect,
    Closing,
}

impl Standing {
    pub const ALL: [Standing; 3] = [Standing::Open, Standing::Suspect, Standing::Closing];

    /// Return the label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Standing::Open => "open",
            Standing::Suspect => "suspect",
            Standing::Closing => "closing",
        }
    }
}

/// Connection in the counts of its region, until dropped.
#[derive(Debug)]
pub struct Standee {
    region: Arc<Region>,
    now: Standing,
    /// States in which it has been counted, a bit each.
    reached: u8,
}

impl Standee {
    /// Count an open connection.
    pub fn new(region: Arc<Region>) -> Standee {
        let mut standee = Standee { region, now: Standing::Open, reached: 0 };
        standee.enter(Standing::Open);
        standee
    }

    /// Count it in another state, if that differs.
    pub fn change(&mut self, to: Standing) {
        if to != self.now {
            self.region.live[self.now as usize].dec();
            self.enter(to);
        }
    }

    fn enter(&mut self, to: Standing) {
        let bit = 1 << to as u8;
        if self.reached & bit == 0 {
            self.reached |= bit;
            self.region.reached[to as usize].inc();
        }
        self.region.live[to as usize].inc();
        self.now = to;
    }
}

impl Drop for Standee {
    fn drop(&mut self) {
        self.region.live[self.now as usize].dec();
    }
}

/// Counters of a region.
#[derive(Debug)]
pub struct Region {
    name: Box<str>,
    pub open: IntCounter,
    pub message: IntCounter,
    pub close: IntCounter,
    pub error: IntCounter,
    /// Connections now in a state.
    live: [IntGauge; 3],
    /// Connections that have been in a state.
    reached: [IntCounter; 3],
}

impl Region {
    fn new(name: &str, metrics: &Metrics) -> Region {
        let event = |event: &str| metrics.events.with_label_values(&[event, name]);
        let labels = Standing::ALL.map(|state| [state.name(), name]);
        Region {
            name: name.into(),
            open: event("open"),
            message: event("message"),
            close: event("close"),
            error: event("error"),
            live: labels.map(|labels| metrics.live.with_label_values(&labels)),
            reached: labels.map(|labels| metrics.reached.with_label_values(&labels)),
        }
    }

    /// Return the label's value.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Regions that clients have named, in bounded number.
#[derive(Debug)]
pub struct Regions(Mutex<HashMap<Box<str>, Arc<Region>>>);

impl Regions {
    /// Create an empty set; the series of connections without a region exist.
    pub fn new(metrics: &Metrics) -> Regions {
        let unknown = (UNKNOWN.into(), Arc::new(Region::new(UNKNOWN, metrics)));
        Regions(Mutex::new(HashMap::from([unknown])))
    }

    /// Return the region that a client names, or that of clients without one.
    pub fn intern(&self, region: Option<&str>, metrics: &Metrics) -> Arc<Region> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut label = region.unwrap_or(UNKNOWN);
        if let Some(region) = known.get(label) {
            return region.clone();
        }
        if known.len() > REGIONS {
            label = "other";
        }
        let region = Arc::new(Region::new(label, metrics));
        known.insert(label.into(), region.clone());
        region
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn made_up_regions_are_others() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let regions = Regions::new(&metrics);
        let label = |region: Option<&str>| regions.intern(region, &metrics).name().to_owned();
        assert_eq!(label(None), "unknown");
        for number in 0..REGIONS {
            let name = format!("r{number}");
            assert_eq!(label(Some(&name)), name);
        }
        assert_eq!(label(Some("one-more")), "other");
        assert_eq!(label(Some("r7")), "r7");
        assert_eq!(label(None), "unknown");
    }

    #[test]
    fn a_connection_is_counted_once_in_each_state_and_live_in_one() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let region = Regions::new(&metrics).intern(None, &metrics);
        let live = || [0, 1, 2].map(|state: usize| region.live[state].get());
        let reached = || [0, 1, 2].map(|state: usize| region.reached[state].get());
        let mut standee = Standee::new(region.clone());
        for state in [Standing::Suspect, Standing::Open, Standing::Suspect] {
            standee.change(state);
        }
        assert_eq!((live(), reached()), ([0, 1, 0], [1, 1, 0]));
        standee.change(Standing::Closing);
        assert_eq!((live(), reached()), ([0, 0, 1], [1, 1, 1]));
        drop(standee);
        assert_eq!((live(), reached()), ([0, 0, 0], [1, 1, 1]));
    }
}
