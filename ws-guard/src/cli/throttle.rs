//! `ws-guard throttle` and `ws-guard release`.

use std::time::Duration;

use clap::Args;
use hyper::Method;

use super::{Global, backend::daemon, output::print};
use crate::control::{Decision, Release, Throttle};

#[derive(Args)]
pub struct ThrottleCommand {
    /// An address of the source; all of the source is throttled, for IPv6 its /64
    #[arg(value_name = "IP")]
    source: String,
    /// For how long, such as 90s, 15m, 2h; until `release` when left out
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
}

#[derive(Args)]
pub struct ReleaseCommand {
    /// An address of the source
    #[arg(value_name = "IP")]
    source: String,
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("it has to be longer than nothing".into()),
        Err(error) => Err(format!("{error}; write it as 90s, 15m or 2h")),
    }
}

impl ThrottleCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let seconds = self.duration.map(|duration| duration.as_secs_f64());
        let wanted = Throttle { source: self.source.clone(), seconds };
        let client = daemon(global).await?;
        let decision: Decision = client.send(Method::POST, "/v1/throttle", &wanted).await?;
        let end = match decision.throttled_until {
            Some(until) => format!("until {until}"),
            None => format!("until `ws-guard release {}`", self.source),
        };
        print(&format!("{} is throttled {end}\n", decision.source))
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
