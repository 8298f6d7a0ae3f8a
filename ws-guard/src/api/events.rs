//! Queries of `GET /v1/events`.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::event_filter::{EventFilter, kind, network};
use crate::operator::error::ApiError;

/// Filter of events, and whether to follow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only events with a higher `seq`.
    #[serde(default)]
    pub since: u64,
    /// Only events of at most this age.
    #[serde(default)]
    pub within_seconds: Option<f64>,
    /// Only events about these addresses and networks; separated by commas.
    #[serde(default)]
    pub source: Option<String>,
    /// Only events of these kinds; separated by commas.
    #[serde(default)]
    pub kind: Option<String>,
    /// Follow: send further events as they occur.
    #[serde(default)]
    pub follow: bool,
}

impl EventQuery {
    /// Convert the query into a filter.
    ///
    /// # Errors
    /// When a value is invalid.
    pub fn filter(&self) -> Result<EventFilter, ApiError> {
        let filter = EventFilter {
            sources: each(self.source.as_deref(), network)?,
            kinds: each(self.kind.as_deref(), kind)?,
            ..EventFilter::default()
        };
        let Some(seconds) = self.within_seconds else { return Ok(filter) };
        let span = Duration::try_from_secs_f64(seconds).map_err(|error| {
            ApiError::bad(
                format!("within_seconds: {seconds} is no span of time ({error})"),
                "give a number of seconds, such as 600",
            )
        })?;
        Ok(filter.within(span))
    }

    /// Add these sources and kinds to the query.
    pub fn only(self, sources: &[IpNet], kinds: &[&str]) -> EventQuery {
        let list = |texts: Vec<String>| Some(texts.join(",")).filter(|list| !list.is_empty());
        EventQuery {
            source: list(sources.iter().map(IpNet::to_string).collect()),
            kind: list(kinds.iter().map(ToString::to_string).collect()),
            ..self
        }
    }

    /// Return the path with this query. Networks and kinds need no escaping.
    pub fn path(&self) -> String {
        let mut path = format!("/v1/events?since={}&follow={}", self.since, self.follow);
        path.extend(self.within_seconds.map(|seconds| format!("&within_seconds={seconds}")));
        path.extend(self.source.as_ref().map(|list| format!("&source={list}")));
        path.extend(self.kind.as_ref().map(|list| format!("&kind={list}")));
        path
    }
}

fn each<T>(
    list: Option<&str>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, ApiError> {
    let parts = list.into_iter().flat_map(|list| list.split(','));
    parts.map(|part| read(part).map_err(|error| ApiError::refused(&error))).collect()
}

#[cfg(test)]
mod tests {
    use axum::{extract::Query, http::Uri};

    use super::*;

    #[test]
    fn the_path_asks_for_what_it_was_made_of() {
        let sources = [network("fd77::1").unwrap(), network("10.0.0.0/8").unwrap()];
        let query = EventQuery { since: 7, within_seconds: Some(0.5), ..EventQuery::default() };
        let query = query.only(&sources, &["throttled", "released"]);
        let uri: Uri = query.path().parse().unwrap();
        let Query(read) = Query::<EventQuery>::try_from_uri(&uri).unwrap();
        assert_eq!(read, query);
        let filter = read.filter().unwrap();
        assert_eq!((filter.sources, filter.kinds), (sources.into(), vec!["throttled", "released"]));
        assert!(filter.after.is_some());
    }

    #[test]
    fn errors_name_the_value_and_the_remedy() {
        let refused = |query: EventQuery| query.filter().unwrap_err().body;
        let error = refused(EventQuery { kind: Some("paced,pacd".into()), ..Default::default() });
        assert!(error.error.contains("\"pacd\"") && error.remedy.contains("unpaced"), "{error:?}");
        let error = refused(EventQuery { source: Some("ten".into()), ..Default::default() });
        assert!(error.remedy.contains("10.77.0.1"), "{error:?}");
        let error = refused(EventQuery { within_seconds: Some(-1.0), ..Default::default() });
        assert!(error.error.contains("-1"), "{error:?}");
    }
}
