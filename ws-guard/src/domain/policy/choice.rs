//! Settings that are one of a few words.

use serde::{Deserialize, Serialize};
use ws_guard_common::maps;

/// What an over-limit ping leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Observe,
    #[default]
    Defuse,
    Drop,
}

impl Action {
    pub const WORDS: [(&'static str, Action); 3] =
        [("observe", Action::Observe), ("defuse", Action::Defuse), ("drop", Action::Drop)];

    pub(super) const fn to_kernel(self) -> u8 {
        match self {
            Action::Observe => maps::action::OBSERVE,
            Action::Defuse => maps::action::DEFUSE,
            Action::Drop => maps::action::DROP,
        }
    }

    pub(super) const fn from_kernel(action: u8) -> Action {
        match action {
            maps::action::OBSERVE => Action::Observe,
            maps::action::DEFUSE => Action::Defuse,
            _ => Action::Drop,
        }
    }

    pub const fn name(self) -> &'static str {
        maps::action::name(self.to_kernel())
    }
}

/// What a full table does with newcomers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// Let them through untracked.
    #[default]
    Open,
    /// Refuse the connection, or treat the source's pings as over the limit.
    Closed,
}

impl OnFull {
    pub(super) const WORDS: [(&'static str, OnFull); 2] =
        [("open", OnFull::Open), ("closed", OnFull::Closed)];

    pub(super) const fn name(self) -> &'static str {
        match self {
            OnFull::Open => "open",
            OnFull::Closed => "closed",
        }
    }

    pub(super) const fn flag(self, flag: u8) -> u8 {
        match self {
            OnFull::Open => 0,
            OnFull::Closed => flag,
        }
    }

    pub(super) const fn from_flag(set: bool) -> OnFull {
        if set { OnFull::Closed } else { OnFull::Open }
    }
}

/// What becomes of packets that may carry TCP to a protected port and cannot be followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fragments {
    #[default]
    Drop,
    /// Uncounted, and a way around every limit.
    Pass,
}

impl Fragments {
    pub(super) const WORDS: [(&'static str, Fragments); 2] =
        [("drop", Fragments::Drop), ("pass", Fragments::Pass)];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Fragments::Drop => "drop",
            Fragments::Pass => "pass",
        }
    }

    pub(super) const fn flag(self) -> u8 {
        match self {
            Fragments::Drop => 0,
            Fragments::Pass => maps::UNREADABLE_PASSES,
        }
    }

    pub(super) const fn from_flags(flags: u8) -> Fragments {
        if flags & maps::UNREADABLE_PASSES != 0 { Fragments::Pass } else { Fragments::Drop }
    }
}
