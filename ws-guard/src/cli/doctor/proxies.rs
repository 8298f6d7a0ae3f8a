//! Search for untrusted peers that speak for many clients.

use super::Check;
use crate::{
    domain::{
        source::{SourceState, SourceView},
        suspects::SuspectedProxy,
    },
    guard::{GuardError, Maps},
    state::reader::Reader,
};

/// Open connections from which on a source may be a proxy; fewer may be one client.
const CROWD: u32 = 20;

/// Check current throttles; totals would let an old flood look like a proxy.
pub fn check(maps: &Maps) -> Check {
    let reader = Reader { maps: maps.clone() };
    let look = || -> Result<Check, GuardError> {
        let throttled = reader.sources(Some(SourceState::Throttled))?;
        let crowds = throttled.iter().map(crowd).collect::<Vec<_>>();
        Ok(judge(&reader.suspected_proxies()?, &crowds))
    };
    look().unwrap_or_else(|error| Check::fail("proxies", error.to_string(), "see the message"))
}

/// Return a throttled source and its number of open connections.
fn crowd(source: &SourceView) -> (String, u32) {
    (source.source.to_string(), source.connections)
}

fn judge(suspects: &[SuspectedProxy], throttled: &[(String, u32)]) -> Check {
    let Some(first) = suspects.first() else { return judge_throttled(throttled) };
    let found: Vec<String> =
        suspects.iter().map(|suspect| format!("{}: {suspect}", suspect.peer)).collect();
    Check::warn("proxies", found.join("; "), first.remedy())
}

/// Judge throttled sources with many connections.
/// They may be proxies whose clients ping more often than their share allows. Suspects include
/// neither trusted proxies that name no client, nor those whose connections are over the limit.
fn judge_throttled(throttled: &[(String, u32)]) -> Check {
    let crowds = throttled.iter().filter(|(_, connections)| *connections >= CROWD);
    let found: Vec<String> = crowds
        .map(|(source, connections)| {
            format!("{source} is throttled, with {connections} connections open")
        })
        .collect();
    if found.is_empty() {
        return Check::ok("proxies", "no peer looks like an unnamed proxy");
    }
    Check::warn(
        "proxies",
        found.join("; "),
        "if it is a proxy, let it send X-Forwarded-For or the PROXY protocol, and have it in \
         trusted-proxy; if its clients ping often, raise connection-share",
    )
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn a_suspected_proxy_is_a_warning_with_the_setting() {
        let suspect = SuspectedProxy {
            peer: "203.0.113.7".parse().unwrap(),
            reason: "connections".into(),
            clients: None,
            connections: 40,
            pings_percent: 90,
            setting: "trusted-proxy = [\"203.0.113.7\"]".into(),
            flag: "--trusted-proxy 203.0.113.7".into(),
        };
        let check = judge(&[suspect], &[]);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.finding.contains("203.0.113.7: 40 of its connections"), "{}", check.finding);
        assert!(check.remedy.unwrap().contains("trusted-proxy = [\"203.0.113.7\"]"));
        assert_eq!(judge(&[], &[]).verdict, Verdict::Ok);
    }

    #[test]
    fn a_crowd_that_is_throttled_now_is_a_warning() {
        let of = |connections| judge(&[], &[("10.0.0.5".into(), connections)]);
        assert_eq!(of(CROWD - 1).verdict, Verdict::Ok);
        let check = of(50);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.finding.contains("10.0.0.5 is throttled, with 50"), "{}", check.finding);
    }
}
