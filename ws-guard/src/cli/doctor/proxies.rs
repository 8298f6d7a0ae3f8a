//! Whether one address stands for many people: a proxy in front of the guard makes all of its users
//! share one limit.

use std::{collections::HashMap, net::IpAddr};

use ws_guard_common::{
    flow::{Flow, state},
    maps::FlowKey,
};

use super::Check;
use crate::{
    control::reader::Reader,
    domain::{
        address::Prefixes,
        source::{SourceState, SourceView},
    },
    guard::{GuardError, Maps},
};

/// An address with fewer connections may well be one person.
const MANY_FLOWS: usize = 10;
/// Of all pings, in percent.
const MOST: u64 = 50;
/// Fewer pings in all say nothing.
const ENOUGH_PINGS: u64 = 100;

pub fn check(maps: &Maps) -> Check {
    match look(maps) {
        Ok(check) => check,
        Err(error) => Check::fail("proxies", error.to_string(), "see the message"),
    }
}

fn look(maps: &Maps) -> Result<Check, GuardError> {
    let views = Reader { maps: maps.clone() }.sources(None)?;
    Ok(judge(&views, &flows_by_source(&maps.flows()?, Prefixes::of(&maps.policy()?))))
}

/// How many connections each source has.
fn flows_by_source(flows: &[(FlowKey, Flow)], prefixes: Prefixes) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for (key, flow) in flows {
        if flow.state != state::CLOSED {
            let source = prefixes.source_of(IpAddr::from(key.client));
            let name = crate::domain::address::network_text(&source);
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

/// `views` come with the one that pinged most first.
fn judge(views: &[SourceView], flows: &HashMap<String, usize>) -> Check {
    let all: u64 = views.iter().map(|view| view.pings_total).sum();
    let Some(first) = views.first().filter(|_| all >= ENOUGH_PINGS) else {
        return Check::ok("proxies", format!("{all} pings so far: too few to tell"));
    };
    let share = first.pings_total.saturating_mul(100) / all.max(1);
    let connections = flows.get(&first.source).copied().unwrap_or(0);
    let finding =
        format!("{} sent {share} % of all pings, and has {connections} connections", first.source);
    if share <= MOST || connections < MANY_FLOWS || first.state == SourceState::Allowed {
        return Check::ok("proxies", finding);
    }
    Check::warn(
        "proxies",
        format!("{finding}: it looks like a proxy, whose users share one limit"),
        format!(
            "if you trust it, `ws-guard allow {0}`; or raise its limit with `ws-guard policy set \
             --cidr {0} --max-ping-rate N`; or guard in front of it",
            first.source
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    fn view(source: &str, pings: u64, state: SourceState) -> SourceView {
        SourceView {
            source: source.into(),
            state,
            pings_in_window: 0,
            pings_total: pings,
            defused_total: 0,
            dropped_total: 0,
            last_ping: None,
            throttled_since: None,
            throttled_until: None,
            manual: false,
            banned: false,
            connections: 0,
            escalated: false,
            port: None,
        }
    }

    #[test]
    fn many_connections_with_most_pings_are_a_proxy() {
        let flows = |n| HashMap::from([("10.0.0.9".to_string(), n)]);
        let found = |pings, state, n| {
            let others = view("10.0.0.1", 100, SourceState::Ok);
            judge(&[view("10.0.0.9", pings, state), others], &flows(n)).verdict
        };
        assert_eq!(found(900, SourceState::Throttled, 40), Verdict::Warn);
        assert_eq!(found(900, SourceState::Allowed, 40), Verdict::Ok);
        assert_eq!(found(900, SourceState::Ok, 3), Verdict::Ok);
        assert_eq!(found(101, SourceState::Ok, 40), Verdict::Ok);
        assert_eq!(judge(&[], &flows(40)).verdict, Verdict::Ok);
    }
}
