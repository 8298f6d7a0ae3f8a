//! OpenMetrics 1.0, for scrapers that accept it, with the same samples and names.
//!
//! <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>. The crate
//! `prometheus` writes the older text format only.

use std::fmt::Write as _;

use prometheus::proto::{LabelPair, MetricFamily, MetricType};
use ws_guard_server::metrics::Exemplar;

pub const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Check whether a header `Accept` names the format.
pub fn is_accepted(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let refused = |parameter: &str| {
            let weight = parameter.strip_prefix("q=").and_then(|q| q.parse::<f64>().ok());
            weight == Some(0.0)
        };
        kind.eq_ignore_ascii_case("application/openmetrics-text") && !parts.any(refused)
    })
}

/// Encode families, with exemplars of their samples where known.
pub fn encode(families: &[MetricFamily], exemplars: &[Exemplar]) -> String {
    let mut text = String::new();
    for family in families {
        let (name, kind) = described(family);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}");
        let _ = writeln!(text, "# HELP {name} {}", escaped(family.help()));
        let of_family = |exemplar: &&Exemplar| exemplar.family == family.name();
        let exemplars: Vec<&Exemplar> = exemplars.iter().filter(of_family).collect();
        samples(&mut text, family, &exemplars);
    }
    text.push_str("# EOF\n");
    text
}

/// Return a family's name and type.
/// A counter's name lacks its samples' `_total`; one whose samples lack it too is not a counter
/// here.
fn described(family: &MetricFamily) -> (&str, &'static str) {
    let name = family.name();
    match family.get_field_type() {
        MetricType::COUNTER => {
            name.strip_suffix("_total").map_or((name, "unknown"), |name| (name, "counter"))
        }
        MetricType::GAUGE => (name, "gauge"),
        MetricType::HISTOGRAM => (name, "histogram"),
        MetricType::SUMMARY => (name, "summary"),
        MetricType::UNTYPED => (name, "unknown"),
    }
}

fn samples(text: &mut String, family: &MetricFamily, exemplars: &[&Exemplar]) {
    let name = family.name();
    for metric in family.get_metric() {
        let labels = metric.get_label();
        let mut sample =
            |suffix: &str, more: Option<(&str, String)>, value: f64, of: Option<&Exemplar>| {
                let _ = write!(text, "{name}{suffix}");
                write_labels(text, labels, more);
                let _ = write!(text, " {}", number(value));
                if let Some(Exemplar { connection_id, trace_id, value, time, .. }) = of {
                    let _ = write!(text, " # {{connection_id=\"{connection_id}\"");
                    if let Some(trace_id) = trace_id {
                        let _ = write!(text, ",trace_id=\"{trace_id}\"");
                    }
                    let _ = write!(text, "}} {} {time:.3}", number(*value));
                }
                text.push('\n');
            };
        let of = |bucket: Option<usize>| {
            exemplars.iter().copied().find(|exemplar| {
                let label = exemplar.label.as_deref();
                exemplar.bucket == bucket && label == labels.first().map(LabelPair::value)
            })
        };
        match family.get_field_type() {
            MetricType::COUNTER => sample("", None, metric.get_counter().get_value(), of(None)),
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let all = histogram.get_sample_count() as f64;
                let buckets = histogram.get_bucket();
                for (n, bucket) in buckets.iter().enumerate() {
                    let bound = Some(("le", bucket.upper_bound().to_string()));
                    sample("_bucket", bound, bucket.cumulative_count() as f64, of(Some(n)));
                }
                sample("_bucket", Some(("le", "+Inf".into())), all, of(Some(buckets.len())));
                sample("_sum", None, histogram.get_sample_sum(), None);
                sample("_count", None, all, None);
            }
            _ => sample("", None, metric.get_gauge().get_value(), None),
        }
    }
}

fn write_labels(text: &mut String, labels: &[LabelPair], more: Option<(&str, String)>) {
    let given = labels.iter().map(|pair| (pair.name(), pair.value()));
    let more = more.iter().map(|(name, value)| (*name, value.as_str()));
    let pairs = given.chain(more).map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    let pairs: Vec<String> = pairs.collect();
    if !pairs.is_empty() {
        let _ = write!(text, "{{{}}}", pairs.join(","));
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        value if value.is_nan() => "NaN".into(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    #[test]
    fn every_type_and_what_has_to_be_escaped() {
        let registry = Registry::new();
        let counter =
            IntCounterVec::new(Opts::new("a_total", "says \"a\"\nand b"), &["k"]).unwrap();
        counter.with_label_values(&["x\"y\\"]).inc_by(7);
        let gauge = IntGauge::new("b", "b").unwrap();
        gauge.set(-1);
        let options = HistogramOpts::new("c", "c").buckets(vec![0.5, 1.0]);
        let histogram = HistogramVec::new(options, &["k"]).unwrap();
        histogram.with_label_values(&["v"]).observe(0.75);
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(histogram)).unwrap();
        let exemplar = |family: &'static str, label, bucket, value| Exemplar {
            family: family.into(),
            label,
            bucket,
            connection_id: 17,
            trace_id: bucket.map(|_| format!("{:032x}", 0xabc_u128 << 64 | 17)),
            value,
            time: 1_700_000_000.123_4,
        };
        let exemplars = [
            exemplar("a_total", Some("other".into()), None, 1.0),
            exemplar("a_total", Some("x\"y\\".into()), None, 1.0),
            exemplar("c", Some("v".into()), Some(1), 0.75),
            exemplar("c", None, Some(0), 0.25),
        ];
        assert_eq!(
            encode(&registry.gather(), &exemplars),
            "\
# TYPE a counter
# HELP a says \\\"a\\\"\\nand b
a_total{k=\"x\\\"y\\\\\"} 7 # {connection_id=\"17\"} 1 1700000000.123
# TYPE b gauge
# HELP b b
b -1
# TYPE c histogram
# HELP c c
c_bucket{k=\"v\",le=\"0.5\"} 0
c_bucket{k=\"v\",le=\"1\"} 1 # {connection_id=\"17\",trace_id=\"0000000000000abc0000000000000011\"} 0.75 1700000000.123
c_bucket{k=\"v\",le=\"+Inf\"} 1
c_sum{k=\"v\"} 0.75
c_count{k=\"v\"} 1
# EOF
"
        );
    }

    #[test]
    fn who_asks_for_it_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert!(is_accepted(prometheus) && is_accepted("Application/OpenMetrics-Text"));
        for other in ["", "*/*", "text/plain", "application/openmetrics-text;q=0"] {
            assert!(!is_accepted(other), "{other}");
        }
    }
}
