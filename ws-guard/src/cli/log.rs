//! `ws-guard log`: filter of the daemon's log.

use clap::Args;
use hyper::Method;

use super::{Global, backend::daemon, output::print};
use crate::api::message::LogLevel;

const HELP: &str = "\
Examples:
  ws-guard log
  ws-guard log debug
  ws-guard log info,ws_guard::daemon=debug

Exit codes: 0 done, 1 refused, with the reason, 69 no daemon.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct LogCommand {
    /// error, warn, info, debug or trace, or a filter as RUST_LOG has it; holds until the daemon ends
    #[arg(value_name = "LEVEL")]
    level: Option<String>,
}

impl LogCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let client = daemon(global).await?;
        let now: LogLevel = match &self.level {
            None => client.get("/v1/log").await?,
            Some(level) => {
                client.send(Method::PUT, "/v1/log", &LogLevel { level: level.clone() }).await?
            }
        };
        print(&format!("{}\n", now.level))
    }
}
