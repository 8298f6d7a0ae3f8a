//! Settings of a daemon, merged from all layers.

use std::path::PathBuf;

use ipnet::IpNet;

use super::{run::RunSettings, server::ServerSection};
use crate::domain::{policy::PolicySettings, proxies::TrustedProxies};

/// Settings that a daemon runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub policy: PolicySettings,
    pub run: RunSettings,
    /// Companion server's section of the file.
    pub server: ServerSection,
    /// Configured allowlist, in terms of the policy's sources.
    pub allow: Vec<IpNet>,
    /// Set if the trusted proxies were given explicitly.
    pub proxies_given: bool,
    /// File to be watched, if settings came from one.
    pub file: Option<PathBuf>,
}

impl Settings {
    /// Return the proxies that the companion server trusts.
    /// It takes user names from them as well, and so only trusts explicitly given ones.
    pub fn told_proxies(&self) -> TrustedProxies {
        match self.proxies_given {
            true => self.policy.trusted_proxies.clone(),
            false => TrustedProxies::of(&[]),
        }
    }
}
