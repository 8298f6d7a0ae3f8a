//! Event, as in logs and `events`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use ws_guard_common::{
    frame::Violations,
    maps::{Address, Event, EventKind},
};
use ws_guard_server::source::Prefixes;

use super::{
    address::source_text,
    clock::{Clock, Timestamp},
    event_filter::kinds,
    why::Why,
};

/// Event in JSON. Fields that do not belong to its kind are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Number in this run of the daemon, from 1; 0 before it is recorded.
    pub seq: u64,
    pub time: Timestamp,
    /// One of [`kinds`].
    pub kind: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Origin of the connection's source, as in [`super::flow::FlowView`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Cow<'static, str>>,
    /// Side of a violation: `client` or `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Cow<'static, str>>,
    /// Kinds of violations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Cow<'static, str>>,
    /// Full table: `flows` or `sources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Cow<'static, str>>,
    /// Number, by kind of event.
    /// `throttled`: pings in the decisive segment; `violation`: frames; `flow_closed`: client
    /// frames; `unsynced`: unseen bytes; `unpaced`: granted bytes; `missed`: events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `throttled`: the limit, the counts, and the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
}

impl EventView {
    /// Create an event with only a kind and a time.
    pub fn bare(kind: &'static str, time: Timestamp) -> EventView {
        debug_assert!(kinds().any(|known| known == kind), "{kind} is not among the kinds");
        EventView {
            seq: 0,
            time,
            kind: kind.into(),
            source: None,
            client: None,
            server: None,
            identity: None,
            side: None,
            violations: Vec::new(),
            table: None,
            count: None,
            message: None,
            why: None,
        }
    }

    /// Create an event of the daemon's own.
    pub fn message(kind: &'static str, message: impl Into<String>) -> EventView {
        EventView { message: Some(message.into()), ..EventView::bare(kind, Timestamp::now()) }
    }

    /// Convert a kernel record; `None` for a kind of another version.
    pub fn from_kernel(event: &Event, prefixes: Prefixes, clock: &Clock) -> Option<EventView> {
        let kind = *EventKind::ALL.get(usize::from(event.kind))?;
        let time = clock.at(event.time).unwrap_or(Timestamp(clock.wall));
        let mut view = EventView::bare(kind.name(), time);
        match kind {
            EventKind::TableFull => {
                view.table = Some(if event.detail == 0 { "flows" } else { "sources" }.into());
            }
            EventKind::Violation => {
                view.side = Some(if event.side == 0 { "client" } else { "server" }.into());
                let kinds = Violations(event.detail).iter();
                view.violations = kinds.map(|kind| kind.name().into()).collect();
            }
            EventKind::Throttled
            | EventKind::Released
            | EventKind::Banned
            | EventKind::Paced
            | EventKind::Unpaced
            | EventKind::ProxySuspected
            | EventKind::FlowOpened
            | EventKind::FlowClosed
            | EventKind::Unsynced => {}
        }
        if event.source.address != Address::default() {
            view.source = Some(source_text(&prefixes, &event.source));
        }
        if event.flow.client_port != 0 {
            view.client = Some(event.flow.client_addr().to_string());
            view.server = Some(event.flow.server_addr().to_string());
        }
        let counts = !matches!(
            kind,
            EventKind::Released
                | EventKind::Banned
                | EventKind::Paced
                | EventKind::FlowOpened
                | EventKind::TableFull
        );
        view.count = counts.then_some(event.value);
        Some(view)
    }
}

/// Format an event on one line, for logs and tables.
impl std::fmt::Display for EventView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.source.clone());
        if let (Some(client), Some(server)) = (&self.client, &self.server) {
            parts.push(format!("{client} → {server}"));
        }
        parts.extend(self.table.as_ref().map(|table| format!("table {table}")));
        parts.extend(self.side.as_ref().map(|side| format!("by the {side}")));
        if !self.violations.is_empty() {
            parts.push(self.violations.join(", "));
        }
        if let Some(count) = self.count {
            let unit = match self.kind.as_ref() {
                "throttled" => "pings in the segment",
                "violation" | "flow_closed" => "frames",
                "unsynced" => "bytes never seen",
                "unpaced" => "bytes granted",
                "proxy_suspected" => "clients named",
                _ => "events",
            };
            parts.push(format!("{count} {unit}"));
        }
        parts.extend(self.message.clone());
        parts.extend(self.why.as_ref().map(Why::to_string));
        f.write_str(&parts.join(" · "))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::SystemTime};

    use proptest::prelude::*;
    use ws_guard_common::maps::{FlowKey, SourceKey};

    use super::*;

    const PREFIXES: Prefixes = Prefixes { v4: 32, v6: 64 };

    fn view(event: &Event) -> Option<EventView> {
        let clock = Clock { now_ns: 5_000_000_000, wall: SystemTime::UNIX_EPOCH };
        EventView::from_kernel(event, PREFIXES, &clock)
    }

    fn event(kind: EventKind) -> Event {
        let flow = FlowKey::new("[fd77::1]:4711".parse().unwrap(), "[fd77::2]:80".parse().unwrap());
        let source = SourceKey::default();
        Event { time: 1, value: 9, flow, source, kind: kind as u8, side: 0, detail: 0b101, _pad: 0 }
    }

    #[test]
    fn a_throttling_names_its_source_and_the_connection_that_went_over() {
        let mut throttled = event(EventKind::Throttled);
        throttled.source.address = "fd77::".parse::<IpAddr>().unwrap().into();
        let seen = view(&throttled).unwrap();
        assert_eq!((seen.kind.as_ref(), seen.source.as_deref()), ("throttled", Some("fd77::/64")));
        assert_eq!(
            seen.to_string(),
            "fd77::/64 · [fd77::1]:4711 → [fd77::2]:80 · 9 pings in the segment"
        );
        throttled.flow = FlowKey::default();
        let json = serde_json::to_string(&view(&throttled).unwrap()).unwrap();
        assert!(!json.contains("client"), "{json}");
    }

    #[test]
    fn a_violation_names_its_kinds_and_side() {
        let view = view(&event(EventKind::Violation)).unwrap();
        assert_eq!(view.violations, ["reserved_opcode", "unmasked"]);
        assert_eq!(view.side.as_deref(), Some("client"));
        assert_eq!(view.client.as_deref(), Some("[fd77::1]:4711"));
    }

    proptest! {
        #[test]
        fn any_record_is_shown_or_skipped(kind: u8, side: u8, detail: u16, time: u64, value: u64) {
            let record = Event { time, value, side, detail, kind, ..event(EventKind::Throttled) };
            let shown = view(&record);
            prop_assert_eq!(shown.is_some(), usize::from(kind) < EventKind::COUNT);
            if let Some(shown) = shown {
                let json = serde_json::to_string(&shown).unwrap();
                serde_json::from_str::<EventView>(&json).unwrap();
            }
        }
    }
}
