//! Transfer of metrics from the server's process to the daemon's registry.

use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use serde::{Deserialize, Serialize};
use ws_guard_server::metrics::Exemplar;

/// Prefix of the server's metrics.
const PREFIX: &str = "wsguard_server_";
const OTHERS: [&str; 2] = ["websocket_connections_total", "wsguard_otlp_requests_total"];

/// Result of a scrape of the server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reading {
    pub families: Vec<Family>,
    /// Connections that are exemplars of samples.
    pub exemplars: Vec<Exemplar>,
}

/// Metric family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Family {
    name: String,
    help: String,
    kind: Kind,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    labels: Vec<(String, String)>,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Value {
    Single(f64),
    /// Upper bounds with cumulative counts, without the last, open bucket.
    Histogram {
        sum: f64,
        count: u64,
        buckets: Vec<(f64, u64)>,
    },
}

impl Family {
    /// Convert a family for sending; none of a type that the server does not use.
    pub fn sent(family: &MetricFamily) -> Option<Family> {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => Kind::Counter,
            MetricType::GAUGE => Kind::Gauge,
            MetricType::HISTOGRAM => Kind::Histogram,
            _ => return None,
        };
        let sample = |metric: &proto::Metric| {
            let pair = |pair: &LabelPair| (pair.name().to_owned(), pair.value().to_owned());
            let value = match kind {
                Kind::Counter => Value::Single(metric.get_counter().get_value()),
                Kind::Gauge => Value::Single(metric.get_gauge().get_value()),
                Kind::Histogram => histogram(metric.get_histogram()),
            };
            Sample { labels: metric.get_label().iter().map(pair).collect(), value }
        };
        let samples = family.get_metric().iter().map(sample).collect();
        Some(Family { name: family.name().into(), help: family.help().into(), kind, samples })
    }

    /// Convert a received family for a registry; none with a foreign name or label.
    /// A compromised server may report about itself, and not for the guard.
    pub fn received(self) -> Option<MetricFamily> {
        if !self.is_the_servers() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.name);
        family.set_help(self.help);
        family.set_field_type(match self.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        let kind = self.kind;
        family.set_metric(self.samples.into_iter().map(|sample| sample.metric(kind)).collect());
        Some(family)
    }

    fn is_the_servers(&self) -> bool {
        let known = self.name.starts_with(PREFIX) || OTHERS.contains(&&*self.name);
        let plain = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let labels = self.samples.iter().flat_map(|sample| &sample.labels);
        known && plain(&self.name) && labels.into_iter().all(|(name, _)| plain(name))
    }
}

fn histogram(histogram: &proto::Histogram) -> Value {
    let buckets = histogram.get_bucket().iter();
    Value::Histogram {
        sum: histogram.get_sample_sum(),
        count: histogram.get_sample_count(),
        buckets: buckets.map(|b| (b.upper_bound(), b.cumulative_count())).collect(),
    }
}

impl Sample {
    fn metric(self, kind: Kind) -> proto::Metric {
        let mut metric = proto::Metric::default();
        let pair = |(name, value): (String, String)| {
            let mut pair = LabelPair::default();
            pair.set_name(name);
            pair.set_value(value);
            pair
        };
        metric.set_label(self.labels.into_iter().map(pair).collect());
        match (self.value, kind) {
            (Value::Single(value), Kind::Counter) => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            (Value::Single(value), _) => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            (Value::Histogram { sum, count, buckets }, _) => {
                let bucket = |(bound, count): (f64, u64)| {
                    let mut bucket = proto::Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(count);
                    bucket
                };
                let mut histogram = proto::Histogram::default();
                histogram.set_sample_sum(sum);
                histogram.set_sample_count(count);
                histogram.set_bucket(buckets.into_iter().map(bucket).collect());
                metric.set_histogram(histogram);
            }
        }
        metric
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{
        Encoder, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
    };

    use super::*;

    #[test]
    fn metrics_arrive_as_they_were_sent() {
        let registry = Registry::new();
        let counters =
            IntCounterVec::new(Opts::new("wsguard_server_c_total", "Counts."), &["kind"]).unwrap();
        counters.with_label_values(&["a\"b"]).inc_by(3);
        let gauge = prometheus::Gauge::new("wsguard_server_g", "Stands.").unwrap();
        gauge.set(-1.5);
        let options =
            HistogramOpts::new("wsguard_server_h_seconds", "Takes.").buckets(vec![0.1, 1.0]);
        let histograms = HistogramVec::new(options, &["to"]).unwrap();
        [0.05, 0.5, 7.0].iter().for_each(|v| histograms.with_label_values(&["x"]).observe(*v));
        registry.register(Box::new(counters)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(histograms)).unwrap();
        let text = |families: &[MetricFamily]| {
            let mut text = Vec::new();
            TextEncoder::new().encode(families, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        let gathered = registry.gather();
        let sent: Vec<Family> = gathered.iter().filter_map(Family::sent).collect();
        let json = serde_json::to_vec(&sent).unwrap();
        let read: Vec<Family> = serde_json::from_slice(&json).unwrap();
        let arrived: Vec<MetricFamily> = read.into_iter().filter_map(Family::received).collect();
        assert_eq!(text(&arrived), text(&gathered));
        assert!(text(&arrived).contains("h_seconds_bucket{to=\"x\",le=\"+Inf\"} 3"));
    }

    #[test]
    fn other_families_are_left_out() {
        let family = |name: &str, label: &str| Family {
            name: name.into(),
            help: String::new(),
            kind: Kind::Gauge,
            samples: vec![Sample {
                labels: vec![(label.into(), "\n".into())],
                value: Value::Single(1.0),
            }],
        };
        assert!(family("wsguard_server_held", "kind").received().is_some());
        assert!(family("websocket_connections_total", "state").received().is_some());
        for (name, label) in [
            ("wsguard_up", "kind"),
            ("wsguard_server_a 1\nwsguard_up", "kind"),
            ("wsguard_server_a", "kind=\"\"} 1\nwsguard_up{a"),
            ("wsguard_server_a", ""),
        ] {
            assert!(family(name, label).received().is_none(), "{name} {label}");
        }
    }
}
