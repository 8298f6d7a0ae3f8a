//! Throttled sources with the most pings: the one metric with addresses of clients.

use prometheus::proto::MetricFamily;
use ws_guard_server::source::Prefixes;

use super::families::{Labels, gauges};
use crate::{domain::address::source_text, state::survey::Survey};

/// Return the first `most` in the order of a survey; none if there are none.
pub fn family(survey: &Survey, prefixes: &Prefixes, most: u32) -> Option<MetricFamily> {
    let worst = survey.worst.iter().take(most as usize);
    let named: Vec<(String, u64)> =
        worst.map(|(key, pings)| (source_text(prefixes, key), *pings)).collect();
    shown(&named)
}

fn shown(named: &[(String, u64)]) -> Option<MetricFamily> {
    let labels: Vec<_> =
        named.iter().map(|(source, pings)| ([("source", source.as_str())], *pings)).collect();
    let samples: Vec<(Labels<'_>, f64)> =
        labels.iter().map(|(labels, pings)| (labels.as_slice(), *pings as f64)).collect();
    // The text format has no families without samples.
    (!samples.is_empty()).then(|| {
        gauges(
            "top_source_pings",
            "Pings of the throttled sources with the most, at most --top-sources of them (by default none); the only label with addresses of clients.",
            &samples,
        )
    })
}

/// Return a specimen for the catalogue.
#[cfg(test)]
pub fn specimen() -> Option<MetricFamily> {
    shown(&[("192.0.2.1".into(), 1)])
}
