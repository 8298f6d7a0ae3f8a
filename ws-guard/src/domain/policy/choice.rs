//! Settings with a choice of words.

use serde::{Deserialize, Serialize};
use ws_guard_common::maps;

/// Action on an over-limit ping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Observe,
    #[default]
    Defuse,
    Drop,
    Ban,
}

impl Action {
    pub const WORDS: [(&'static str, Action); 4] = [
        ("observe", Action::Observe),
        ("defuse", Action::Defuse),
        ("drop", Action::Drop),
        ("ban", Action::Ban),
    ];

    pub(super) const fn to_kernel(self) -> u8 {
        match self {
            Action::Observe => maps::action::OBSERVE,
            Action::Defuse => maps::action::DEFUSE,
            Action::Drop => maps::action::DROP,
            Action::Ban => maps::action::BAN,
        }
    }

    pub(super) const fn from_kernel(action: u8) -> Action {
        match action {
            maps::action::OBSERVE => Action::Observe,
            maps::action::DEFUSE => Action::Defuse,
            maps::action::DROP => Action::Drop,
            _ => Action::Ban,
        }
    }

    pub const fn name(self) -> &'static str {
        maps::action::name(self.to_kernel())
    }
}

/// Action that a continuing flood escalates to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EscalateTo {
    #[default]
    Drop,
    Ban,
}

impl EscalateTo {
    pub(super) const WORDS: [(&'static str, EscalateTo); 2] =
        [("drop", EscalateTo::Drop), ("ban", EscalateTo::Ban)];

    pub(super) const fn to_kernel(self) -> u8 {
        match self {
            EscalateTo::Drop => maps::action::DROP,
            EscalateTo::Ban => maps::action::BAN,
        }
    }

    pub(super) const fn from_kernel(action: u8) -> EscalateTo {
        if action == maps::action::BAN { EscalateTo::Ban } else { EscalateTo::Drop }
    }

    pub(super) const fn name(self) -> &'static str {
        maps::action::name(self.to_kernel())
    }
}

/// Treatment of newcomers by a full flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFullFlows {
    /// Let them through untracked.
    #[default]
    Open,
    /// Refuse the connection.
    Closed,
}

impl OnFullFlows {
    pub(super) const WORDS: [(&'static str, OnFullFlows); 2] =
        [("open", OnFullFlows::Open), ("closed", OnFullFlows::Closed)];

    pub(super) const fn name(self) -> &'static str {
        match self {
            OnFullFlows::Open => "open",
            OnFullFlows::Closed => "closed",
        }
    }

    pub(super) const fn flag(self) -> u8 {
        match self {
            OnFullFlows::Open => 0,
            OnFullFlows::Closed => maps::FLOWS_FAIL_CLOSED,
        }
    }

    pub(super) const fn from_flags(flags: u8) -> OnFullFlows {
        if flags & maps::FLOWS_FAIL_CLOSED != 0 { OnFullFlows::Closed } else { OnFullFlows::Open }
    }
}

/// Treatment of newcomers by a full source table; connections keep their share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFullSources {
    /// Charge them to a coarser prefix.
    #[default]
    Coarser,
    /// Allow their connections only the share.
    Closed,
}

impl OnFullSources {
    pub(super) const WORDS: [(&'static str, OnFullSources); 2] =
        [("coarser", OnFullSources::Coarser), ("closed", OnFullSources::Closed)];

    pub(super) const fn name(self) -> &'static str {
        match self {
            OnFullSources::Coarser => "coarser",
            OnFullSources::Closed => "closed",
        }
    }

    pub(super) const fn flag(self) -> u8 {
        match self {
            OnFullSources::Coarser => 0,
            OnFullSources::Closed => maps::SOURCES_FAIL_CLOSED,
        }
    }

    pub(super) const fn from_flags(flags: u8) -> OnFullSources {
        if flags & maps::SOURCES_FAIL_CLOSED != 0 {
            OnFullSources::Closed
        } else {
            OnFullSources::Coarser
        }
    }
}

/// Treatment of untrackable packets that may carry TCP to a protected port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fragments {
    #[default]
    Drop,
    /// Pass them uncounted, around every limit.
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
