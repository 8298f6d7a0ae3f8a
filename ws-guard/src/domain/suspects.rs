//! Suspected proxies: untrusted peers that seem to speak for many clients.
//!
//! Either their requests contain forwarding headers with many clients, which the kernel notes; or
//! they have many connections within the limit, and together most of the pings. Many clients behind
//! one address are safe either way, by their connections' share; but a flood among them is charged
//! to all, and the clients are better distinguished.

use std::{borrow::Cow, collections::HashMap, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use ws_guard_common::{
    flow::{Flow, state},
    maps::{Address, FlowKey, Suspect, identity},
    source::millis,
    window::Rate,
};

use super::{proxies::TrustedProxies, source::SourceViews};

/// Lifetime of a suspicion since the peer's latest header.
const RECENT_NS: u64 = 900_000_000_000;
/// Minimum number of connections; fewer may be one person's.
const MANY_CONNECTIONS: u32 = 20;
/// Percentage of all pings that counts as most of them.
const MOST: u64 = 50;
/// Minimum number of pings in a window; fewer prove nothing.
const ENOUGH_PINGS: u64 = 20;

/// Suspected proxy in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspectedProxy {
    pub peer: IpAddr,
    /// Evidence: `headers` or `connections`.
    pub reason: Cow<'static, str>,
    /// Minimum number of clients that its requests named; null for other evidence.
    pub clients: Option<u32>,
    /// Number of its open connections within the limit.
    pub connections: u32,
    /// Their percentage of all pings in the window.
    pub pings_percent: u32,
    /// Setting for the file, if the peer is a proxy.
    pub setting: String,
    /// Flag of `run` and `policy set` with that setting.
    pub flag: String,
}

/// Format the evidence, without the peer.
impl fmt::Display for SuspectedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.clients {
            Some(clients) => write!(f, "its requests name {clients} clients or more"),
            None => write!(
                f,
                "{} of its connections are within the limit, with {} % of all pings",
                self.connections, self.pings_percent
            ),
        }
    }
}

impl SuspectedProxy {
    /// Return the change that would distinguish its clients.
    pub fn remedy(&self) -> String {
        format!(
            "if it is a proxy that you trust, write {}, or give `{}` to `ws-guard policy set` and \
             `run`",
            self.setting, self.flag
        )
    }
}

#[cfg(test)]
impl SuspectedProxy {
    /// Create a peer whose requests name nine clients, for tests.
    pub fn sample(peer: &str) -> SuspectedProxy {
        let peer = peer.parse().unwrap();
        suspect(peer, Some(9), Peer::default(), 0, &TrustedProxies::default())
    }
}

/// Summary of a peer's open connections.
#[derive(Clone, Copy, Default)]
struct Peer {
    connections: u32,
    pings: u64,
}

/// Peers that are their connections' clients, and the pings of all connections.
#[derive(Clone, Default)]
pub struct Peers {
    by_address: HashMap<IpAddr, Peer>,
    pings: u64,
}

impl Peers {
    /// Add a flow; `views` are the current ones.
    pub fn add(&mut self, key: &FlowKey, flow: &Flow, views: &SourceViews) {
        if flow.state == state::CLOSED {
            return;
        }
        let now = views.clock.now_ns;
        let scope = flow.account.source.scope() as usize;
        let window_ms = views.policies.scopes.get(scope).map_or(0, |policy| policy.rate.window_ms);
        let rate = Rate { window_ms, ..Rate::default() };
        let pings = u64::from(flow.window.count(millis(now), rate));
        self.pings += pings;
        // A flood is no evidence of many clients.
        let kept = flow.account.client.identity == identity::PEER && !flow.is_over_limit(now);
        if kept {
            let peer = self.by_address.entry(key.client.into()).or_default();
            peer.connections += 1;
            peer.pings += pings;
        }
    }

    /// Return the suspected proxies by address.
    pub fn suspected(
        &self,
        suspects: &[(Address, Suspect)],
        views: &SourceViews,
    ) -> Vec<SuspectedProxy> {
        let trusted = TrustedProxies::of(&views.policies.proxies);
        let mut found: HashMap<IpAddr, Option<u32>> = HashMap::new();
        for (address, peer) in &self.by_address {
            let most = peer.pings.saturating_mul(100) > self.pings.saturating_mul(MOST);
            let many = peer.connections >= MANY_CONNECTIONS && peer.pings >= ENOUGH_PINGS;
            // An operator who allows the peer knows it.
            if many && most && !views.rules.allow(*address) {
                found.insert(*address, None);
            }
        }
        for (address, suspect) in suspects {
            let recent = views.clock.now_ns.saturating_sub(suspect.last_ns) < RECENT_NS;
            if suspect.told_ns != 0 && recent {
                found.insert((*address).into(), Some(suspect.count()));
            }
        }
        let mut found: Vec<SuspectedProxy> = found
            .into_iter()
            .filter(|(address, _)| !trusted.trusts(*address))
            .map(|(address, clients)| {
                let peer = self.by_address.get(&address).copied().unwrap_or_default();
                suspect(address, clients, peer, self.pings, &trusted)
            })
            .collect();
        found.sort_by_key(|suspect| suspect.peer);
        found
    }
}

