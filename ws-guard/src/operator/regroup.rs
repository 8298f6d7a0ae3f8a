//! Regrouping of ping logs when a limit changes.
//!
//! A source's log of pings is written in groups whose size depends on its limit
//! ([`ws_guard_common::window`]). A log in larger groups than the limit needs serves as well, one
//! in smaller groups does not. So logs are rewritten before a change where their groups grow, and
//! after it where they shrink; packets never have to do it.

use ws_guard_common::{
    maps::{Operation, Request, SourceKey},
    source::Source,
    window::Rate,
};

use super::{error::ApiError, policy::Operator};
use crate::{
    domain::{
        clock::Clock,
        source::{Rules, SourceViews},
    },
    guard::GuardError,
};

impl Operator {
    /// Return the policies and rules in force, with the current time.
    pub(super) fn views(&self) -> Result<SourceViews, GuardError> {
        Ok(SourceViews {
            policies: self.maps.policies()?,
            rules: Rules::new(self.maps.rules()?),
            clock: Clock::now(),
        })
    }

    /// Change policies or rules, and keep the earlier pings counting.
    pub(super) fn regrouping(
        &self,
        before: &SourceViews,
        after: &SourceViews,
        change: impl FnOnce() -> Result<(), GuardError>,
    ) -> Result<(), ApiError> {
        if before.groupings() == after.groupings() {
            return Ok(change()?);
        }
        self.regroup(after, |source, rate| source.window.shift() < rate.shift)?;
        change()?;
        self.regroup(after, |source, rate| source.window.shift() > rate.shift)
    }

    /// Rewrite the logs selected by `wants`.
    fn regroup(
        &self,
        after: &SourceViews,
        wants: impl Fn(&Source, Rate) -> bool,
    ) -> Result<(), ApiError> {
        let mut otherwise = Vec::new();
        self.maps.each_source(|key, source| {
            let rate = after.limits(key).rate;
            if source.window.is_grouped_otherwise(rate) && wants(source, rate) {
                otherwise.push(request(*key, rate));
            }
        })?;
        // A source that is gone meanwhile needs nothing.
        otherwise.iter().try_for_each(|wanted| Ok(self.maps.request(wanted).map(drop)?))
    }
}

fn request(source: SourceKey, rate: Rate) -> Request {
    Request {
        operation: Operation::Regroup as u32,
        pings: rate.shift,
        until: rate.window_ms.into(),
        source,
        _pad: 0,
    }
}
