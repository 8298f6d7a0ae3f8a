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

/// What the two tables of requests hold.
#[derive(Clone, Debug, Default)]
pub struct Handshakes {
    /// Where there is a request, or the beginning of an answer.
    pub keys: BTreeSet<FlowKey>,
    /// Entries of [`name::PENDING`].
    pub pending: u32,
    /// Entries of [`name::PROVEN`]; some have no request at the moment.
    pub proven: u32,
}

/// The maps, by their types. Cheap to clone, usable from several threads.
///
/// Calls go straight to the kernel and take microseconds, but for the listings (milliseconds for
/// ten thousand entries) and changes of policy and rules (up to 10 ms: see
/// [`Maps::set_policy`]).
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
    /// Open the maps of a guard that runs, or ran, from its pins. No program is needed.
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

    /// Open maps whose layouts were compared already.
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

    /// All flows, each read whole under its lock.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>, GuardError> {
        self.0.flows.entries()
    }

    /// The same one by one, in constant memory.
    pub fn each_flow(&self, visit: impl FnMut(&FlowKey, &Flow)) -> Result<(), GuardError> {
        self.0.flows.each(visit)
    }

    /// One flow.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Flow>, GuardError> {
        self.0.flows.get(key)
    }

    /// Connections whose handshake is without an answer yet, each once. Their entries have no lock: a
    /// value may be half-way through a change.
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

    /// Connections without a flow on which a server sent data. They have no lock either.
    pub fn midstream(&self) -> Result<Vec<(FlowKey, Midstream)>, GuardError> {
        self.0.midstream.entries()
    }

    /// All sources, and the coarser prefixes that some were charged to; each read whole under its
    /// lock.
    pub fn sources(&self) -> Result<Vec<(SourceKey, Source)>, GuardError> {
        let mut sources = Vec::new();
        self.each_source(|key, source| sources.push((*key, *source)))?;
        Ok(sources)
    }

    /// The same one by one, in constant memory; the coarser prefixes last.
    pub fn each_source(
        &self,
        mut visit: impl FnMut(&SourceKey, &Source),
    ) -> Result<(), GuardError> {
        self.0.sources.each(&mut visit)?;
        self.0.coarse.each(visit)
    }

    /// The coarser prefixes that sources without room are charged to.
    pub fn coarse(&self) -> Result<Vec<(SourceKey, Source)>, GuardError> {
        self.0.coarse.entries()
    }

    /// One source, by its masked address; or a coarser prefix.
    pub fn source(&self, source: &SourceKey) -> Result<Option<Source>, GuardError> {
        if source.level() > 0 { self.0.coarse.get(source) } else { self.0.sources.get(source) }
    }

    /// Untrusted peers whose requests carry forwarding headers. They have no lock: a value may be
    /// half-way through a change.
    pub fn suspects(&self) -> Result<Vec<(Address, Suspect)>, GuardError> {
        self.0.suspects.entries()
    }

    /// Figures of servers, in order; last those of all others together.
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

    /// Entries in use. The kernel cannot tell without reading them: a millisecond for each few
    /// thousand.
    pub fn flow_count(&self) -> Result<u32, GuardError> {
        self.0.flows.count()
    }

    /// Entries in use; costs what [`Maps::flow_count`] costs.
    pub fn source_count(&self) -> Result<u32, GuardError> {
        self.0.sources.count()
    }

    /// Coarser prefixes in use; costs what [`Maps::flow_count`] costs.
    pub fn coarse_count(&self) -> Result<u32, GuardError> {
        self.0.coarse.count()
    }

    /// Entries in use; costs what [`Maps::flow_count`] costs.
    pub fn midstream_count(&self) -> Result<u32, GuardError> {
        self.0.midstream.count()
    }

    /// Memory that the pinned maps take in the kernel.
    pub fn memory(&self) -> Result<Memory, GuardError> {
        Ok(self.memory_by_map()?.iter().map(|map| map.memory).sum())
    }

    /// The same, map by map.
    pub fn memory_by_map(&self) -> Result<Vec<MapMemory>, GuardError> {
        memory::of_pins(&self.0.pins)
    }

    /// Entries that the table of midstream candidates has room for.
    pub fn midstream_capacity(&self) -> u32 {
        self.0.midstream.max_entries()
    }

    /// The sizes that the pinned tables have.
    pub fn table_sizes(&self) -> TableSizes {
        TableSizes {
            flows: self.0.flows.max_entries(),
            sources: self.0.sources.max_entries(),
            pending: self.0.pending.max_entries(),
            rules: self.0.rules.max_entries(),
            opening: self.0.proven.max_entries(),
        }
    }

    /// Remove a flow, unless another has taken its place: one of another generation. The kernel has
    /// no removal with a condition; a connection that is made between the look and the removal, and
    /// between the same end points as one that closed before, is lost to the guard.
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
    /// For when one of their directions was not seen for a while. The client then acknowledges
    /// bytes that no record has, as a forged segment does. What is known of proxies stays.
    pub fn forget_connections(&self) -> Result<(), GuardError> {
        let Inner { flows, pending, proven, midstream, beginnings, .. } = &*self.0;
        flows.remove_where(|_| true)?;
        for requests in [pending, proven] {
            requests.remove_where(|key| key.client_port != 0)?;
        }
        midstream.remove_where(|_| true)?;
        beginnings.remove_where(|_| true)
    }

    /// Summed over the CPUs.
    pub fn counters(&self) -> Result<Box<Counters>, GuardError> {
        self.0.counters.sum()
    }

    /// The policy in force for ports without settings of their own.
    pub fn policy(&self) -> Result<Policy, GuardError> {
        self.0.policy.get()
    }

    /// Every policy in force, and the protected ports.
    pub fn policies(&self) -> Result<PolicySet, GuardError> {
        self.0.policy.all()
    }

    /// Takes effect on the next packet, whole: writes the sets not in force, then switches.
    /// Blocks for up to 10 ms after the previous change, until no CPU reads those any more.
    ///
    /// What scopes have in common with rules and proxies (`rules`, `proxies`, `headers`,
    /// `generation` and [`ws_guard_common::maps::MAY_BAN`]) is seen to here.
    pub fn set_policies(&self, set: &PolicySet) -> Result<(), GuardError> {
        self.change_policies(|current| *current = set.clone())
    }

    /// The same for the first scope alone.
    pub fn set_policy(&self, policy: &Policy) -> Result<(), GuardError> {
        self.change_policies(|current| match current.scopes.first_mut() {
            Some(first) => *first = *policy,
            None => current.scopes.push(*policy),
        })
    }

    /// The protected ports, in order.
    pub fn ports(&self) -> Result<Vec<u16>, GuardError> {
        Ok(self.policies()?.ports.iter().map(|(port, _)| *port).collect())
    }

    /// Protect exactly these, all in the first scope.
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

    /// Have the programs look for banned sources from the next packet on; to be called before one is
    /// banned that no policy would ban.
    pub fn expect_bans(&self) -> Result<(), GuardError> {
        let mut writer = self.0.policy.writer();
        if self.policies()?.scopes.iter().all(|policy| policy.flags & MAY_BAN != 0) {
            return Ok(());
        }
        self.change_with(&mut writer, true, |_| {})
    }

    /// Some source is banned, or was and has sent no ping since.
    fn has_bans(&self) -> Result<bool, GuardError> {
        let mut banned = false;
        self.each_source(|_, source| banned |= source.flags & BANNED != 0)?;
        Ok(banned)
    }

    /// Prefix lengths are those of the address family (0..=32 or 0..=128); in order.
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

    /// Make or replace a rule; known sources are looked up again from the next packet on. Bits
    /// behind the prefix are cleared.
    pub fn set_rule(&self, network: IpAddr, prefix: u8, rule: Rule) -> Result<(), GuardError> {
        let key = networks::key(network, prefix)?;
        let mut writer = self.0.policy.writer();
        self.0.rules.insert(&key, &rule)?;
        self.rules_changed(&mut writer)
    }

    /// Remove a rule; whether there was one.
    pub fn remove_rule(&self, network: IpAddr, prefix: u8) -> Result<bool, GuardError> {
        let key = networks::key(network, prefix)?;
        let mut writer = self.0.policy.writer();
        let removed = self.0.rules.remove(&key)?;
        if removed {
            self.rules_changed(&mut writer)?;
        }
        Ok(removed)
    }

    /// Have exactly these rules, with one change of policy; new ones are made before old ones go.
    ///
    /// # Errors
    /// A bad prefix or a full table; then the new rules made so far stay next to the old ones.
    pub fn set_rules(&self, wanted: &[NetworkRule]) -> Result<(), GuardError> {
        let wanted: Vec<(PrefixKey, Rule)> = wanted
            .iter()
            .map(|(network, prefix, rule)| Ok((networks::key(*network, *prefix)?, *rule)))
            .collect::<Result<_, GuardError>>()?;
        let mut writer = self.0.policy.writer();
        let present = self.0.rules.entries()?;
        let changed = self.replace_rules(&present, &wanted);
        // The count differs when a daemon died between a rule and its announcement.
        if !matches!(changed, Ok(false)) || self.policy()?.rules as usize != present.len() {
            self.rules_changed(&mut writer)?;
        }
        changed.map(drop)
    }

    /// Whether anything had to be changed.
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

    /// Run the control program; returns one of `ws_guard_common::maps::answer`.
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
