//! `ws-guard route`: cluster of a user, the same as on the edge and the servers.

use std::{num::NonZeroU32, process::ExitCode};

use clap::Args;
use ws_guard_server::routing::cluster_of;

use super::output::print;

const HELP: &str = "\
Clusters have numbers from 0; a line a user. The same hash is in deploy/nginx/jump.lua, for nginx, and behind
`ws-guard serve --user-cluster 3/16`, which answers users of other clusters with 421.

Examples:
  ws-guard route u-1001                 one of 16
  ws-guard route --clusters 17 u-1001   where one more would move it
Exit codes: 0 done, 2 usage.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Route {
    /// Names of users, as the servers know them
    #[arg(value_name = "USER", required = true)]
    users: Vec<String>,
    /// Number of clusters
    #[arg(long, value_name = "N", default_value = "16")]
    clusters: NonZeroU32,
}

impl Route {
    /// Print one line per user, with the number of the cluster.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let clusters = self.users.iter().map(|user| cluster_of(user, self.clusters));
        print(&clusters.map(|cluster| format!("{cluster}\n")).collect::<String>())?;
        Ok(ExitCode::SUCCESS)
    }
}
