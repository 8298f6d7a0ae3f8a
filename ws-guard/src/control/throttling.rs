//! What an operator, or a terminator's report, does to sources.

use std::time::Duration;

use axum::http::StatusCode;
use ipnet::IpNet;
use ws_guard_common::{
    maps::{Operation, Request, SourceKey, answer},
    source::UNTIL_RELEASED,
};

use super::{Decision, Throttle, error::ApiError, operator::Operator};
use crate::domain::{
    address::{Given, Prefixes, network_text},
    clock::Clock,
    source::{Rules, SourceState},
};

/// Ten years: the longest that a throttling with an end lasts.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Operator {
    /// Throttle a source, for a while or until it is released.
    pub fn throttle(&self, wanted: &Throttle) -> Result<Decision, ApiError> {
        let source = self.source(&wanted.source)?;
        let clock = Clock::now();
        let until = match wanted.seconds {
            None => UNTIL_RELEASED,
            Some(seconds) => clock.now_ns + duration(seconds)?.as_nanos() as u64,
        };
        self.refuse_allowed(&source)?;
        self.throttle_until(&source, until)?;
        self.keep();
        Ok(Decision {
            source: network_text(&source),
            state: SourceState::Throttled,
            throttled_until: clock.at(until).filter(|_| until != UNTIL_RELEASED),
        })
    }

    /// Throttle a source on every protected port. `until`: nanoseconds of the kernel's clock.
    pub(super) fn throttle_until(&self, source: &IpNet, until: u64) -> Result<(), ApiError> {
        for scope in self.maps.policies()?.scopes_in_use() {
            self.request(Operation::Throttle, source, Request { until, ..request(source, scope) })?;
        }
        Ok(())
    }

    /// Release a source, and forget the pings it is throttled for.
    pub fn release(&self, source: &str) -> Result<Decision, ApiError> {
        let source = self.source(source)?;
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
                source: network_text(&source),
                state: SourceState::Ok,
                throttled_until: None,
            }),
        }
    }

    /// The source that an address belongs to; a network must be exactly one.
    pub(super) fn source(&self, text: &str) -> Result<IpNet, ApiError> {
        let prefixes = Prefixes::of(&self.maps.policy()?);
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

    fn refuse_allowed(&self, source: &IpNet) -> Result<(), ApiError> {
        if Rules::new(self.maps.rules()?).allow(source.addr()) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("{} is on the allowlist, and would not be acted on", network_text(source)),
                "remove it there first, with `ws-guard allow CIDR --remove`",
            ));
        }
        Ok(())
    }

    /// Run the control program, which takes the source's lock.
    pub(super) fn request(
        &self,
        operation: Operation,
        source: &IpNet,
        request: Request,
    ) -> Result<(), ApiError> {
        let request = Request { operation: operation as u32, ..request };
        let name = network_text(source);
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

/// A request about a source, with nothing in it yet.
pub(super) fn request(source: &IpNet, scope: u32) -> Request {
    let source = SourceKey { address: source.addr().into(), scope };
    Request { operation: 0, pings: 0, until: 0, source, _pad: 0 }
}

/// A length of time from JSON: positive and finite.
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
    fn lengths_of_time_are_positive() {
        assert_eq!(duration(1.5).unwrap(), Duration::from_millis(1500));
        assert_eq!(duration(1e18).unwrap(), LONGEST);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
