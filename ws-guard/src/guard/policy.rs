//! Policies in force, changed as a whole.
//!
//! The kernel programs read [`name::ACTIVE`] and then that set of [`name::POLICY`], of
//! [`name::PORTS`] and of [`name::HEADERS`]. A change writes the other sets and then switches, so
//! that a packet sees the old policies or the new ones, never a mix. The trusted proxies are one
//! trie: before the switch, new ones are added, then old ones removed.
use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use ws_guard_common::{
    forwarded::names::HeaderNames,
    maps::{Limits, MAY_BAN, Policy, Ports, Rule, SCOPES, action, name},
};

use super::{error::GuardError, networks, plain::PrefixKey, table::Table};

/// Time after which no CPU reads the old sets any more.
/// With preemption or interrupts on, programs run for microseconds, never for as long as this.
const GRACE: Duration = Duration::from_millis(10);

/// Settings that change together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// Policies by scope, at most [`SCOPES`]; the first for ports without own settings.
    pub scopes: Vec<Policy>,
    /// Protected ports in order, each with its scope.
    pub ports: Vec<(u16, u32)>,
    /// Trusted proxies, in order.
    pub proxies: Vec<IpNet>,
    /// Headers in which a trusted proxy names a request's client.
    pub headers: HeaderNames,
}

/// State that affects policies without being part of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct InForce<'a> {
    /// Rules of all networks.
    pub rules: &'a [Rule],
    /// Set if a source is banned, or about to be.
    pub bans: bool,
}

impl PolicySet {
    /// Return the scope in which a protected port's pings are counted.
    pub fn scope_of(&self, port: u16) -> Option<u32> {
        self.ports.iter().find(|(protected, _)| *protected == port).map(|(_, scope)| *scope)
    }

    /// Return the port that owns a scope; `None` for the shared one.
    pub fn port_of(&self, scope: u32) -> Option<u16> {
        let owner = self.ports.iter().find(|(_, of)| *of == scope && scope > 0);
        owner.map(|(port, _)| *port)
    }

    /// Return the scopes of all ports, in order.
    pub fn scopes_in_use(&self) -> Vec<u32> {
        let mut scopes: Vec<u32> = self.ports.iter().map(|(_, scope)| *scope).collect();
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }

    fn kernel_ports(&self) -> Box<Ports> {
        let mut ports = Box::new(Ports([0; 65_536]));
        for (port, scope) in &self.ports {
            if let Some(entry) = ports.0.get_mut(usize::from(*port)) {
                *entry = (*scope % SCOPES) as u8 + 1;
            }
        }
        ports
    }

    fn from_kernel(scopes: Vec<Policy>, ports: &Ports) -> PolicySet {
        let scope = |entry: &u8| u32::from(entry & Ports::SCOPE).checked_sub(1);
        let protected = (0..=u16::MAX).zip(&ports.0);
        let ports: Vec<(u16, u32)> =
            protected.filter_map(|(port, entry)| Some((port, scope(entry)?))).collect();
        let used = ports.iter().map(|(_, scope)| *scope as usize + 1).max().unwrap_or(1);
        let scopes = scopes.into_iter().take(used).collect();
        PolicySet { scopes, ports, ..PolicySet::default() }
    }

    /// Fill in what all scopes have in common.
    /// That is the numbers of rules and proxies, and whether bans are possible.
    fn finish(&mut self, generation: u32, headers: u32, in_force: InForce<'_>) {
        for (scope, policy) in (0u32..).zip(&mut self.scopes) {
            let own = Limits::of(policy);
            let bans = in_force.bans
                || may_ban(&own)
                || in_force.rules.iter().any(|rule| may_ban(&own.with(rule)));
            policy.scope = scope;
            policy.rules = in_force.rules.len() as u32;
            policy.proxies = self.proxies.len() as u32;
            policy.headers = headers as u8;
            policy.generation = generation;
            policy.flags = policy.flags & !MAY_BAN | if bans { MAY_BAN } else { 0 };
        }
    }
}

/// Check whether pings can lead to a ban.
const fn may_ban(limits: &Limits) -> bool {
    limits.action == action::BAN || limits.escalate_after > 0 && limits.escalate_to == action::BAN
}

pub struct PolicyMaps {
    slots: Table<u32, Policy>,
    ports: Table<u32, Ports>,
    headers: Table<u32, HeaderNames>,
    proxies: Table<PrefixKey, u32>,
    active: Table<u32, u32>,
    /// Lock of the writers, with the time of the last switch.
    switched: Mutex<Instant>,
}

/// Right to change the policies, held over a whole read-change-write.
pub struct PolicyWriter<'a> {
    maps: &'a PolicyMaps,
    switched: MutexGuard<'a, Instant>,
}

impl PolicyMaps {
    pub fn open(dir: &Path) -> Result<Self, GuardError> {
        Ok(PolicyMaps {
            slots: Table::open(dir, name::POLICY, 0)?,
            ports: Table::open(dir, name::PORTS, 0)?,
            headers: Table::open(dir, name::HEADERS, 0)?,
            proxies: Table::open(dir, name::PROXIES, 0)?,
            active: Table::open(dir, name::ACTIVE, 0)?,
            // Another process may have switched just before.
            switched: Mutex::new(Instant::now()),
        })
    }

    /// Return the policy in force for ports without their own settings.
    pub fn get(&self) -> Result<Policy, GuardError> {
        self.unchanged(|active| Ok(self.slots.get(&(active * SCOPES))?.unwrap_or_default()))
    }

