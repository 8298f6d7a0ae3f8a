//! Exemplars as in OpenMetrics: the connection behind a sample.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use prometheus::{Histogram, IntCounterVec};
use serde::{Deserialize, Serialize};

use crate::register::Register;

/// Exemplar of a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exemplar {
    /// Name of the sample's family.
    /// The value of its only label, if any, and a histogram's bucket number follow.
    pub family: Cow<'static, str>,
    pub label: Option<Cow<'static, str>>,
    pub bucket: Option<usize>,
    pub connection_id: u64,
    /// Trace id in hexadecimal, where traces are exported.
    pub trace_id: Option<String>,
    /// Value observed for the connection.
    pub value: f64,
    /// Seconds since 1970.
    pub time: f64,
}

/// Distinction between the samples of a family.
#[derive(Clone, Copy, Debug)]
enum Samples {
    Buckets,
    Values(&'static [&'static str]),
    Single,
}

/// Latest exemplar of each sample of a family.
#[derive(Clone, Debug)]
pub struct Exemplars {
    family: &'static str,
    samples: Samples,
    slots: Arc<[Slot]>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Second in which the exemplar was set; the next one has to be of a later second.
    /// So the cost does not depend on the rate of events.
    second: AtomicU64,
    kept: Mutex<Option<Kept>>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    connection_id: u64,
    value: f64,
    time: f64,
}

impl Exemplars {
    fn new(family: &'static str, samples: Samples, count: usize) -> Exemplars {
        Exemplars { family, samples, slots: (0..count).map(|_| Slot::default()).collect() }
    }

    /// Create the exemplars of a family with one sample.
    pub fn single(family: &'static str) -> Exemplars {
        Exemplars::new(family, Samples::Single, 1)
    }

    /// Offer a connection as the exemplar of a changed sample.
    pub fn offer(&self, sample: usize, connection_id: u64, value: f64) {
        if let Some(slot) = self.slots.get(sample) {
            slot.offer(connection_id, value);
        }
    }

    pub fn all(&self) -> impl Iterator<Item = Exemplar> {
        self.slots.iter().enumerate().filter_map(|(number, slot)| {
            let kept = slot.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let Kept { connection_id, value, time } = (*kept)?;
            let (label, bucket) = match self.samples {
                Samples::Buckets => (None, Some(number)),
                Samples::Values(values) => (Some(values[number].into()), None),
                Samples::Single => (None, None),
            };
            let family = self.family.into();
            let trace_id = None;
            Some(Exemplar { family, label, bucket, connection_id, trace_id, value, time })
        })
    }
}

impl Slot {
    fn offer(&self, connection_id: u64, value: f64) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second.load(Ordering::Relaxed) == since.as_secs() {
            return;
        }
        // An exemplar that is being read is not replaced.
        if let Ok(mut kept) = self.kept.try_lock() {
            self.second.store(since.as_secs(), Ordering::Relaxed);
            *kept = Some(Kept { connection_id, value, time: since.as_secs_f64() });
        }
    }
}

/// Histogram with exemplars.
#[derive(Clone, Debug)]
pub struct TracedHistogram {
    histogram: Histogram,
    bounds: Arc<[f64]>,
    pub exemplars: Exemplars,
}

impl TracedHistogram {
    pub(super) fn new(
        register: Register<'_>,
        name: &'static str,
        help: &str,
        bounds: Vec<f64>,
    ) -> prometheus::Result<TracedHistogram> {
        // One more, for the bucket without a bound.
        let exemplars = Exemplars::new(name, Samples::Buckets, bounds.len() + 1);
        let histogram = register.histogram(name, help, bounds.clone())?;
        Ok(TracedHistogram { histogram, bounds: bounds.into(), exemplars })
    }

    /// Observe a value of a connection.
    pub fn observe(&self, connection_id: u64, value: f64) {
        self.histogram.observe(value);
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.exemplars.offer(bucket, connection_id, value);
    }
}

/// Counters by one label with known values, with exemplars.
#[derive(Clone, Debug)]
pub struct TracedCounters {
    counters: IntCounterVec,
    values: &'static [&'static str],
    pub exemplars: Exemplars,
}

impl TracedCounters {
    pub(super) fn new(
        register: Register<'_>,
        name: &'static str,
        help: &str,
        label: &str,
        values: &'static [&'static str],
    ) -> prometheus::Result<TracedCounters> {
        let exemplars = Exemplars::new(name, Samples::Values(values), values.len());
        let counters = register.counters_of(name, help, label, values.iter().copied())?;
        Ok(TracedCounters { counters, values, exemplars })
    }

    /// Count a connection under a value of the label.
    pub fn inc(&self, value: &str, connection_id: u64) {
        self.counters.with_label_values(&[value]).inc();
        if let Some(number) = self.values.iter().position(|known| *known == value) {
            self.exemplars.offer(number, connection_id, 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn each_bucket_remembers_a_connection_that_is_in_it() {
        let registry = Registry::new();
        let register = Register::new(&registry);
        let traced = TracedHistogram::new(register, "t", "t", vec![0.5, 1.0]).unwrap();
        assert_eq!(traced.exemplars.all().count(), 0);
        for (id, value) in [(7, 0.5), (8, 1.5), (9, 2.5)] {
            traced.observe(id, value);
        }
        let found: Vec<Exemplar> = traced.exemplars.all().collect();
        let counts = registry.gather()[0].get_metric()[0].get_histogram().clone();
        assert_eq!(counts.get_bucket()[0].cumulative_count(), 1);
        let shown = |exemplar: &Exemplar| (exemplar.bucket, exemplar.connection_id, exemplar.value);
        // The third came in the same second as the other one, or in the next.
        assert_eq!(shown(&found[0]), (Some(0), 7, 0.5));
        assert!([(Some(2), 8, 1.5), (Some(2), 9, 2.5)].contains(&shown(&found[1])), "{found:?}");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_newer_second_replaces_what_was_kept() {
        let exemplars = Exemplars::single("t");
        exemplars.offer(0, 1, 1.0);
        exemplars.slots[0].second.store(0, Ordering::Relaxed);
        exemplars.offer(0, 2, 3.0);
        let found: Vec<Exemplar> = exemplars.all().collect();
        assert_eq!((found[0].connection_id, found[0].value), (2, 3.0));
    }
}
