//! Creation and registration of metrics in one step.

use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, core::Collector,
};

/// Registry that takes the metrics created for it.
#[derive(Clone, Copy)]
pub struct Register<'a>(&'a Registry);

impl<'a> Register<'a> {
    pub const fn new(registry: &'a Registry) -> Register<'a> {
        Register(registry)
    }

    fn keep<M: Collector + Clone + 'static>(self, metric: M) -> prometheus::Result<M> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub fn counter(self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.keep(IntCounter::new(name, help)?)
    }

    /// Create a counter of fractions, such as seconds.
    pub fn float_counter(self, name: &str, help: &str) -> prometheus::Result<Counter> {
        self.keep(Counter::new(name, help)?)
    }

    /// Create counters by labels whose values are not known in advance.
    pub fn counters(
        self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// Create counters by a label with known values; all series exist from the start.
    /// A series that begins with its first event hides that event from `rate()`.
    pub fn counters_of(
        self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = &'static str>,
    ) -> prometheus::Result<IntCounterVec> {
        let counters = self.counters(name, help, &[label])?;
        for value in values {
            counters.with_label_values(&[value]);
        }
        Ok(counters)
    }

    pub fn gauge(self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.keep(IntGauge::new(name, help)?)
    }

    pub fn float_gauge(self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.keep(Gauge::new(name, help)?)
    }

    pub fn gauges(
        self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub fn histogram(
        self,
        name: &str,
        help: &str,
        buckets: Vec<f64>,
    ) -> prometheus::Result<Histogram> {
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
    }
}
