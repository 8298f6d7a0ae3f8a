//! Filter of events.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use ws_guard_common::maps::EventKind;

use super::{address::Given, event::EventView, setting::closest};
use crate::guard::canonical;

/// Kinds of the daemon's own events.
const OWN: [&str; 6] = [MISSED, "interface", "policy", "config", "config_error", "server"];
/// Kind of the events about lost events.
pub const MISSED: &str = "missed";

/// Return all kinds of events: the kernel's, then the daemon's own.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    EventKind::ALL.into_iter().map(EventKind::name).chain(OWN)
}

/// Return a kind by its name; the error lists all of them.
pub fn kind(text: &str) -> Result<&'static str, String> {
    let all: Vec<&str> = kinds().collect();
    all.iter().copied().find(|kind| *kind == text).ok_or_else(|| {
        let hint =
            closest(text, &all).map_or(String::new(), |kind| format!("did you mean {kind}? "));
        format!("there is no kind {text:?} of events: {hint}the kinds are {}", all.join(", "))
    })
}

/// Parse a network; an address means a network of one.
pub fn network(text: &str) -> Result<IpNet, String> {
    Ok(match text.parse()? {
        Given::Address(address) => address.into(),
        Given::Network(network) => network,
    })
}

/// Conditions on an event; empty ones are always met.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventFilter {
    /// Earliest time.
    pub after: Option<SystemTime>,
    /// Networks that contain the event's source, or are contained in it.
    pub sources: Vec<IpNet>,
    /// Kinds of events.
    pub kinds: Vec<&'static str>,
}

impl EventFilter {
    /// Restrict the filter to the last `span`.
    pub fn within(self, span: Duration) -> EventFilter {
        // Beyond the clock's range: all events.
        EventFilter { after: SystemTime::now().checked_sub(span), ..self }
    }

    /// Check whether an event passes. Loss notices do: lost events may have passed.
    pub fn passes(&self, event: &EventView) -> bool {
        event.kind == MISSED
            || self.after.is_none_or(|after| event.time.0 >= after)
                && (self.kinds.is_empty() || self.kinds.contains(&event.kind.as_ref()))
                && (self.sources.is_empty() || subject(event).is_some_and(|text| self.covers(text)))
    }

    /// Check whether a source contains, or is contained in, one of the networks.
    /// A source is a prefix, and can be named by any of its addresses.
    pub fn covers(&self, source: &str) -> bool {
        let Some(subject) = network_of(source) else { return false };
        self.sources.iter().any(|wanted| wanted.contains(&subject) || subject.contains(wanted))
    }
}

/// Return the source that an event is about, or the client's end point.
fn subject(event: &EventView) -> Option<&str> {
    event.source.as_deref().or(event.client.as_deref())
}

/// Return the addresses of a source or an end point.
fn network_of(text: &str) -> Option<IpNet> {
    let end = text.parse().map(|end: SocketAddr| end.ip());
    let address = end.or_else(|_| text.parse::<IpAddr>()).map(IpNet::from);
    address.or_else(|_| text.parse::<IpNet>().map(canonical)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Timestamp;

    fn event(kind: &'static str, source: Option<&str>, client: Option<&str>) -> EventView {
        EventView {
            source: source.map(Into::into),
            client: client.map(Into::into),
            ..EventView::bare(kind, Timestamp::now())
        }
    }

    fn of(sources: &[&str]) -> EventFilter {
        let sources = sources.iter().map(|text| network(text).unwrap()).collect();
        EventFilter { sources, ..EventFilter::default() }
    }

    #[test]
    fn a_source_is_found_by_any_network_around_it_and_any_address_in_it() {
        let v6 = event("throttled", Some("fd77::/64"), Some("[fd77::1]:4711"));
        let proxied = event("throttled", Some("192.0.2.7"), Some("10.0.0.1:4711"));
        let one = event("paced", Some("10.0.0.1:4711"), Some("10.0.0.1:4711"));
        for (filter, wanted) in [
            (of(&[]), [true, true, true]),
            (of(&["fd77::9"]), [true, false, false]),
            (of(&["fd77::/16"]), [true, false, false]),
            (of(&["192.0.2.0/24", "fd77::/64"]), [true, true, false]),
            (of(&["10.0.0.1"]), [false, false, true]),
            (of(&["192.0.2.8"]), [false, false, false]),
        ] {
            let passed = [&v6, &proxied, &one].map(|event| filter.passes(event));
            assert_eq!(passed, wanted, "{filter:?}");
        }
    }

    #[test]
    fn without_a_source_the_clients_address_counts_and_without_both_nothing_does() {
        let opened = event("flow_opened", None, Some("10.77.0.1:4711"));
        assert!(of(&["10.77.0.0/16"]).passes(&opened));
        assert!(!of(&["10.77.0.0/16"]).passes(&event("policy", None, None)));
    }

    #[test]
    fn kinds_and_time_both_have_to_fit_and_losses_always_show() {
        let filter = EventFilter { kinds: vec!["throttled"], ..EventFilter::default() };
        let recent = filter.clone().within(Duration::from_secs(60));
        let mut old = event("throttled", None, None);
        assert!(recent.passes(&old) && !recent.passes(&event("released", None, None)));
        old.time = Timestamp(SystemTime::UNIX_EPOCH);
        assert!(filter.passes(&old) && !recent.passes(&old));
        let missed = EventView { time: old.time, ..event(MISSED, None, None) };
        assert!(recent.passes(&missed));
        assert_eq!(filter.within(Duration::MAX).after, None);
    }

    #[test]
    fn an_unknown_kind_is_answered_with_all_of_them() {
        assert_eq!(kind("paced"), Ok("paced"));
        let error = kind("throtled").unwrap_err();
        assert!(error.contains("did you mean throttled?"), "{error}");
        assert!(kinds().all(|kind| error.contains(kind)), "{error}");
    }
}