fn suspect(
    peer: IpAddr,
    clients: Option<u32>,
    of_peer: Peer,
    all: u64,
    trusted: &TrustedProxies,
) -> SuspectedProxy {
    let mut texts = trusted.texts();
    texts.retain(|text| text != "none");
    texts.push(peer.to_string());
    SuspectedProxy {
        peer,
        reason: if clients.is_some() { "headers" } else { "connections" }.into(),
        clients,
        connections: of_peer.connections,
        pings_percent: (of_peer.pings.saturating_mul(100) / all.max(1)).min(100) as u32,
        setting: format!("trusted-proxy = {texts:?}"),
        flag: format!("--trusted-proxy {}", texts.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use ws_guard_common::{
        maps::{Account, Client, Rule},
        window::RateWindow,
    };

    use super::*;
    use crate::domain::{clock::Clock, policy::PolicySettings, source::Rules};

    const PROXY: &str = "203.0.113.7";

    fn views(trusted: &[&str]) -> SourceViews {
        let mut policy = PolicySettings::default();
        policy.trusted_proxies.clear();
        trusted.iter().for_each(|text| policy.trusted_proxies.add(text).unwrap());
        SourceViews {
            policies: policy.to_kernel(4).unwrap(),
            rules: Rules::default(),
            clock: Clock::now(),
        }
    }

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// Create connections of a peer with this number of current pings each.
    fn flows(views: &SourceViews, peer: &str, n: u16, pings: u32) -> Vec<(FlowKey, Flow)> {
        let now = views.clock.now_ns;
        let flow = |port| {
            let key = FlowKey { client: address(peer), client_port: port, ..FlowKey::default() };
            let account = Account::of(Client::of_peer(&key.client), &views.policies.scopes[0]);
            let mut window = RateWindow::new();
            window.charge(millis(now), Rate::default(), pings);
            (key, Flow { state: state::OPEN, account, window, ..Flow::default() })
        };
        (1..=n).map(flow).collect()
    }

    fn found(views: &SourceViews, flows: &[(FlowKey, Flow)]) -> Vec<SuspectedProxy> {
        let mut peers = Peers::default();
        flows.iter().for_each(|(key, flow)| peers.add(key, flow, views));
        peers.suspected(&[], views)
    }

    #[test]
    fn many_connections_with_most_of_the_pings_look_like_a_proxy() {
        let views = views(&["private"]);
        let crowd = |n, pings| flows(&views, PROXY, n, pings);
        let suspects = found(&views, &crowd(20, 3));
        let [one] = &suspects[..] else { panic!("{suspects:?}") };
        assert_eq!((one.connections, one.pings_percent, &*one.reason), (20, 100, "connections"));
        assert_eq!(one.setting, r#"trusted-proxy = ["private", "203.0.113.7"]"#);
        assert_eq!(one.flag, "--trusted-proxy private,203.0.113.7");
        assert_eq!(found(&views, &crowd(19, 3)), []);
        assert_eq!(found(&views, &crowd(200, 0)), []);
        // Too few of the pings; an expired window.
        let others = flows(&views, "192.0.2.1", 1, 60);
        assert_eq!(found(&views, &[crowd(20, 3), others].concat()), []);
        let mut later = views.clone();
        later.clock.now_ns += 20_000_000_000;
        assert_eq!(found(&later, &crowd(20, 3)), []);
    }

    #[test]
    fn a_flood_is_no_crowd_and_known_proxies_are_not_suspected() {
        let mut views = views(&["private"]);
        let mut flood = flows(&views, PROXY, 40, 60);
        flood.iter_mut().for_each(|(_, flow)| flow.over_until = u64::MAX);
        assert_eq!(found(&views, &flood), []);
        // Behind a trusted proxy that names no client, or allowed.
        assert_eq!(found(&views, &flows(&views, "10.0.0.1", 40, 3)), []);
        let allow = Rule { flags: Rule::ALLOW, ..Rule::default() };
        views.rules = Rules::new([(PROXY.parse().unwrap(), 32, allow)]);
        assert_eq!(found(&views, &flows(&views, PROXY, 40, 3)), []);
    }

    #[test]
    fn headers_of_many_clients_are_told_of_while_they_come() {
        let views = views(&["none"]);
        let now = views.clock.now_ns;
        let mut suspect = Suspect { last_ns: now, clients: 0xFFF, ..Suspect::default() };
        let of = |suspect, views: &SourceViews| {
            Peers::default().suspected(&[(address("10.0.0.1"), suspect)], views)
        };
        assert_eq!(of(suspect, &views), [], "the kernel has not told yet");
        suspect.told_ns = now;
        let suspects = of(suspect, &views);
        assert_eq!((suspects[0].clients, &*suspects[0].reason), (Some(12), "headers"));
        assert_eq!(suspects[0].setting, r#"trusted-proxy = ["10.0.0.1"]"#);
        assert!(suspects[0].to_string().contains("12 clients"), "{}", suspects[0]);
        let mut later = views.clone();
        later.clock.now_ns += RECENT_NS;
        assert_eq!(of(suspect, &later), []);
        let trusting = self::views(&["private"]);
        assert_eq!(of(suspect, &trusting), []);
    }
}
