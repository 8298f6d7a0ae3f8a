//! Whether an untrusted peer speaks for many clients.

use super::Check;
use crate::{control::reader::Reader, domain::suspects::SuspectedProxy, guard::Maps};

pub fn check(maps: &Maps) -> Check {
    match (Reader { maps: maps.clone() }).suspected_proxies() {
        Ok(suspects) => judge(&suspects),
        Err(error) => Check::fail("proxies", error.to_string(), "see the message"),
    }
}

fn judge(suspects: &[SuspectedProxy]) -> Check {
    let Some(first) = suspects.first() else {
        return Check::ok("proxies", "no untrusted peer speaks for many clients");
    };
    let found: Vec<String> =
        suspects.iter().map(|suspect| format!("{}: {suspect}", suspect.peer)).collect();
    Check::warn("proxies", found.join("; "), first.remedy())
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
        let check = judge(&[suspect]);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.finding.contains("203.0.113.7: 40 of its connections"), "{}", check.finding);
        assert!(check.remedy.unwrap().contains("trusted-proxy = [\"203.0.113.7\"]"));
        assert_eq!(judge(&[]).verdict, Verdict::Ok);
    }
}
