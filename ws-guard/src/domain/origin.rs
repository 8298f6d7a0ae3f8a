//! Origin of rules for networks: the configuration, or an operator.

use serde::{Deserialize, Serialize};
#[cfg(doc)]
use ws_guard_common::maps::Rule;

/// [`Rule::flags`]: the configuration exempts the network.
/// The kernel only evaluates [`Rule::ALLOW`].
pub const ALLOWED_BY_CONFIG: u32 = 1 << 31;
/// [`Rule::flags`]: an operator exempts the network.
pub const ALLOWED_BY_OPERATOR: u32 = 1 << 30;
/// [`Rule::flags`]: the settings are an operator's, not the configuration's.
pub const SET_BY_OPERATOR: u32 = 1 << 29;

/// Entry of the allowlist.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllowView {
    pub network: String,
    pub origin: Origin,
}

/// Origin of an entry of the allowlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration: removed when no longer configured.
    Config,
    /// An operator: kept until it is removed.
    Runtime,
}