    /// Return all policies in force.
    pub fn all(&self) -> Result<PolicySet, GuardError> {
        self.unchanged(|active| {
            let slot = |scope| self.slots.get(&(active * SCOPES + scope));
            let scopes = (0..SCOPES)
                .map(|scope| Ok(slot(scope)?.unwrap_or_default()))
                .collect::<Result<_, GuardError>>()?;
            let ports = self.ports.get(&active)?.unwrap_or(Ports([0; 65_536]));
            let headers = self.headers.get(&active)?.unwrap_or_default();
            let proxies = self.proxies()?;
            Ok(PolicySet { proxies, headers, ..PolicySet::from_kernel(scopes, &ports) })
        })
    }

    fn proxies(&self) -> Result<Vec<IpNet>, GuardError> {
        let network = |(key, _): &(PrefixKey, u32)| {
            let (address, length) = networks::network(key);
            IpNet::new(address, length).ok()
        };
        let mut proxies: Vec<IpNet> = self.proxies.entries()?.iter().filter_map(network).collect();
        proxies.sort_unstable();
        Ok(proxies)
    }

    /// Trust exactly these proxies; new ones are added before old ones go.
    fn set_proxies(&self, wanted: &[IpNet]) -> Result<(), GuardError> {
        let present = self.proxies()?;
        for network in wanted.iter().filter(|network| !present.contains(network)) {
            self.proxies.insert(&networks::key_of(network), &1)?;
        }
        for network in present.iter().filter(|network| !wanted.contains(network)) {
            self.proxies.remove(&networks::key_of(network))?;
        }
        Ok(())
    }

    /// Read, and repeat if the sets were switched meanwhile.
    fn unchanged<T>(&self, read: impl Fn(u32) -> Result<T, GuardError>) -> Result<T, GuardError> {
        loop {
            let active = self.active()?;
            let found = read(active)?;
            if self.active()? == active {
                return Ok(found);
            }
        }
    }

    pub fn writer(&self) -> PolicyWriter<'_> {
        // A writer that panicked has switched or has not: the sets are whole either way.
        let switched = self.switched.lock().unwrap_or_else(PoisonError::into_inner);
        PolicyWriter { maps: self, switched }
    }

    fn active(&self) -> Result<u32, GuardError> {
        Ok(self.active.get(&0)?.unwrap_or_default() & 1)
    }
}

impl PolicyWriter<'_> {
    /// Apply `change` to the policies in force.
    /// Waits up to 10 ms after the previous change.
    pub fn change(
        &mut self,
        in_force: InForce<'_>,
        change: impl FnOnce(&mut PolicySet),
    ) -> Result<(), GuardError> {
        thread::sleep(GRACE.saturating_sub(self.switched.elapsed()));
        let mut set = self.maps.all()?;
        let generation = set.scopes.first().map_or(0, |policy| policy.generation);
        change(&mut set);
        let other = 1 - self.maps.active()?;
        set.finish(generation.wrapping_add(1).max(1), other, in_force);
        for (scope, policy) in (0..SCOPES).zip(&set.scopes) {
            self.maps.slots.insert(&(other * SCOPES + scope), policy)?;
        }
        self.maps.ports.insert(&other, &set.kernel_ports())?;
        self.maps.headers.insert(&other, &set.headers)?;
        self.maps.set_proxies(&set.proxies)?;
        self.maps.active.insert(&0, &other)?;
        *self.switched = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ws_guard_common::maps::own;

    use super::*;

    #[test]
    fn ports_and_scopes_go_there_and_back() {
        let scopes = vec![Policy { share: 1, ..Policy::default() }, Policy::default()];
        let ports = vec![(80, 0), (443, 1), (65_535, 0)];
        let set = PolicySet { scopes, ports, ..PolicySet::default() };
        let back = PolicySet::from_kernel(vec![set.scopes[0]; 32], &set.kernel_ports());
        assert_eq!((back.ports, back.scopes.len()), (set.ports.clone(), 2));
        assert_eq!(set.scope_of(443), Some(1));
        assert_eq!((set.scope_of(81), set.scopes_in_use()), (None, vec![0, 1]));
    }

    #[test]
    fn every_scope_knows_whether_pings_may_lead_to_a_ban() {
        let (ban, drop) = (action::BAN, action::DROP);
        let climbing = |escalate_to| Policy { escalate_after: 5, escalate_to, ..Policy::default() };
        let scopes = vec![Policy::default(), climbing(ban), climbing(drop)];
        let mut set = PolicySet {
            scopes,
            proxies: vec!["10.0.0.0/8".parse().unwrap()],
            ..PolicySet::default()
        };
        let mut flags = |rules: &[Rule], bans| {
            set.finish(7, 1, InForce { rules, bans });
            let one = set.scopes[1];
            assert_eq!((one.scope, one.generation, one.rules), (1, 7, rules.len() as u32));
            assert_eq!((one.proxies, one.headers), (1, 1));
            set.scopes.iter().map(|policy| policy.flags).collect::<Vec<u8>>()
        };
        assert_eq!(flags(&[Rule::default()], false), [0, MAY_BAN, 0]);
        assert_eq!(flags(&[], true), [MAY_BAN; 3]);
        let mut rule = Rule { flags: own::ACTION, ..Rule::default() };
        rule.limits.action = ban;
        assert_eq!(flags(&[rule], false), [MAY_BAN; 3]);
        // Only where the policy escalates.
        let mut rule = Rule { flags: own::ESCALATE_TO, ..Rule::default() };
        rule.limits.escalate_to = ban;
        assert_eq!(flags(&[rule], false), [0, MAY_BAN, MAY_BAN]);
        // A rule may escalate where its policy does not.
        rule.flags |= own::ESCALATE;
        rule.limits.escalate_after = 3;
        assert_eq!(flags(&[rule], false), [MAY_BAN; 3]);
    }
}
