//! The policies in force, changed whole.
//!
//! The kernel programs read [`name::ACTIVE`] and then that set of [`name::POLICY`] and of
//! [`name::PORTS`]. A change writes the other sets and then switches, so a packet sees the old
//! policies or the new ones, never a mix.
use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ws_guard_common::maps::{MAY_DROP, Policy, Ports, Rule, SCOPES, TLS, action, name, own};

use super::{error::GuardError, maps::open, table::Table};

/// A CPU that read the old sets' index may still be reading the sets: programs run with preemption
/// or interrupts on for microseconds, never for as long as this.
const GRACE: Duration = Duration::from_millis(10);

/// Everything that changes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// By scope, at most [`SCOPES`]; the first is that of ports without settings of their own.
    pub scopes: Vec<Policy>,
    /// The protected ports in order, each with its scope.
    pub ports: Vec<(u16, u32)>,
}

impl PolicySet {
    /// The scope that a port's pings are counted in, when it is protected.
    pub fn scope_of(&self, port: u16) -> Option<u32> {
        self.ports.iter().find(|(protected, _)| *protected == port).map(|(_, scope)| *scope)
    }

    /// The port that a scope belongs to; `None` for the one that ports share.
    pub fn port_of(&self, scope: u32) -> Option<u16> {
        let owner = self.ports.iter().find(|(_, of)| *of == scope && scope > 0);
        owner.map(|(port, _)| *port)
    }

    /// The scopes that some port is in, in order.
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
        PolicySet { scopes: scopes.into_iter().take(used).collect(), ports }
    }

    /// What all scopes have in common: how many rules there are, and what they may lead to.
    fn finish(&mut self, generation: u32, rules: &[Rule]) {
        let drops = |rule: &Rule| {
            rule.flags & own::ACTION != 0 && rule.limits.action == action::DROP
                || rule.flags & own::ESCALATE != 0 && rule.limits.escalate_after > 0
        };
        let rules_drop = rules.iter().any(drops);
        for (scope, policy) in (0u32..).zip(&mut self.scopes) {
            // On a TLS port what is reported is dropped where it would be defused.
            let reported = policy.flags & TLS != 0 && policy.action == action::DEFUSE;
            let may_drop = rules_drop || reported || policy.escalate_after > 0;
            policy.scope = scope;
            policy.rules = rules.len() as u32;
            policy.generation = generation;
            policy.flags = policy.flags & !MAY_DROP | if may_drop { MAY_DROP } else { 0 };
        }
    }
}

pub struct PolicyMaps {
    slots: Table<u32, Policy>,
    ports: Table<u32, Ports>,
    active: Table<u32, u32>,
    /// Serialises writers; when the sets were last switched.
    switched: Mutex<Instant>,
}

/// The right to change the policies, held over a whole read-change-write.
pub struct PolicyWriter<'a> {
    maps: &'a PolicyMaps,
    switched: MutexGuard<'a, Instant>,
}

impl PolicyMaps {
    pub fn open(dir: &Path) -> Result<Self, GuardError> {
        Ok(PolicyMaps {
            slots: open(dir, name::POLICY, 0)?,
            ports: open(dir, name::PORTS, 0)?,
            active: open(dir, name::ACTIVE, 0)?,
            // Another process may have switched just before.
            switched: Mutex::new(Instant::now()),
        })
    }

    /// The policy in force for ports without settings of their own.
    pub fn get(&self) -> Result<Policy, GuardError> {
        self.unchanged(|active| Ok(self.slots.get(&(active * SCOPES))?.unwrap_or_default()))
    }

    /// All policies in force.
    pub fn all(&self) -> Result<PolicySet, GuardError> {
        self.unchanged(|active| {
            let slot = |scope| self.slots.get(&(active * SCOPES + scope));
            let scopes = (0..SCOPES)
                .map(|scope| Ok(slot(scope)?.unwrap_or_default()))
                .collect::<Result<_, GuardError>>()?;
            let ports = self.ports.get(&active)?.unwrap_or(Ports([0; 65_536]));
            Ok(PolicySet::from_kernel(scopes, &ports))
        })
    }

    /// Read until the sets were not switched meanwhile.
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
    /// Put what `change` makes of the policies in force in force; `rules` are those of now. Waits up
    /// to 10 ms after the previous change.
    pub fn change(
        &mut self,
        rules: &[Rule],
        change: impl FnOnce(&mut PolicySet),
    ) -> Result<(), GuardError> {
        thread::sleep(GRACE.saturating_sub(self.switched.elapsed()));
        let mut set = self.maps.all()?;
        let generation = set.scopes.first().map_or(0, |policy| policy.generation);
        change(&mut set);
        set.finish(generation.wrapping_add(1).max(1), rules);
        let other = 1 - self.maps.active()?;
        for (scope, policy) in (0..SCOPES).zip(&set.scopes) {
            self.maps.slots.insert(&(other * SCOPES + scope), policy)?;
        }
        self.maps.ports.insert(&other, &set.kernel_ports())?;
        self.maps.active.insert(&0, &other)?;
        *self.switched = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_scopes_go_there_and_back() {
        let scopes = vec![Policy { share: 1, ..Policy::default() }, Policy::default()];
        let set = PolicySet { scopes, ports: vec![(80, 0), (443, 1), (65_535, 0)] };
        let back = PolicySet::from_kernel(vec![set.scopes[0]; 32], &set.kernel_ports());
        assert_eq!((back.ports, back.scopes.len()), (set.ports.clone(), 2));
        assert_eq!(set.scope_of(443), Some(1));
        assert_eq!((set.scope_of(81), set.scopes_in_use()), (None, vec![0, 1]));
    }

    #[test]
    fn every_scope_knows_what_rules_and_climbing_may_lead_to() {
        let climbing = Policy { escalate_after: 5, ..Policy::default() };
        let mut set = PolicySet { scopes: vec![Policy::default(), climbing], ports: vec![] };
        set.finish(7, &[Rule::default()]);
        let flags: Vec<u8> = set.scopes.iter().map(|policy| policy.flags).collect();
        assert_eq!(flags, [0, MAY_DROP]);
        assert_eq!((set.scopes[1].scope, set.scopes[1].generation, set.scopes[1].rules), (1, 7, 1));
        let mut drops = Rule { flags: own::ACTION, ..Rule::default() };
        drops.limits.action = action::DROP;
        set.finish(8, &[drops]);
        assert_eq!(set.scopes[0].flags, MAY_DROP);
    }
}
