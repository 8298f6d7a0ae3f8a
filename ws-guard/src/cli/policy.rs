//! `ws-guard policy get` and `ws-guard policy set`.

use clap::{Subcommand, error::ErrorKind};
use hyper::Method;
use serde_json::{Map, Value};

use super::{
    Global,
    backend::{Backend, daemon},
    output::{Column, Format, Listing, Table, plural, print, show},
    settings::PolicyFlags,
};
use crate::{
    config::{ConfigError, Place, Problem},
    domain::{
        policy::{POLICY, PolicySettings},
        setting::Setting,
    },
};

const SET_HELP: &str = "\
Changes apply to the next packet, all of them or none, and last until the daemon restarts, until
SIGHUP, or until the configuration file changes the same setting. Give --port all the ports to
protect.

Example:
  ws-guard policy set --max-ping-rate 60 --action drop";

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Show the policy in force
    Get(Listing),
    /// Change the policy in force
    #[command(after_help = SET_HELP)]
    Set {
        #[command(flatten)]
        flags: PolicyFlags,
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
}

impl PolicyCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        match self {
            PolicyCommand::Get(listing) => {
                let read = async || Backend::connect(global).await?.policy().await;
                show(listing, read, |policy, _| table(policy).render(false)).await
            }
            PolicyCommand::Set { flags, output } => set(flags, *output, global).await,
        }
    }
}

async fn set(flags: &PolicyFlags, output: Format, global: &Global) -> anyhow::Result<()> {
    let fields = fields(flags)?;
    if fields.is_empty() {
        let what = "nothing to set: name a setting, see `ws-guard policy set --help`";
        return Err(
            clap::Error::raw(ErrorKind::MissingRequiredArgument, format!("{what}\n")).into()
        );
    }
    let client = daemon(global).await?;
    let policy: PolicySettings = client.send(Method::PATCH, "/v1/policy", &fields).await?;
    print(&match output {
        Format::Json => serde_json::to_string_pretty(&policy)? + "\n",
        _ => table(&policy).render(false),
    })
}

/// The request, checked here as well, so that errors name the flags.
fn fields(flags: &PolicyFlags) -> Result<Map<String, Value>, ConfigError> {
    let mut trial = PolicySettings::default();
    let mut problems = Vec::new();
    let mut fields = Map::new();
    for setting in &POLICY {
        let Some(values) = flags.0.get(setting.name) else { continue };
        let texts: Vec<&str> = values
            .iter()
            .flat_map(|value| value.split(if setting.many { ',' } else { '\0' }))
            .collect();
        let place = || Place::Flag(setting.name.to_string());
        let wrong = setting.replace(&mut trial, &texts).into_iter();
        problems.extend(wrong.map(|(_, message)| Problem { place: place(), message }));
        let value = if setting.many { Value::from(texts) } else { Value::from(texts.concat()) };
        fields.insert(setting.json_name(), value);
    }
    if problems.is_empty() { Ok(fields) } else { Err(ConfigError(problems)) }
}

fn table(policy: &PolicySettings) -> Table {
    let row = |setting: &Setting<PolicySettings>| {
        vec![setting.name.to_string(), (setting.get)(policy).join(",")]
    };
    Table {
        columns: vec![Column::text("SETTING"), Column::text("VALUE")],
        rows: POLICY.iter().map(row).collect(),
        count: plural(POLICY.len(), "setting", "settings"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(given: &[(&str, &str)]) -> PolicyFlags {
        let value = |(name, value): &(&str, &str)| (name.to_string(), vec![value.to_string()]);
        PolicyFlags(given.iter().map(value).collect())
    }

    #[test]
    fn flags_become_fields() {
        let fields = fields(&flags(&[("port", "80,443"), ("max-ping-rate", "5")])).unwrap();
        assert_eq!(
            Value::from(fields),
            serde_json::json!({"ports": ["80", "443"], "max_ping_rate": "5"})
        );
    }

    #[test]
    fn all_wrong_flags_are_named() {
        let error = fields(&flags(&[("port", "0"), ("action", "stop")])).unwrap_err();
        assert_eq!(error.lines().len(), 2);
        assert!(error.to_string().contains("--port"), "{error}");
    }
}
