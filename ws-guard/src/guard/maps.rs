//! Typed access to the pinned maps.
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::{Arc, OnceLock},
};

use ws_guard_common::{
    flow::Flow,
    maps::{
        Address, Counters, FlowKey, MAY_BAN, Midstream, Pending, Policy, Request, Rule, Server,
        ServerKey, SourceKey, Suspect, Unopened, name,
    },
    source::{BANNED, Source},
};

use super::{
    TableSizes,
    control::Control,
    counters::CounterMap,
    error::GuardError,
    memory::{self, MapMemory, Memory},
    networks::{self, NetworkRule},
    pins::Pins,
    plain::PrefixKey,
    policy::{InForce, PolicyMaps, PolicySet, PolicyWriter},
    role::Role,
    servers::ServerMaps,
    sys,
    table::Table,
};

/// Content of the two tables of requests.
#[derive(Clone, Debug, Default)]
pub struct Handshakes {
    /// Connections with a request, or the beginning of an answer.
    pub keys: BTreeSet<FlowKey>,
    /// Number of entries in [`name::PENDING`].
    pub pending: u32,
    /// Number of entries in [`name::PROVEN`]; some have no request at the moment.
    pub proven: u32,
}

/// Typed access to the maps. Cheap to clone, usable from several threads.
///
/// Calls go straight to the kernel and take microseconds, except for listings (milliseconds for ten
/// thousand entries) and changes of policy and rules (up to 10 ms: see [`Maps::set_policy`]).
#[derive(Clone)]
pub struct Maps(Arc<Inner>);

struct Inner {
    pins: Pins,
    flows: Table<FlowKey, Flow>,
    pending: Table<FlowKey, Pending>,
    proven: Table<FlowKey, Pending>,
    midstream: Table<FlowKey, Midstream>,
    beginnings: Table<FlowKey, Unopened>,
    sources: Table<SourceKey, Source>,
    coarse: Table<SourceKey, Source>,
    suspects: Table<Address, Suspect>,
    servers: ServerMaps,
    rules: Table<PrefixKey, Rule>,
    policy: PolicyMaps,
    counters: CounterMap,
    /// Opened at the first request.
    control: OnceLock<Control>,
}

impl Maps {
    /// Open the maps of a running or former guard from its pins. No program is needed.
    ///
    /// # Errors
    /// [`GuardError::NotLoaded`], [`GuardError::Incompatible`], [`GuardError::Privileges`].
    pub fn from_pins(pin_dir: &Path) -> Result<Maps, GuardError> {
        super::privileges::check_for_maps()?;
        let pins = Pins::new(pin_dir);
        if !pins.exist() {
            return Err(GuardError::NotLoaded(pin_dir.into()));
        }
        pins.check()?;
        Maps::open(&pins)
    }

    /// Open maps whose layouts have been compared.
    pub(super) fn open(pins: &Pins) -> Result<Maps, GuardError> {
        let dir = pins.dir();
        Ok(Maps(Arc::new(Inner {
            flows: Table::open(dir, name::FLOWS, sys::F_LOCK)?,
            pending: Table::open(dir, name::PENDING, 0)?,
            proven: Table::open(dir, name::PROVEN, 0)?,
            midstream: Table::open(dir, name::MIDSTREAM, 0)?,
            beginnings: Table::open(dir, name::BEGINNINGS, 0)?,
            sources: Table::open(dir, name::SOURCES, sys::F_LOCK)?,
            coarse: Table::open(dir, name::COARSE, sys::F_LOCK)?,
            suspects: Table::open(dir, name::SUSPECTS, 0)?,
            servers: ServerMaps::open(dir)?,
            rules: Table::open(dir, name::RULES, 0)?,
            policy: PolicyMaps::open(dir)?,
            counters: CounterMap::open(dir)?,
            control: OnceLock::new(),
            pins: pins.clone(),
        })))
    }

