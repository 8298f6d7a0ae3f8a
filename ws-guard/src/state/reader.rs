//! Reading of the maps as views: for the API, or for the CLI without a daemon.

use std::{collections::HashSet, path::Path};

use ipnet::IpNet;
use ws_guard_common::{
    flow::state,
    maps::{COARSE, Counter, FlowKey, Rule, SourceKey},
    source::Source,
};

use super::survey::Survey;
use crate::{
    domain::{
        address::{network_text, prefixes_of},
        clock::Clock,
        flow::FlowView,
        open::{OpenFlows, charged},
        origin::{ALLOWED_BY_CONFIG, AllowView, Origin},
        policy::PolicySettings,
        source::{Rules, SourceState, SourceView, SourceViews},
        status::{self, EventLoss, Occupancy, Packets, Status, Tables},
        suspects::SuspectedProxy,
    },
    guard::{Attachment, GuardError, Maps, NetworkRule},
};

/// Reader of a guard's maps.
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
        // Without a single header found, they may speak any protocol.
        let midstream = self.maps.midstream()?.into_iter();
        let midstream = midstream.filter(|(_, midstream)| midstream.candidate.proof > 0);
        let midstream = midstream.map(|(key, _)| (key, state::UNSYNCED));
        let mut views: Vec<FlowView> = pending
            .chain(midstream)
            // A flow may have been created from it since.
            .filter(|(key, _)| !known.contains(key))
            .map(|(key, state)| FlowView::without_flow(&key, state))
            .collect();
        let prefixes = prefixes_of(&self.maps.policy()?);
        let view = |(key, flow): &(_, _)| FlowView::new(key, flow, &clock, prefixes);
        views.extend(flows.iter().map(view));
        views.sort_by(|a, b| (&a.client, &a.server).cmp(&(&b.client, &b.server)));
        Ok(views)
    }

    /// Return all sources, or those in one state; the most pings first.
    pub fn sources(&self, state: Option<SourceState>) -> Result<Vec<SourceView>, GuardError> {
        let mut wanted = Vec::new();
        self.each_source(state, |view| {
            wanted.push(view);
            true
        })?;
        sort(&mut wanted);
        Ok(wanted)
    }

    /// Pass sources to `take` one by one, in the table's order, until it refuses one.
    /// Memory is taken for a batch of the table, and for each source that has connections.
    pub fn each_source(
        &self,
        state: Option<SourceState>,
        mut take: impl FnMut(SourceView) -> bool,
    ) -> Result<(), GuardError> {
        let views = self.source_views()?;
        let open = self.open_flows(|_| true)?;
        let mut goes_on = true;
        self.maps.each_source(|key, source| {
            if goes_on && state.is_none_or(|state| views.state(key, source) == state) {
                goes_on = take(views.view(key, source, &open));
            }
        })
    }

    /// Return these sources; those without an entry have sent no ping.
    pub fn sources_of(&self, keys: &[SourceKey]) -> Result<Vec<SourceView>, GuardError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let views = self.source_views()?;
        let open = self.open_flows(|source| keys.contains(source))?;
        let view = |key| {
            let source = self.maps.source(key)?.unwrap_or_else(Source::default);
            Ok(views.view(key, &source, &open))
        };
        keys.iter().map(view).collect()
    }

    /// Return the figures that open connections add to the wanted sources.
    pub fn open_flows(&self, wanted: impl Fn(&SourceKey) -> bool) -> Result<OpenFlows, GuardError> {
        let now_ns = Clock::now().now_ns;
        let coarse: HashSet<SourceKey> =
            self.maps.coarse()?.into_iter().map(|(key, _)| key).collect();
        // A source whose look-up fails counts as existing.
        let is_known =
            |key: &SourceKey| self.maps.source(key).map_or(true, |known| known.is_some());
        let mut open = OpenFlows::default();
        self.maps.each_flow(|_, flow| {
            let source = charged(flow.account.source, &coarse, is_known);
            if wanted(&source) {
                open.add(source, flow, now_ns);
            }
        })?;
        Ok(open)
    }

    pub fn source_views(&self) -> Result<SourceViews, GuardError> {
        Ok(SourceViews {
            policies: self.maps.policies()?,
            rules: Rules::new(self.maps.rules()?),
            clock: Clock::now(),
        })
    }

    /// Return untrusted peers that seem to speak for many clients.
    pub fn suspected_proxies(&self) -> Result<Vec<SuspectedProxy>, GuardError> {
        Ok(Survey::take(self)?.proxies_suspected)
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

    /// Return the policy, and the networks exempt from it.
    pub fn policy_and_exempt(&self) -> Result<(PolicySettings, Vec<IpNet>), GuardError> {
        let rules = self.maps.rules()?;
        let policy = PolicySettings::from_kernel(&self.maps.policies()?, &rules);
        Ok((policy, exemptions(&rules).map(|(network, _)| network).collect()))
    }

    /// Return the whole state; what only a daemon knows stays empty.
    pub fn status(
        &self,
        pin_dir: &Path,
        interfaces: Vec<Attachment>,
    ) -> Result<Status, GuardError> {
        self.status_with(&Survey::take(self)?, pin_dir, interfaces)
    }

    /// Return the state with an existing survey.
    pub fn status_with(
        &self,
        survey: &Survey,
        pin_dir: &Path,
        interfaces: Vec<Attachment>,
    ) -> Result<Status, GuardError> {
        let counters = self.maps.counters()?;
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
            sources: survey.sources,
            throttled: survey.throttled,
            flows: survey.flow_states.live(),
            flow_states: survey.flow_states,
            proxies_suspected: survey.proxies_suspected.clone(),
            tables: self.tables(survey)?,
            events: EventLoss {
                lost: status::counter(&counters, Counter::EventsLost),
                suppressed: status::counter(&counters, Counter::EventsSuppressed),
            },
            config: None,
        })
    }

    fn tables(&self, survey: &Survey) -> Result<Tables, GuardError> {
        let sizes = self.maps.table_sizes();
        let occupancy = |entries, capacity| Occupancy { entries, capacity };
        let sources = survey.sources.saturating_sub(survey.coarse);
        Ok(Tables {
            flows: occupancy(survey.flow_states.in_table(), sizes.flows),
            sources: occupancy(sources, sizes.sources),
            pending: occupancy(survey.handshakes.pending, sizes.pending),
            proven: occupancy(survey.handshakes.proven, sizes.opening),
            rules: occupancy(self.maps.rules()?.len() as u32, sizes.rules),
            midstream: occupancy(survey.midstream, self.maps.midstream_capacity()),
            coarse: occupancy(survey.coarse, COARSE),
        })
    }
}

/// Sort by pings, the most first.
pub fn sort(sources: &mut [SourceView]) {
    sources.sort_by(|a, b| b.pings_total.cmp(&a.pings_total).then_with(|| a.source.cmp(&b.source)));
}

/// Return the rules that exempt their network.
fn exemptions(rules: &[NetworkRule]) -> impl Iterator<Item = (IpNet, Rule)> {
    let exempt = rules.iter().filter(|(_, _, rule)| rule.flags & Rule::ALLOW != 0);
    exempt.filter_map(|(address, length, rule)| Some((IpNet::new(*address, *length).ok()?, *rule)))
}
