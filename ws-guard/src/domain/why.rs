//! Reason of a throttle, as in events.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};
use ws_guard_common::{
    flow::Flow,
    maps::{SourceKey, action},
    source::{BANNED, MANUAL, Source, millis},
};

use super::{open::Open, source::SourceViews};

/// Reason of a throttle in JSON, as of the daemon's reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// `pings`, or `operator` for a throttle by hand.
    pub by: Cow<'static, str>,
    /// Pings that the source may send in any window.
    pub limit: u32,
    pub window_seconds: u32,
    /// Pings that every connection may send, whatever its source has used.
    pub connection_share: u32,
    /// Pings that one connection may send; null without such a limit.
    pub connection_limit: Option<u32>,
    /// Pings of the source in the window, as far as its log reaches.
    pub pings_in_window: u32,
    /// Pings of the connection over the limit; null without one.
    pub connection_pings_in_window: Option<u32>,
    pub pings_total: u64,
    /// Action on connections over the limit.
    pub action: Cow<'static, str>,
    /// Set if their windows are held.
    pub paced: bool,
    /// Open connections that share the source...
    pub connections: u32,
    /// ...and the number of those over the limit.
    pub over_limit: u32,
}

impl Why {
    /// Create the reason. `flow` is over the limit, `open` the source's connections.
    pub fn new(
        views: &SourceViews,
        key: &SourceKey,
        source: &Source,
        flow: Option<&Flow>,
        open: Open,
    ) -> Why {
        let now = millis(views.clock.now_ns);
        let policy = views.policies.scopes.get(key.scope() as usize).copied().unwrap_or_default();
        // The source's own copy may be older than the policy, and is empty before its first ping.
        let current = Source { limits: views.limits(key), ..*source };
        let banned = source.flags & BANNED != 0;
        let doing = if banned { action::BAN } else { current.action() };
        let counted = |flow: &Flow| flow.window.count(now, policy.connection_rate);
        let own = policy.connection_rate;
        Why {
            by: if source.flags & MANUAL != 0 { "operator" } else { "pings" }.into(),
            limit: current.limits.rate.limit,
            window_seconds: current.limits.rate.window_ms / 1000,
            connection_share: policy.share,
            connection_limit: (own.limit > 0).then_some(own.limit),
            pings_in_window: source.window.count(now, current.limits.rate),
            connection_pings_in_window: flow.map(counted),
            pings_total: source.pings_total,
            action: action::name(doing).into(),
            paced: !banned && current.paces(),
            // The connection over the limit may be newer than the count.
            connections: open.connections.max(flow.is_some().into()),
            over_limit: open.over_limit.max(flow.is_some().into()),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by == "operator" {
            f.write_str("by an operator")?;
        } else {
            write!(f, "limit {} in {} s", self.limit, self.window_seconds)?;
            write!(f, ", {} counted", self.pings_in_window)?;
            if let Some(own) = self.connection_pings_in_window {
                write!(f, ", {own} on this connection")?;
            }
            if let Some(limit) = self.connection_limit {
                write!(f, " (limit {limit})")?;
            }
        }
        let paced = if self.paced { " and pace" } else { "" };
        write!(f, " · {}{paced}", self.action)?;
        let many = if self.connections == 1 { "connection" } else { "connections" };
        write!(f, " · {} of {} {many} over the limit", self.over_limit, self.connections)
    }
}
