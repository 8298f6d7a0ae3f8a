//! Construction of metric families from values that are counted elsewhere.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

/// Label names and values of one sample.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Create a family without samples.
fn family(name: &str, help: &str, kind: MetricType) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("wsguard_{name}"));
    family.set_help(help.to_string());
    family.set_field_type(kind);
    family
}

fn metric(labels: Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_string());
        pair.set_value(value.to_string());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

/// Create a family of counters.
pub fn counters(name: &str, help: &str, samples: &[(Labels<'_>, u64)]) -> MetricFamily {
    let sample = |(labels, value): &(Labels<'_>, u64)| {
        let mut counter = Counter::default();
        counter.set_value(*value as f64);
        let mut metric = metric(labels);
        metric.set_counter(counter);
        metric
    };
    let mut family = family(name, help, MetricType::COUNTER);
    family.set_metric(samples.iter().map(sample).collect());
    family
}

/// Create a family of gauges.
pub fn gauges(name: &str, help: &str, samples: &[(Labels<'_>, f64)]) -> MetricFamily {
    let sample = |(labels, value): &(Labels<'_>, f64)| {
        let mut gauge = Gauge::default();
        gauge.set_value(*value);
        let mut metric = metric(labels);
        metric.set_gauge(gauge);
        metric
    };
    let mut family = family(name, help, MetricType::GAUGE);
    family.set_metric(samples.iter().map(sample).collect());
    family
}

/// Labels of a histogram, its counts by bucket, and its sum.
pub type Counted<'a> = (Labels<'a>, &'a [u64], f64);

/// Create a family of histograms from counts by bucket, not cumulative.
/// `bounds` are the upper bounds of all buckets but the last, which is open.
pub fn histograms(name: &str, help: &str, bounds: &[f64], samples: &[Counted<'_>]) -> MetricFamily {
    let sample = |(labels, counts, sum): &Counted<'_>| {
        let mut total = 0;
        let mut buckets = Vec::with_capacity(bounds.len());
        for (bound, count) in bounds.iter().zip(*counts) {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            buckets.push(bucket);
        }
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_sum(*sum);
        histogram.set_sample_count(counts.iter().sum());
        let mut metric = metric(labels);
        metric.set_histogram(histogram);
        metric
    };
    let mut family = family(name, help, MetricType::HISTOGRAM);
    family.set_metric(samples.iter().map(sample).collect());
    family
}
