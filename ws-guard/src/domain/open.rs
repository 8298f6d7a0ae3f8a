//! Contribution of open connections to their sources' figures.

use std::collections::{HashMap, HashSet};

use ws_guard_common::{
    flow::{Flow, state},
    maps::{COARSE_LEVELS, SourceKey},
};

/// Connections of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Number of open connections.
    pub connections: u32,
    /// Number of those over the limit now.
    pub over_limit: u32,
    /// Number of those whose window is held now.
    pub paced: u32,
    /// Packets dropped from them, not yet in the source's total.
    pub dropped: u64,
}

/// Connections by source, from one reading of the tables.
#[derive(Clone, Debug, Default)]
pub struct OpenFlows(HashMap<SourceKey, Open>);

/// Return the key to which a connection is charged: its source.
/// If that has no entry, it is the finest coarser prefix with one.
pub fn charged(
    source: SourceKey,
    coarse: &HashSet<SourceKey>,
    is_known: impl FnOnce(&SourceKey) -> bool,
) -> SourceKey {
    let coarser = || (1..=COARSE_LEVELS).filter_map(|level| source.coarser(level));
    // `is_known` is called only if it decides.
    match coarser().find(|key| coarse.contains(key)) {
        Some(coarser) if !is_known(&source) => coarser,
        _ => source,
    }
}

impl OpenFlows {
    /// Add a flow that is charged to `source`.
    /// That is its own source, or a coarser prefix if it has no entry.
    pub fn add(&mut self, source: SourceKey, flow: &Flow, now_ns: u64) {
        let entry = self.0.entry(source).or_default();
        let is_open = flow.state != state::CLOSED;
        entry.connections += u32::from(is_open);
        entry.over_limit += u32::from(is_open && flow.is_over_limit(now_ns));
        entry.paced += u32::from(is_open && flow.is_paced(now_ns));
        entry.dropped = entry.dropped.saturating_add(flow.dropped);
    }

    pub fn of(&self, source: &SourceKey) -> Open {
        self.0.get(source).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ws_guard_common::maps::{Account, Address, Client, FlowKey};

    use super::*;
    use crate::domain::policy::PolicySettings;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn key(text: &str) -> SourceKey {
        SourceKey { address: address(text), scope: 0 }
    }

    #[test]
    fn connections_are_counted_by_the_client_and_not_by_the_peer() {
        let peer = address("10.0.0.1");
        let policy = PolicySettings::default().to_kernel(0).unwrap().scopes[0];
        let flow = |client: Client, state, dropped| {
            let key = FlowKey { client: peer, ..FlowKey::default() };
            (key, Flow { account: Account::of(client, &policy), state, dropped, ..Flow::default() })
        };
        let forwarded = Client::of(&address("192.0.2.7"), 1);
        let alone = Client::of_connection(&peer, 4711_u16.to_be());
        let flows = [
            flow(forwarded, state::OPEN, 2),
            flow(forwarded, state::UNSYNCED, 3),
            flow(forwarded, state::CLOSED, 4),
            flow(alone, state::OPEN, 0),
            flow(Client::of(&address("198.51.100.9"), 1), state::OPEN, 1),
        ];
        let coarse = key("198.51.100.9").coarser(1).unwrap();
        let known = HashSet::from([key("192.0.2.7")]);
        let prefixes = HashSet::from([coarse, key("192.0.2.7").coarser(1).unwrap()]);
        let mut open = OpenFlows::default();
        for (_, flow) in &flows {
            let source = flow.account.source;
            open.add(charged(source, &prefixes, |key| known.contains(key)), flow, 0);
        }
        assert_eq!(
            open.of(&key("192.0.2.7")),
            Open { connections: 2, dropped: 9, ..Open::default() }
        );
        assert_eq!(open.of(&key("10.0.0.1")), Open::default());
        assert_eq!(open.of(&alone.source(&policy)).connections, 1);
        assert_eq!(open.of(&coarse), Open { connections: 1, dropped: 1, ..Open::default() });
    }
}
