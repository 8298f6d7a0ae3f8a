//! Export of a registry's metrics to a collector, unchanged.
//! There is one set of numbers, and `/metrics` and OTLP both show it.

use std::{
    io::Read,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use flate2::{Compression, read::GzEncoder};
use hyper::{Request, header};
use opentelemetry_http::HttpClient;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource,
};
use opentelemetry_sdk::Resource;
use prometheus::{
    Registry,
    proto::{self, MetricFamily, MetricType},
};
use prost::Message;
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};

use super::{
    environment::{Signal, header},
    http::Http,
};

/// Default interval of exports; `OTEL_METRIC_EXPORT_INTERVAL` overrides it.
const INTERVAL: Duration = Duration::from_secs(60);

/// Periodic exporter of a registry's metrics.
pub struct Push {
    http: Http,
    signal: Signal,
    registry: Registry,
    resource: resource::v1::Resource,
    started: SystemTime,
}

impl Push {
    pub fn new(http: &Http, signal: Signal, registry: Registry, resource: &Resource) -> Push {
        let attribute = |(key, value): (&opentelemetry::Key, &opentelemetry::Value)| {
            text(key.as_str(), &value.to_string())
        };
        let attributes = resource.iter().map(attribute).collect();
        let resource = resource::v1::Resource { attributes, ..resource::v1::Resource::default() };
        let http = http.carrying("metrics", signal.timeout);
        Push { http, signal, registry, resource, started: SystemTime::now() }
    }

    /// Export until `stop`, and once more then.
    pub async fn run(self, mut stop: oneshot::Receiver<()>) {
        let interval = interval();
        while timeout(interval, &mut stop).await.is_err() {
            self.export().await;
        }
        self.export().await;
    }

    async fn export(&self) {
        let registry = self.registry.clone();
        // Reading the kernel's maps takes system calls.
        let Ok(families) = spawn_blocking(move || registry.gather()).await else { return };
        let span = Span { start: nanos(self.started), now: nanos(SystemTime::now()) };
        let metrics = families.iter().filter_map(|family| span.metric(family)).collect();
        let mut body = self.wrap(metrics).encode_to_vec();
        let mut request = Request::post(&self.signal.address)
            .header(header::CONTENT_TYPE, "application/x-protobuf");
        if self.signal.gzip {
            (request, body) = (request.header(header::CONTENT_ENCODING, "gzip"), gzip(&body));
        }
        for (name, value) in self.signal.headers.split(',').filter_map(header) {
            request = request.header(name, value);
        }
        match request.body(Bytes::from(body)) {
            // It logs and counts errors itself.
            Ok(request) => drop(self.http.send_bytes(request).await),
            Err(error) => tracing::warn!("cannot export metrics: {error}"),
        }
    }

    fn wrap(&self, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
        let scope = InstrumentationScope {
            name: "ws-guard".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        let scope = ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![scope],
                schema_url: String::new(),
            }],
        }
    }
}

/// Compress as for `Content-Encoding: gzip`.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = GzEncoder::new(bytes, Compression::fast());
    // Neither end of it is a device.
    let _ = encoder.read_to_end(&mut packed);
    packed
}

fn interval() -> Duration {
    let given = std::env::var("OTEL_METRIC_EXPORT_INTERVAL").ok();
    let given = given.and_then(|ms| ms.trim().parse().ok()).filter(|ms| *ms > 0);
    given.map_or(INTERVAL, Duration::from_millis)
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.into(), value, ..KeyValue::default() }
}

/// Start of the counters, and the present.
struct Span {
    start: u64,
    now: u64,
}

impl Span {
    fn metric(&self, family: &MetricFamily) -> Option<Metric> {
        let samples = family.get_metric();
        let numbers = |value: fn(&proto::Metric) -> f64| {
            samples.iter().map(|sample| self.number(sample, value(sample))).collect()
        };
        let cumulative = AggregationTemporality::Cumulative.into();
        let data = match family.get_field_type() {
            MetricType::COUNTER => Data::Sum(Sum {
                data_points: numbers(|sample| sample.get_counter().get_value()),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            MetricType::GAUGE => {
                Data::Gauge(Gauge { data_points: numbers(|sample| sample.get_gauge().get_value()) })
            }
            MetricType::HISTOGRAM => Data::Histogram(Histogram {
                data_points: samples.iter().map(|sample| self.histogram(sample)).collect(),
                aggregation_temporality: cumulative,
            }),
            // Our registries have none.
            MetricType::SUMMARY | MetricType::UNTYPED => return None,
        };
        Some(Metric {
            name: family.name().into(),
            description: family.help().into(),
            unit: unit(family.name()).into(),
            data: Some(data),
            ..Metric::default()
        })
    }

    fn number(&self, sample: &proto::Metric, value: f64) -> NumberDataPoint {
        NumberDataPoint {
            attributes: labels(sample),
            start_time_unix_nano: self.start,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        }
    }

    /// Convert a histogram: Prometheus' buckets are cumulative, those of OTLP are not.
    fn histogram(&self, sample: &proto::Metric) -> HistogramDataPoint {
        let histogram = sample.get_histogram();
        let buckets =
            histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
        let (mut bounds, mut counts, mut below) = (Vec::new(), Vec::new(), 0);
        for bucket in buckets {
            bounds.push(bucket.upper_bound());
            counts.push(bucket.cumulative_count().saturating_sub(below));
            below = bucket.cumulative_count();
        }
        counts.push(histogram.get_sample_count().saturating_sub(below));
        HistogramDataPoint {
            attributes: labels(sample),
            start_time_unix_nano: self.start,
            time_unix_nano: self.now,
            count: histogram.get_sample_count(),
            sum: Some(histogram.get_sample_sum()),
            bucket_counts: counts,
            explicit_bounds: bounds,
            ..HistogramDataPoint::default()
        }
    }
}

fn labels(sample: &proto::Metric) -> Vec<KeyValue> {
    sample.get_label().iter().map(|label| text(label.name(), label.value())).collect()
}

/// Return the unit in UCUM notation, by the suffix that Prometheus recommends.
fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_total");
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "1",
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, IntCounterVec, Opts};

    use super::*;

    #[test]
    fn a_family_becomes_a_metric_with_the_same_numbers() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_total", "A."), &["l"]).unwrap();
        let options = HistogramOpts::new("b_seconds", "B.").buckets(vec![0.5, 1.0]);
        let histogram = prometheus::Histogram::with_opts(options).unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        registry.register(Box::new(histogram.clone())).unwrap();
        counter.with_label_values(&["x"]).inc_by(3);
        [0.1, 0.7, 0.8, 9.0].into_iter().for_each(|value| histogram.observe(value));
        let span = Span { start: 1, now: 2 };
        let metrics: Vec<Metric> =
            registry.gather().iter().filter_map(|family| span.metric(family)).collect();
        let [Some(Data::Sum(sum)), Some(Data::Histogram(hist))] =
            [metrics[0].data.clone(), metrics[1].data.clone()]
        else {
            panic!("{metrics:?}")
        };
        assert!(sum.is_monotonic && sum.data_points[0].attributes == [text("l", "x")]);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(3.0)));
        let point = &hist.data_points[0];
        assert_eq!((&*point.bucket_counts, point.count), (&[1, 2, 1][..], 4));
        assert_eq!((&*point.explicit_bounds, &*metrics[1].unit), (&[0.5, 1.0][..], "s"));
    }
}
