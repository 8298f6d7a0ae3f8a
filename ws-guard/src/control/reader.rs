//! Reads the maps into views: for the API while the daemon lives, for the command line without it.

use std::{collections::HashSet, path::Path};

use ipnet::IpNet;
use ws_guard_common::{
    flow::{Flow, state},
    maps::{COARSE, FlowKey, PROVEN, Rule, STRANGERS},
};

use super::{AllowView, Origin, networks::ALLOWED_BY_CONFIG};
use crate::{
    domain::{
        address::{network_text, prefixes_of},
        clock::Clock,
        flow::{FlowStates, FlowView},
        open::OpenFlows,
        policy::PolicySettings,
        source::{Rules, SourceState, SourceView, SourceViews},
        status::{self, EventLoss, Occupancy, Packets, Status, Tables},
        suspects::{SuspectedProxy, suspected},
    },
    guard::{Attachment, GuardError, Handshakes, Maps, NetworkRule},
};
use ws_guard_common::maps::Counter;

/// A guard's maps, read.
#[derive(Clone)]
pub struct Reader {
    pub maps: Maps,
}

impl Reader {
    pub fn flows(&self) -> Result<Vec<FlowView>, GuardError> {
        let clock = Clock::now();
        let flows = self.maps.flows()?;
        let known: HashSet<FlowKey> = flows.iter().map(|(key, _)| *key).collect();
        let pending = self.maps.handshakes()?.keys.into_iter().map(|key| (key, state::HANDSHAKE));
        // Those of which not even one header was found may speak anything.
        let strangers = self.maps.strangers()?.into_iter();
        let strangers = strangers.filter(|(_, stranger)| stranger.candidate.proof > 0);
        let strangers = strangers.map(|(key, _)| (key, state::UNSYNCED));
        let mut views: Vec<FlowView> = pending
            .chain(strangers)
            // A flow may have been opened from it since.
            .filter(|(key, _)| !known.contains(key))
            .map(|(key, state)| FlowView::without_flow(&key, state))
            .collect();
        let prefixes = prefixes_of(&self.maps.policy()?);
        let view = |(key, flow): &(_, _)| FlowView::new(key, flow, &clock, prefixes);
        views.extend(flows.iter().map(view));
        views.sort_by(|a, b| (&a.client, &a.server).cmp(&(&b.client, &b.server)));
        Ok(views)
    }

    /// All sources, or those in one state; the most pings first.
    pub fn sources(&self, state: Option<SourceState>) -> Result<Vec<SourceView>, GuardError> {
        let views = self.source_views()?;
        let sources = self.maps.sources()?;
        let open = OpenFlows::count(&self.maps.flows()?, &sources);
        let all = sources.iter().map(|(key, source)| views.view(key, source, &open));
        let mut wanted: Vec<_> =
            all.filter(|view| state.is_none_or(|state| view.state == state)).collect();
        wanted.sort_by(|a, b| b.pings_total.cmp(&a.pings_total).then(a.source.cmp(&b.source)));
        Ok(wanted)
    }

    pub fn source_views(&self) -> Result<SourceViews, GuardError> {
        Ok(SourceViews {
            policies: self.maps.policies()?,
            rules: Rules::new(self.maps.rules()?),
            clock: Clock::now(),
        })
    }

    /// Untrusted peers that seem to speak for many clients.
    pub fn suspected_proxies(&self) -> Result<Vec<SuspectedProxy>, GuardError> {
        self.suspected_among(&self.maps.flows()?)
    }

    fn suspected_among(
        &self,
        flows: &[(FlowKey, Flow)],
    ) -> Result<Vec<SuspectedProxy>, GuardError> {
        Ok(suspected(flows, &self.maps.suspects()?, &self.source_views()?))
    }

