//! Names of clients on a page without addresses.

use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
};

use crate::domain::event::EventView;

/// Names of clients: addresses, or pseudonyms that last as long as the daemon.
/// Their key is the daemon's secret: trying all addresses reveals nothing.
pub struct Names {
    addresses: bool,
    key: RandomState,
}

impl Names {
    pub fn new(addresses: bool) -> Names {
        Names { addresses, key: RandomState::new() }
    }

    /// Check whether addresses of clients and names of users are shown.
    pub const fn shows_addresses(&self) -> bool {
        self.addresses
    }

    /// Return the name of a client, given the text of its source.
    pub fn of<'a>(&self, source: &'a str) -> Cow<'a, str> {
        match self.addresses {
            true => Cow::Borrowed(source),
            false => format!("client {:06x}", self.key.hash_one(source) >> 40).into(),
        }
    }

    /// Describe an event.
    pub fn event(&self, event: &EventView) -> String {
        if self.addresses {
            return event.to_string();
        }
        // Messages are free text: those about policies and proxies contain addresses.
        let bare =
            EventView { source: None, client: None, server: None, message: None, ..event.clone() };
        let source = event.source.as_deref().map(|source| self.of(source));
        let text = bare.to_string();
        let parts = source.iter().map(Cow::as_ref).chain([text.as_str()]);
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        match (parts.is_empty(), &event.message) {
            (true, Some(_)) => "see `ws-guard events`".into(),
            _ => parts.join(" · "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Timestamp;

    #[test]
    fn no_address_is_left_and_names_stay_the_same() {
        let event = EventView {
            source: Some("10.77.0.1".into()),
            client: Some("10.77.0.1:4711".into()),
            server: Some("10.77.0.2:80".into()),
            count: Some(9),
            message: Some("10.77.0.1 is something".into()),
            ..EventView::bare("throttled", Timestamp::now())
        };
        let (hidden, shown) = (Names::new(false), Names::new(true));
        let text = hidden.event(&event);
        assert!(!text.contains("10.77") && text.contains("9 pings in the segment"), "{text}");
        assert!(text.starts_with(&*hidden.of("10.77.0.1")), "{text}");
        assert_ne!(hidden.of("10.77.0.1"), hidden.of("10.77.0.2"));
        assert_ne!(hidden.of("10.77.0.1"), Names::new(false).of("10.77.0.1"));
        assert!(shown.event(&event).contains("10.77.0.1:4711"));
        let policy = EventView::message("policy", "10.0.0.0/8 is allowed");
        assert_eq!(hidden.event(&policy), "see `ws-guard events`");
    }
}
