//! Settings that a daemon runs with, from all places together.

use std::path::PathBuf;

use ipnet::IpNet;

use super::{run::RunSettings, server::ServerSection};
use crate::domain::{policy::PolicySettings, proxies::TrustedProxies};

/// What a daemon runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub policy: PolicySettings,
    pub run: RunSettings,
    /// The companion server's section of the file.
    pub server: ServerSection,
    /// The allowlist that is configured, in terms of the policy's sources.
    pub allow: Vec<IpNet>,
    /// The trusted proxies were given, and are not just the default.
    pub proxies_given: bool,
    /// The file they came from, to be watched.
    pub file: Option<PathBuf>,
}

impl Settings {
    /// The proxies that the companion server trusts: it also takes user names from them, and so
    /// requires them explicitly.
    pub fn told_proxies(&self) -> TrustedProxies {
        match self.proxies_given {
            true => self.policy.trusted_proxies.clone(),
            false => TrustedProxies::of(&[]),
        }
    }
}
