//! `ws-guard throttle` and `ws-guard release`.

use std::time::Duration;

use clap::Args;
use hyper::Method;

use super::{Global, backend::daemon, output::print};
use crate::{
    api::message::Release,
    operator::throttling::{Decision, Throttle, ThrottleAction},
};

const HELP: &str = "\
A ban drops everything of the source, new connections too. It is refused, unless forced, where it
would affect others: for a trusted proxy, and for a source with connections within the limit.
It outlives the daemon and a reboot, until it ends or `ws-guard release` ends it.

Examples:
  ws-guard throttle 203.0.113.9 --for 15m
  ws-guard throttle 203.0.113.9 --action ban --for 2h

Exit codes: 0 done, 1 refused, with the reason, 69 no daemon.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct ThrottleCommand {
    /// An address of the source; all of the source is throttled, for IPv6 its /64.
    /// An end point, as in `sources`, is one connection
    #[arg(value_name = "IP")]
    source: String,
    /// For how long, such as 90s, 15m, 2h; until `release` when left out
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// What it leads to; without it every connection keeps its share of pings, and the policy's
    /// action holds for the rest
    #[arg(long, value_enum, value_name = "ACTION")]
    action: Option<ThrottleAction>,
    /// Ban a trusted proxy, or a source with other connections that keep to the limit
    #[arg(long, requires = "action")]
    force: bool,
}

#[derive(Args)]
pub struct ReleaseCommand {
    /// An address of the source
    #[arg(value_name = "IP")]
    source: String,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("it has to be longer than 0".into()),
        Err(error) => Err(format!("{error}; write it as 90s, 15m or 2h")),
    }
}

impl ThrottleCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let seconds = self.duration.map(|duration| duration.as_secs_f64());
        let (source, action, force) = (self.source.clone(), self.action, self.force);
        let wanted = Throttle { source, seconds, action, force };
        let client = daemon(global).await?;
        let decision: Decision = client.send(Method::POST, "/v1/throttle", &wanted).await?;
        let end = match decision.throttled_until {
            Some(until) => format!("until {until}"),
            None => format!("until `ws-guard release {}`", self.source),
        };
        let what = if decision.banned { "banned" } else { "throttled" };
        print(&format!("{} is {what} {end}\n", decision.source))
    }
}

impl ReleaseCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let wanted = Release { source: self.source.clone() };
        let client = daemon(global).await?;
        let decision: Decision = client.send(Method::POST, "/v1/release", &wanted).await?;
        print(&format!("{} is free\n", decision.source))
    }
}
