//! `ws-guard manual`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, CommandFactory};

use super::{Cli, output::print};

const HELP: &str = "\
Example:
  ws-guard manual /usr/share/man/man1     ws-guard.1, ws-guard-run.1 and the others";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Manual {
    /// Existing folder for them
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Manual {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let commands = Cli::command().disable_help_subcommand(true);
        clap_mangen::generate_to(commands, &self.folder)
            .with_context(|| format!("writing manual pages into {}", self.folder.display()))?;
        print(&format!("manual pages written into {}\n", self.folder.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
