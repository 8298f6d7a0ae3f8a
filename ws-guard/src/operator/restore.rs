//! Operators' decisions: saved from the maps, and restored to them.

use std::{collections::BTreeMap, io, time::Duration};

use ipnet::IpNet;
use ws_guard_common::{
    maps::Rule,
    source::{BANNED, MANUAL, UNTIL_RELEASED},
};

use super::{
    error::ApiError,
    policy::Operator,
    state_file::{Kept, KeptThrottle, VERSION},
    throttling::Named,
};
use crate::{
    domain::{
        address::{network_text, prefixes_of},
        clock::{Clock, Timestamp},
        origin::{ALLOWED_BY_OPERATOR, SET_BY_OPERATOR},
    },
    guard::GuardError,
};

impl Operator {
    /// Save operators' decisions.
    /// The change is in force in any case; a failure to write the file is logged.
    pub(super) fn keep(&self) {
        let Some(file) = &self.file else { return };
        let _keeping = self.keeping.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let written = self.decided().map_err(io::Error::other).and_then(|kept| file.write(&kept));
        if let Err(error) = written {
            tracing::error!(
                "{} cannot be written ({error}): the latest decision is in force, and lost at a \
                 reboot",
                file.path.display()
            );
        }
    }

    /// Read operators' decisions from the maps.
    fn decided(&self) -> Result<Kept, GuardError> {
        let rules = self.maps.rules()?;
        let network = |flag: u32| {
            let of_theirs = rules.iter().filter(move |(_, _, rule)| rule.flags & flag != 0);
            of_theirs.filter_map(|(address, length, _): &(_, _, Rule)| {
                IpNet::new(*address, *length).ok()
            })
        };
        let set: Vec<IpNet> = network(SET_BY_OPERATOR).collect();
        let mut cidrs = self.read_policy()?.cidrs;
        cidrs.retain(|policy| set.contains(&policy.cidr));
        let allow = network(ALLOWED_BY_OPERATOR).collect();
        Ok(Kept { version: VERSION, allow, cidrs, throttles: self.throttled_by_hand()? })
    }

    fn throttled_by_hand(&self) -> Result<Vec<KeptThrottle>, GuardError> {
        let prefixes = prefixes_of(&self.maps.policy()?);
        let clock = Clock::now();
        let mut ends: BTreeMap<IpNet, (u64, bool)> = BTreeMap::new();
        self.maps.each_source(|key, source| {
            // Connections do not outlive what the file is for.
            let whole = key.level() == 0 && key.port() == 0;
            if whole && source.flags & MANUAL != 0 && source.throttled_until > clock.now_ns {
                let (end, ban) = ends.entry(prefixes.source_of(key.address.into())).or_default();
                *end = source.throttled_until.max(*end);
                *ban |= source.flags & BANNED != 0;
            }
        })?;
        let throttle = |(source, (end, ban)): (IpNet, (u64, bool))| {
            let until = clock.at(end).filter(|_| end != UNTIL_RELEASED);
            KeptThrottle { source, until, ban }
        };
        Ok(ends.into_iter().map(throttle).collect())
    }

    /// Restore the saved decisions at the start; with `maps_lived`, the maps are newer.
    pub fn restore(&self, maps_lived: bool) {
        let Some(file) = &self.file else { return };
        let kept = file.read();
        match kept {
            Some(kept) if !maps_lived => self.take_up(&kept),
            Some(_) => self.keep(),
            None if maps_lived => {
                let nothing = |kept: &Kept| {
                    kept.allow.is_empty() && kept.cidrs.is_empty() && kept.throttles.is_empty()
                };
                // Create a file only if there is something to save.
                if self.decided().is_ok_and(|kept| !nothing(&kept)) {
                    self.keep();
                }
            }
            None => {}
        }
    }

    fn take_up(&self, kept: &Kept) {
        for network in &kept.allow {
            self.told(network, self.allow_now(&network_text(network)).map(drop));
        }
        for policy in &kept.cidrs {
            let set = self.set_cidr_now(&network_text(&policy.cidr), &policy.own);
            self.told(&policy.cidr, set.map(drop));
        }
        let clock = Clock::now();
        for KeptThrottle { source, until, ban } in &kept.throttles {
            let left = |until: &Timestamp| until.0.duration_since(clock.wall).unwrap_or_default();
            let end = match until.as_ref().map(left) {
                None => UNTIL_RELEASED,
                Some(Duration::ZERO) => continue,
                Some(left) => clock.now_ns.saturating_add(left.as_nanos() as u64),
            };
            let throttled = self
                .source(&network_text(source))
                .and_then(|source| self.throttle_until(&Named::Prefix(source), end, *ban));
            self.told(source, throttled);
        }
        tracing::info!(
            allowed = kept.allow.len(),
            networks = kept.cidrs.len(),
            throttled = kept.throttles.len(),
            "restored from the state file"
        );
        self.keep();
    }

    /// Log an entry that cannot be restored, and drop it.
    fn told(&self, network: &IpNet, result: Result<(), ApiError>) {
        if let Err(error) = result {
            tracing::warn!("cannot restore the settings of {network}: {error}");
        }
    }
}
