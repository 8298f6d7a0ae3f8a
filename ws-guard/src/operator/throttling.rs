//! Changes of sources by an operator or a terminator's report.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use ws_guard_common::{
    maps::{Operation, Request, SourceKey, answer},
    source::UNTIL_RELEASED,
};

use super::{error::ApiError, policy::Operator};
use crate::domain::{
    address::{Given, network_text, prefixes_of},
    clock::{Clock, Timestamp},
    open::OpenFlows,
    source::{Rules, SourceState},
};

/// Longest throttle with an end: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Throttle of the source of an address.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    pub source: String,
    /// Duration; without one, until the source is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Action; without one, the policy's for its connections over their share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ThrottleAction>,
    /// Ban even if others are affected.
    #[serde(default)]
    pub force: bool,
}

/// Action of throttling a source by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ThrottleAction {
    /// Drop everything of the source, new connections too
    Ban,
}

/// Result of an operator's decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// The source, possibly wider than the named address.
    pub source: String,
    pub state: SourceState,
    pub banned: bool,
    pub throttled_until: Option<Timestamp>,
}

/// Source as an operator names it, on all ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Everything from its addresses.
    Prefix(IpNet),
    /// One connection behind a trusted proxy that does not name the client.
    Connection(SocketAddr),
}

impl Named {
    fn address(&self) -> IpAddr {
        match self {
            Named::Prefix(network) => network.addr(),
            Named::Connection(end) => end.ip(),
        }
    }

    fn key(&self, scope: u32) -> SourceKey {
        let scope = match self {
            Named::Prefix(_) => scope,
            Named::Connection(end) => SourceKey::of_connection(scope, end.port().to_be()),
        };
        SourceKey { address: self.address().into(), scope }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Named::Prefix(network) => f.write_str(&network_text(network)),
            Named::Connection(end) => end.fmt(f),
        }
    }
}

impl Operator {
    /// Throttle or ban a source, for a while or until it is released.
    pub fn throttle(&self, wanted: &Throttle) -> Result<Decision, ApiError> {
        let source = self.named(&wanted.source)?;
        let clock = Clock::now();
        let until = match wanted.seconds {
            None => UNTIL_RELEASED,
            Some(seconds) => clock.now_ns + duration(seconds)?.as_nanos() as u64,
        };
        self.refuse_allowed(&source)?;
        let ban = wanted.action == Some(ThrottleAction::Ban);
        if ban && !wanted.force {
            self.refuse_ban(&source)?;
        }
        self.throttle_until(&source, until, ban)?;
        self.keep();
        Ok(Decision {
            source: source.to_string(),
            state: SourceState::Throttled,
            banned: ban,
            throttled_until: clock.at(until).filter(|_| until != UNTIL_RELEASED),
        })
    }

    /// Throttle or ban a source on all ports. `until`: ns of the kernel's clock.
    pub(super) fn throttle_until(
        &self,
        source: &Named,
        until: u64,
        ban: bool,
    ) -> Result<(), ApiError> {
        // After a policy change in between, the programs would no longer look for bans.
        let _writing = self.lock();
        let operation = if ban { Operation::Ban } else { Operation::Throttle };
        if ban {
            self.maps.expect_bans()?;
        }
        for scope in self.maps.policies()?.scopes_in_use() {
            self.request(operation, source, Request { until, ..request(source, scope) })?;
        }
        Ok(())
    }

    /// Release a source, and forget the pings that throttled it.
    pub fn release(&self, source: &str) -> Result<Decision, ApiError> {
        let source = self.named(source)?;
        let mut unknown = None;
        let mut known = false;
        for scope in self.maps.policies()?.scopes_in_use() {
            match self.request(Operation::Release, &source, request(&source, scope)) {
                Ok(()) => known = true,
                Err(error) if error.status == StatusCode::NOT_FOUND => unknown = Some(error),
                Err(error) => return Err(error),
            }
        }
        self.keep();
        match unknown {
            Some(error) if !known => Err(error),
            _ => Ok(Decision {
                source: source.to_string(),
                state: SourceState::Ok,
                banned: false,
                throttled_until: None,
            }),
        }
    }

    /// Return the source of an address, or the connection of an end point.
    fn named(&self, text: &str) -> Result<Named, ApiError> {
        match text.parse::<SocketAddr>() {
            Ok(end) if end.port() != 0 => {
                Ok(Named::Connection(SocketAddr::new(end.ip().to_canonical(), end.port())))
            }
            _ => self.source(text).map(Named::Prefix),
        }
    }