    /// Return all flows, each read whole under its lock.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>, GuardError> {
        self.0.flows.entries()
    }

    /// Visit all flows one by one, in constant memory.
    pub fn each_flow(&self, visit: impl FnMut(&FlowKey, &Flow)) -> Result<(), GuardError> {
        self.0.flows.each(visit)
    }

    /// Return one flow.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Flow>, GuardError> {
        self.0.flows.get(key)
    }

    /// Return connections whose handshake has no answer yet, each once.
    /// Their entries have no lock: a value may be half-way through a change.
    pub fn handshakes(&self) -> Result<Handshakes, GuardError> {
        let mut found = Handshakes::default();
        let Handshakes { keys, pending, proven } = &mut found;
        for (table, count) in [(&self.0.pending, pending), (&self.0.proven, proven)] {
            table.each(|key, request| {
                *count += 1;
                // A port of 0 means all connections of a proxy, see `pending_upgrades::prefaces` of
                // the programs.
                if key.client_port != 0 && request.is_under_way() {
                    keys.insert(*key);
                }
            })?;
        }
        Ok(found)
    }

    /// Return connections with a server's data but no flow. They have no lock either.
    pub fn midstream(&self) -> Result<Vec<(FlowKey, Midstream)>, GuardError> {
        self.0.midstream.entries()
    }

    /// Return all sources, and the coarser prefixes that some were charged to.
    /// Each is read whole under its lock.
    pub fn sources(&self) -> Result<Vec<(SourceKey, Source)>, GuardError> {
        let mut sources = Vec::new();
        self.each_source(|key, source| sources.push((*key, *source)))?;
        Ok(sources)
    }

    /// Visit all of them one by one, in constant memory; the coarser prefixes last.
    pub fn each_source(
        &self,
        mut visit: impl FnMut(&SourceKey, &Source),
    ) -> Result<(), GuardError> {
        self.0.sources.each(&mut visit)?;
        self.0.coarse.each(visit)
    }

    /// Return the coarser prefixes that sources without room are charged to.
    pub fn coarse(&self) -> Result<Vec<(SourceKey, Source)>, GuardError> {
        self.0.coarse.entries()
    }

    /// Return one source, by its masked address; or a coarser prefix.
    pub fn source(&self, source: &SourceKey) -> Result<Option<Source>, GuardError> {
        if source.level() > 0 { self.0.coarse.get(source) } else { self.0.sources.get(source) }
    }

    /// Return untrusted peers whose requests carry forwarding headers.
    /// They have no lock: a value may be half-way through a change.
    pub fn suspects(&self) -> Result<Vec<(Address, Suspect)>, GuardError> {
        self.0.suspects.entries()
    }

    /// Return figures of servers, in order; last those of all others together.
    pub fn servers(&self) -> Result<Vec<(Option<ServerKey>, Server)>, GuardError> {
        let servers = self.0.servers.servers()?;
        let mut servers: Vec<_> =
            servers.into_iter().map(|(key, server)| (Some(key), server)).collect();
        servers.push((None, self.0.servers.others()?));
        Ok(servers)
    }

    /// Forget a server's figures.
    pub fn remove_server(&self, key: &ServerKey) -> Result<(), GuardError> {
        self.0.servers.remove(key)
    }

    /// Count the flows in use.
    /// The kernel cannot tell without reading them: a few thousand take a millisecond.
    pub fn flow_count(&self) -> Result<u32, GuardError> {
        self.0.flows.count()
    }

    /// Count the sources in use; costs as much as [`Maps::flow_count`].
    pub fn source_count(&self) -> Result<u32, GuardError> {
        self.0.sources.count()
    }

    /// Count the coarser prefixes in use; costs as much as [`Maps::flow_count`].
    pub fn coarse_count(&self) -> Result<u32, GuardError> {
        self.0.coarse.count()
    }

    /// Count the midstream candidates in use; costs as much as [`Maps::flow_count`].
    pub fn midstream_count(&self) -> Result<u32, GuardError> {
        self.0.midstream.count()
    }

    /// Return the kernel memory of the pinned maps.
    pub fn memory(&self) -> Result<Memory, GuardError> {
        Ok(self.memory_by_map()?.iter().map(|map| map.memory).sum())
    }

    /// Return the kernel memory of each pinned map.
    pub fn memory_by_map(&self) -> Result<Vec<MapMemory>, GuardError> {
        memory::of_pins(&self.0.pins)
    }

    /// Return the capacity of the table of midstream candidates.
    pub fn midstream_capacity(&self) -> u32 {
        self.0.midstream.max_entries()
    }

    /// Return the sizes of the pinned tables.
    pub fn table_sizes(&self) -> TableSizes {
        TableSizes {
            flows: self.0.flows.max_entries(),
            sources: self.0.sources.max_entries(),
            pending: self.0.pending.max_entries(),
            rules: self.0.rules.max_entries(),
            opening: self.0.proven.max_entries(),
        }
    }

    /// Remove a flow, unless its generation shows that another has replaced it.
    /// The kernel has no conditional removal; a new connection between the same end points as a
    /// closed one, made between the look and the removal, is lost to the guard.
    pub fn remove_flow(&self, key: &FlowKey, generation: u32) -> Result<(), GuardError> {
        match self.0.flows.get(key)? {
            Some(flow) if flow.generation == generation => self.0.flows.remove(key).map(drop),
            _ => Ok(()),
        }
    }

    /// Remove the flows that programs in these roles follow.
    pub fn remove_flows_of(&self, roles: &[Role]) -> Result<(), GuardError> {
        if roles.is_empty() {
            return Ok(());
        }
        let mut theirs = Vec::new();
        self.each_flow(|key, flow| {
            if roles.iter().any(|role| role.owner() == flow.owner) {
                theirs.push((*key, flow.generation));
            }
        })?;
        theirs.iter().try_for_each(|(key, generation)| self.remove_flow(key, *generation))
    }

    /// Forget all connections: those that pass again are picked up midstream.
    ///
    /// For use when one of their directions was not seen for a while. The client then acknowledges
    /// bytes without a record, as a forged segment does. Data about proxies is kept.
    pub fn forget_connections(&self) -> Result<(), GuardError> {
        let Inner { flows, pending, proven, midstream, beginnings, .. } = &*self.0;
        flows.remove_where(|_| true)?;
        for requests in [pending, proven] {
            requests.remove_where(|key| key.client_port != 0)?;
        }
        midstream.remove_where(|_| true)?;
        beginnings.remove_where(|_| true)
    }

    /// Return the counters, summed over all CPUs.
    pub fn counters(&self) -> Result<Box<Counters>, GuardError> {
        self.0.counters.sum()
    }

    /// Return the policy in force for ports without their own settings.
    pub fn policy(&self) -> Result<Policy, GuardError> {
        self.0.policy.get()
    }

    /// Return every policy in force, and the protected ports.
    pub fn policies(&self) -> Result<PolicySet, GuardError> {
        self.0.policy.all()
    }

    /// Set all policies at once, from the next packet on.
    /// This writes the inactive sets, then switches. Blocks for up to 10 ms after the previous
    /// change, until no CPU reads those any more.
    ///
    /// Fields that scopes share with rules and proxies (`rules`, `proxies`, `headers`, `generation`
    /// and [`ws_guard_common::maps::MAY_BAN`]) are filled in here.
    pub fn set_policies(&self, set: &PolicySet) -> Result<(), GuardError> {
        self.change_policies(|current| *current = set.clone())
    }

    /// Set the first scope's policy alone, in the same way.
    pub fn set_policy(&self, policy: &Policy) -> Result<(), GuardError> {
        self.change_policies(|current| match current.scopes.first_mut() {
            Some(first) => *first = *policy,
            None => current.scopes.push(*policy),
        })
    }

    /// Return the protected ports, in order.
    pub fn ports(&self) -> Result<Vec<u16>, GuardError> {
        Ok(self.policies()?.ports.iter().map(|(port, _)| *port).collect())
    }

    /// Protect exactly these ports, all in the first scope.
    pub fn set_ports(&self, ports: &[u16]) -> Result<(), GuardError> {
        self.change_policies(|current| {
            current.ports = ports.iter().map(|port| (*port, 0)).collect();
        })
    }

    fn change_policies(&self, change: impl FnOnce(&mut PolicySet)) -> Result<(), GuardError> {
        self.change_with(&mut self.0.policy.writer(), self.has_bans()?, change)
    }

    fn change_with(
        &self,
        writer: &mut PolicyWriter<'_>,
        bans: bool,
        change: impl FnOnce(&mut PolicySet),
    ) -> Result<(), GuardError> {
        let rules = self.0.rules.entries()?;
        let rules: Vec<Rule> = rules.into_iter().map(|(_, rule)| rule).collect();
        writer.change(InForce { rules: &rules, bans }, change)
    }

    /// Have the programs look for banned sources from the next packet on.
    /// To be called before banning a source that no policy would ban.
    pub fn expect_bans(&self) -> Result<(), GuardError> {
        let mut writer = self.0.policy.writer();
        if self.policies()?.scopes.iter().all(|policy| policy.flags & MAY_BAN != 0) {
            return Ok(());
        }
        self.change_with(&mut writer, true, |_| {})
    }

    /// Check for sources that are banned, or were and have sent no ping since.
    fn has_bans(&self) -> Result<bool, GuardError> {
        let mut banned = false;
        self.each_source(|_, source| banned |= source.flags & BANNED != 0)?;
        Ok(banned)
    }

    /// Return the rules in order, prefix lengths by family (0..=32 or 0..=128).
    pub fn rules(&self) -> Result<Vec<NetworkRule>, GuardError> {
        let mut rules: Vec<NetworkRule> = self
            .0
            .rules
            .entries()?
            .iter()
            .map(|(key, rule)| {
                let (network, prefix) = networks::network(key);
                (network, prefix, *rule)
            })
            .collect();
        rules.sort_by_key(|(network, prefix, _)| (*network, *prefix));
        Ok(rules)
    }

    /// Add or replace a rule; bits after the prefix are cleared.
    /// Known sources are looked up again from the next packet on.
    pub fn set_rule(&self, network: IpAddr, prefix: u8, rule: Rule) -> Result<(), GuardError> {
        let key = networks::key(network, prefix)?;
        let mut writer = self.0.policy.writer();
        self.0.rules.insert(&key, &rule)?;
        self.rules_changed(&mut writer)
    }

    /// Remove a rule; return whether there was one.
    pub fn remove_rule(&self, network: IpAddr, prefix: u8) -> Result<bool, GuardError> {
        let key = networks::key(network, prefix)?;
        let mut writer = self.0.policy.writer();
        let removed = self.0.rules.remove(&key)?;
        if removed {
            self.rules_changed(&mut writer)?;
        }
        Ok(removed)
    }

    /// Replace all rules with one change of policy; additions precede removals.
    ///
    /// # Errors
    /// A bad prefix or a full table; then the new rules so far stay next to the old ones.
    pub fn set_rules(&self, wanted: &[NetworkRule]) -> Result<(), GuardError> {
        let wanted: Vec<(PrefixKey, Rule)> = wanted
            .iter()
            .map(|(network, prefix, rule)| Ok((networks::key(*network, *prefix)?, *rule)))
            .collect::<Result<_, GuardError>>()?;
        let mut writer = self.0.policy.writer();
        let present = self.0.rules.entries()?;
        let changed = self.replace_rules(&present, &wanted);
        // The count differs if a daemon died between a rule and its announcement.
        if !matches!(changed, Ok(false)) || self.policy()?.rules as usize != present.len() {
            self.rules_changed(&mut writer)?;
        }
        changed.map(drop)
    }

    /// Replace the rules; return whether anything had to be changed.
    fn replace_rules(
        &self,
        present: &[(PrefixKey, Rule)],
        wanted: &[(PrefixKey, Rule)],
    ) -> Result<bool, GuardError> {
        let mut changed = false;
        for entry @ (key, rule) in wanted {
            if !present.contains(entry) {
                self.0.rules.insert(key, rule)?;
                changed = true;
            }
        }
        for (key, _) in present {
            if !wanted.iter().any(|(kept, _)| kept == key) {
                changed |= self.0.rules.remove(key)?;
            }
        }
        Ok(changed)
    }

    fn rules_changed(&self, writer: &mut PolicyWriter<'_>) -> Result<(), GuardError> {
        self.change_with(writer, self.has_bans()?, |_| {})
    }

    /// Run the control program; return one of `ws_guard_common::maps::answer`.
    ///
    /// # Errors
    /// [`GuardError::Control`] when the program is not pinned or cannot be run.
    pub fn request(&self, request: &Request) -> Result<u32, GuardError> {
        let control = match self.0.control.get() {
            Some(control) => control,
            None => {
                let opened = Control::open(&self.0.pins.control())?;
                self.0.control.get_or_init(|| opened)
            }
        };
        control.run(request)
    }
}
