//! Pings that a terminator decrypted, charged to the kernel's sources.

use axum::http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ws_guard_common::maps::{Operation, Request, SourceKey};

use super::{
    error::ApiError,
    policy::Operator,
    throttling::{Named, request},
};
use crate::{
    domain::{address::network_text, clock::Clock},
    guard::PolicySet,
};

/// Maximum number of reports in a batch.
pub const MOST: usize = 1000;
/// Maximum number of pings in a report.
const MOST_PINGS: u32 = 1_000_000;

/// Batch of reports, parsed one by one: a wrong one does not affect the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reports {
    pub reports: Vec<Value>,
}

/// Report about one source.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// An address of the source.
    pub source: String,
    /// Pings since the last report, at least 1.
    pub pings: u32,
    /// Protected port of the pings. Required only if several have their own settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Result of a batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// Number of charged reports.
    pub accepted: usize,
    /// Their sources that are throttled now, each once.
    pub throttled: Vec<String>,
    /// Errors of the other reports.
    pub errors: Vec<ReportError>,
}

/// A report that was not charged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportError {
    /// Index in the batch, from 0.
    pub index: usize,
    pub error: String,
    pub remedy: String,
}

impl Operator {
    /// Charge each report of a batch, independently of the others.
    ///
    /// # Errors
    /// When the batch as a whole is refused; then nothing was charged.
    pub fn report(&self, batch: &Reports) -> Result<Reported, ApiError> {
        if batch.reports.len() > MOST {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("{} reports in one batch", batch.reports.len()),
                format!("send at most {MOST} at once, summed up by source"),
            ));
        }
        let policies = self.maps.policies()?;
        let mut reported = Reported::default();
        for (index, item) in batch.reports.iter().enumerate() {
            let charged = report(item).and_then(|report| self.charge(&report, &policies));
            match charged {
                Ok(throttled) => {
                    reported.accepted += 1;
                    let news = throttled.filter(|source| !reported.throttled.contains(source));
                    reported.throttled.extend(news);
                }
                Err(ApiError { body, .. }) => reported.errors.push(ReportError {
                    index,
                    error: body.error,
                    remedy: body.remedy,
                }),
            }
        }
        Ok(reported)
    }

    /// Charge pings on `port` by source, each independently of the others.
    /// There may be as many as in a batch. Return the first error, if any.
    pub fn report_pings(
        &self,
        pings: impl IntoIterator<Item = (IpNet, u32)>,
        port: u16,
    ) -> Result<(), ApiError> {
        let policies = self.maps.policies()?;
        let mut first = Ok(());
        for (source, pings) in pings.into_iter().take(MOST) {
            let report = Report {
                source: source.addr().to_string(),
                pings: pings.clamp(1, MOST_PINGS),
                port: Some(port),
            };
            first = first.and(self.charge(&report, &policies).map(drop));
        }
        first
    }

    /// Charge one report; return its source if that is now throttled.
    fn charge(&self, report: &Report, policies: &PolicySet) -> Result<Option<String>, ApiError> {
        if report.pings == 0 || report.pings > MOST_PINGS {
            return Err(ApiError::bad(
                format!("pings: {} is out of range", report.pings),
                format!("give a whole number from 1 to {MOST_PINGS}"),
            ));
        }
        let scope = scope(report.port, policies)?;
        let source = self.source(&report.source)?;
        let named = Named::Prefix(source);
        let wanted = Request { pings: report.pings, ..request(&named, scope) };
        self.request(Operation::Report, &named, wanted)?;
        let key = SourceKey { address: source.addr().into(), scope };
        let entry = self.maps.source(&key)?;
        let until = entry.map_or(0, |entry| entry.throttled_until);
        let views = self.views()?;
        let allowed = views.rules.allow(source.addr());
        Ok((until > Clock::now().now_ns && !allowed).then(|| network_text(&source)))
    }
}

fn report(item: &Value) -> Result<Report, ApiError> {
    serde_json::from_value(item.clone()).map_err(|error| {
        ApiError::bad(error.to_string(), r#"write it as {"source": "10.0.0.1", "pings": 12}"#)
    })
}

/// Return the scope of a report's port.
/// Without a port, it is the only one in use, or that of the ports without their own settings.
fn scope(port: Option<u16>, policies: &PolicySet) -> Result<u32, ApiError> {
    match (port, policies.scopes_in_use().as_slice()) {
        (Some(port), _) => policies.scope_of(port).ok_or_else(|| {
            ApiError::bad(
                format!("port {port} is not protected"),
                "name a port that `ws-guard policy get` lists, or leave it out",
            )
        }),
        (None, [only]) => Ok(*only),
        (None, [0, ..]) => Ok(0),
        (None, _) => Err(ApiError::bad(
            "port is missing, and every protected port has settings of its own",
            "name the port of these pings",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(ports: &[(u16, u32)]) -> PolicySet {
        PolicySet { ports: ports.to_vec(), ..PolicySet::default() }
    }

    #[test]
    fn the_port_decides_which_reports_count() {
        let mixed = policies(&[(80, 0), (443, 1)]);
        assert_eq!(scope(Some(443), &mixed).unwrap(), 1);
        assert_eq!(scope(None, &mixed).unwrap(), 0);
        assert_eq!(scope(None, &policies(&[(443, 1)])).unwrap(), 1);
        let error = scope(None, &policies(&[(443, 1), (8443, 2)])).unwrap_err();
        assert!(error.to_string().contains("port is missing"), "{error}");
        assert!(scope(Some(81), &mixed).unwrap_err().to_string().contains("81 is not protected"));
    }
}