    /// Return the source of an address; a network must be exactly one source.
    pub(super) fn source(&self, text: &str) -> Result<IpNet, ApiError> {
        let prefixes = prefixes_of(&self.maps.policy()?);
        match text.parse().map_err(|error: String| ApiError::refused(&error))? {
            Given::Address(address) => Ok(prefixes.source_of(address)),
            Given::Network(network) => {
                let source = prefixes.source_of(network.addr());
                if source == network {
                    return Ok(source);
                }
                Err(ApiError::bad(
                    format!(
                        "{network} is not one source, which is a /{} here",
                        source.prefix_len()
                    ),
                    format!("name an address, or {source}"),
                ))
            }
        }
    }

    fn refuse_allowed(&self, source: &Named) -> Result<(), ApiError> {
        if Rules::new(self.maps.rules()?).allow(source.address()) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("{source} is on the allowlist, and would not be acted on"),
                "remove it there first, with `ws-guard allow CIDR --remove`",
            ));
        }
        Ok(())
    }

    /// Refuse to ban an address that others are known to share: it would hit them too.
    fn refuse_ban(&self, source: &Named) -> Result<(), ApiError> {
        let Named::Prefix(network) = source else {
            return Err(ApiError::bad(
                format!("{source} is one connection of a proxy, and cannot be banned alone"),
                "throttle it without --action ban, or ban its address",
            ));
        };
        let policies = self.maps.policies()?;
        let refused = |why: String| {
            let remedy = "throttle it without --action ban, which hits only connections over \
                          their share; or add --force";
            Err(ApiError::new(StatusCode::CONFLICT, why, remedy))
        };
        let inside = |proxies: &&IpNet| proxies.contains(network) || network.contains(*proxies);
        if let Some(proxies) = policies.proxies.iter().find(inside) {
            let proxies = network_text(proxies);
            return refused(format!(
                "{source} is a trusted proxy, by trusted-proxy {proxies}: a ban would drop all of \
                 its clients"
            ));
        }
        let keys = policies.scopes_in_use().into_iter().map(|scope| source.key(scope));
        let keys: Vec<SourceKey> = keys.collect();
        let (mut open, now_ns) = (OpenFlows::default(), Clock::now().now_ns);
        self.maps.each_flow(|_, flow| {
            if keys.contains(&flow.account.source) {
                open.add(flow.account.source, flow, now_ns);
            }
        })?;
        let all = keys.iter().map(|key| open.of(key));
        let (connections, over) =
            all.fold((0, 0), |(n, over), open| (n + open.connections, over + open.over_limit));
        if connections > 1 && over < connections {
            return refused(format!(
                "{source} has {connections} open connections, {} of them within the limit: a ban \
                 would drop them all",
                connections - over
            ));
        }
        Ok(())
    }

    /// Run the control program, which takes the source's lock.
    pub(super) fn request(
        &self,
        operation: Operation,
        name: &Named,
        request: Request,
    ) -> Result<(), ApiError> {
        let request = Request { operation: operation as u32, ..request };
        match self.maps.request(&request)? {
            answer::DONE => Ok(()),
            answer::NOT_FOUND => Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("{name} is no source: it has sent no ping and was never throttled"),
                "list the sources with `ws-guard sources`",
            )),
            answer::TABLE_FULL => Err(ApiError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("the source table has no room for {name}"),
                "run with a larger --max-sources",
            )),
            other => Err(ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the control program answered {other} for {name}"),
                "see `ws-guard doctor`",
            )),
        }
    }
}

/// Create an empty request about a source.
pub(super) fn request(source: &Named, scope: u32) -> Request {
    Request { operation: 0, pings: 0, until: 0, source: source.key(scope), _pad: 0 }
}

/// Parse a duration from JSON: positive and finite.
fn duration(seconds: f64) -> Result<Duration, ApiError> {
    let refused = || {
        ApiError::bad(
            format!("seconds: {seconds} is no length of time"),
            "give a positive number of seconds, or leave it out to throttle until released",
        )
    };
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| refused())?;
    if duration.is_zero() { Err(refused()) } else { Ok(duration.min(LONGEST)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_key_in_each_scope() {
        let prefix = Named::Prefix("fd77::/64".parse().unwrap());
        assert_eq!((prefix.key(3).scope(), prefix.key(3).port()), (3, 0));
        let one = Named::Connection("10.0.0.1:4711".parse().unwrap());
        assert_eq!((one.key(3).scope(), u16::from_be(one.key(3).port())), (3, 4711));
        assert_eq!([prefix.to_string(), one.to_string()], ["fd77::/64", "10.0.0.1:4711"]);
    }

    #[test]
    fn lengths_of_time_are_positive() {
        assert_eq!(duration(1.5).unwrap(), Duration::from_millis(1500));
        assert_eq!(duration(1e18).unwrap(), LONGEST);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
