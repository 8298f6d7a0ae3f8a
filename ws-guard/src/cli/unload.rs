//! `ws-guard unload`.

use clap::Args;

use super::{
    Global,
    output::{plural, print},
};
use crate::{
    api::client::{Client, ClientError},
    guard::{self, GuardError},
};

/// Remove programs, maps and pins of --pin-dir. Counters, throttlings and the allowlist go with
/// them. The daemon has to be stopped first, whatever its control socket is.
#[derive(Args)]
pub struct Unload {
    /// Succeed also where nothing is loaded
    #[arg(long)]
    if_loaded: bool,
    /// Unload under a daemon that runs: it stays, guards nothing, and says so
    #[arg(long)]
    force: bool,
}

impl Unload {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        if !self.force {
            refuse_with_daemon(global).await?;
        }
        let unload = if self.force { guard::unload } else { guard::unload_unused };
        let removed = match unload(&global.pin_dir) {
            Err(GuardError::NotLoaded(_)) if self.if_loaded => Vec::new(),
            unloaded => unloaded?,
        };
        let mut text: String = removed.iter().map(|name| format!("removed {name}\n")).collect();
        text += &plural(removed.len(), "object removed\n", "objects removed\n");
        print(&text)
    }
}

/// Refuse while a daemon runs: its descriptors would keep the programs attached.
async fn refuse_with_daemon(global: &Global) -> anyhow::Result<()> {
    match Client::new(&global.control_socket).info().await {
        Ok(info) if info.pin_dir == global.pin_dir => anyhow::bail!(
            "the daemon with pid {} is using {}: stop it first, with `kill {}` or `systemctl stop ws-guard`, or unload nevertheless with --force",
            info.pid,
            info.pin_dir.display(),
            info.pid
        ),
        // Whether another daemon guards these pins is decided by its lock on them.
        Ok(_) | Err(ClientError::Unreachable(_) | ClientError::Forbidden(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