    /// How many sources there are, and how many of them are throttled.
    pub fn source_counts(&self) -> Result<(u32, u32), GuardError> {
        let views = self.source_views()?;
        let sources = self.maps.sources()?;
        let throttled = sources
            .iter()
            .filter(|(key, source)| views.state(key, source) == SourceState::Throttled)
            .count();
        Ok((sources.len() as u32, throttled as u32))
    }

    pub fn policy(&self) -> Result<PolicySettings, GuardError> {
        Ok(PolicySettings::from_kernel(&self.maps.policies()?, &self.maps.rules()?))
    }

    pub fn allow(&self) -> Result<Vec<AllowView>, GuardError> {
        let view = |(network, rule): (IpNet, Rule)| {
            let configured = rule.flags & ALLOWED_BY_CONFIG != 0;
            AllowView {
                network: network_text(&network),
                origin: if configured { Origin::Config } else { Origin::Runtime },
            }
        };
        let mut views: Vec<AllowView> = exemptions(&self.maps.rules()?).map(view).collect();
        views.sort_by(|a, b| a.network.cmp(&b.network));
        Ok(views)
    }

    /// The policy, and the networks that it does not hold for.
    pub fn policy_and_exempt(&self) -> Result<(PolicySettings, Vec<IpNet>), GuardError> {
        let rules = self.maps.rules()?;
        let policy = PolicySettings::from_kernel(&self.maps.policies()?, &rules);
        Ok((policy, exemptions(&rules).map(|(network, _)| network).collect()))
    }

    /// How many flows are in which state.
    pub fn flow_states(&self) -> Result<FlowStates, GuardError> {
        Ok(FlowStates::count(&self.maps.flows()?, self.maps.handshakes()?.keys.len()))
    }

    /// The state of everything; what only a daemon knows stays empty.
    pub fn status(
        &self,
        pin_dir: &Path,
        interfaces: Vec<Attachment>,
    ) -> Result<Status, GuardError> {
        let counters = self.maps.counters()?;
        let flows = self.maps.flows()?;
        let handshakes = self.maps.handshakes()?;
        let flow_states = FlowStates::count(&flows, handshakes.keys.len());
        let (sources, throttled) = self.source_counts()?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: None,
            pin_dir: pin_dir.display().to_string(),
            uptime_seconds: None,
            interfaces,
            patterns: Vec::new(),
            policy: self.policy()?,
            packets: Packets::new(&counters),
            drops: status::drops(&counters),
            sources,
            throttled,
            flows: flow_states.live(),
            flow_states,
            proxies_suspected: self.suspected_among(&flows)?,
            tables: self.tables(flows.len() as u32, sources, &handshakes)?,
            events: EventLoss {
                lost: status::counter(&counters, Counter::EventsLost),
                suppressed: status::counter(&counters, Counter::EventsSuppressed),
            },
            config: None,
        })
    }

    /// Three tables were read already.
    fn tables(
        &self,
        flows: u32,
        sources: u32,
        handshakes: &Handshakes,
    ) -> Result<Tables, GuardError> {
        let sizes = self.maps.table_sizes();
        let occupancy = |entries, capacity| Occupancy { entries, capacity };
        let strangers = self.maps.stranger_count()?;
        let coarse = self.maps.coarse_count()?;
        Ok(Tables {
            flows: occupancy(flows, sizes.flows),
            sources: occupancy(sources.saturating_sub(coarse), sizes.sources),
            pending: occupancy(handshakes.pending, sizes.pending),
            proven: occupancy(handshakes.proven, PROVEN),
            rules: occupancy(self.maps.rules()?.len() as u32, sizes.rules),
            strangers: occupancy(strangers, STRANGERS),
            coarse: occupancy(coarse, COARSE),
        })
    }
}

/// Rules that exempt their network.
fn exemptions(rules: &[NetworkRule]) -> impl Iterator<Item = (IpNet, Rule)> {
    let exempt = rules.iter().filter(|(_, _, rule)| rule.flags & Rule::ALLOW != 0);
    exempt.filter_map(|(address, length, rule)| Some((IpNet::new(*address, *length).ok()?, *rule)))
}
