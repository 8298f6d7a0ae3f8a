//! `ws-guard doctor`: what this machine can do, what is missing, and the remedy.

mod ethtool;
mod guarded;
mod interface;
mod kernel;
mod proxies;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{
    Global,
    output::{Column, Format, Table, plural, print},
};

const HELP: &str = "\
Changes nothing. Exits 0 when nothing failed, warnings or not, and 1 when something did.

Examples:
  ws-guard doctor
  ws-guard doctor --interface eth0 -o json";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Doctor {
    /// Interface to look at; those that are guarded when left out
    #[arg(long, value_name = "IF", value_delimiter = ',')]
    interface: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Result of one check.
#[derive(Clone, Debug, Serialize)]
struct Check {
    check: String,
    verdict: Verdict,
    /// Observation.
    finding: String,
    /// Null if the check passes.
    remedy: Option<String>,
}

impl Check {
    fn ok(check: impl Into<String>, finding: impl Into<String>) -> Check {
        Check { check: check.into(), verdict: Verdict::Ok, finding: finding.into(), remedy: None }
    }

    fn warn(
        check: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check { verdict: Verdict::Warn, remedy: Some(remedy.into()), ..Check::ok(check, finding) }
    }

    fn fail(
        check: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check { verdict: Verdict::Fail, ..Check::warn(check, finding, remedy) }
    }
}

impl Doctor {
    pub async fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        let mut checks = kernel::checks(&global.pin_dir);
        let guarded = guarded::look(global).await;
        let mut interfaces = self.interface.clone();
        if interfaces.is_empty() {
            interfaces.extend(guarded.attachments.iter().map(|a| a.name.clone()));
        }
        for name in &interfaces {
            checks.extend(interface::checks(name, &guarded.attachments));
        }
        checks.extend(guarded.checks);
        print(&match self.output {
            Format::Json => serde_json::to_string_pretty(&checks)? + "\n",
            _ => table(&checks).render(true),
        })?;
        let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn table(checks: &[Check]) -> Table {
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let word = |verdict| match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    let row = |check: &Check| {
        let remedy = check.remedy.as_ref().map_or(String::new(), |r| format!(" → {r}"));
        vec![word(check.verdict).into(), check.check.clone(), format!("{}{remedy}", check.finding)]
    };
    Table {
        columns: vec![
            Column::text("VERDICT"),
            Column::text("CHECK"),
            Column::text("FINDING → REMEDY"),
        ],
        rows: checks.iter().map(row).collect(),
        count: format!(
            "{}, {} failed, {}",
            plural(checks.len(), "check", "checks"),
            count(Verdict::Fail),
            plural(count(Verdict::Warn), "warning", "warnings")
        ),
    }
}
