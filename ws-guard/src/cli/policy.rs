//! `ws-guard policy get`, `policy set` and `policy unset`.

use clap::{Subcommand, error::ErrorKind};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::{
    Global,
    backend::{Backend, daemon},
    output::{Column, Format, Listing, Table, plural, print, show},
    settings::PolicyFlags,
};
use crate::{
    config::{ConfigError, Place, Problem},
    domain::{
        overrides::Overrides,
        policy::{POLICY, PolicySettings},
        setting::Setting,
    },
};

const SET_HELP: &str = "\
Changes apply to the next packet, all of them or none, and last until the daemon restarts, until
SIGHUP, or until the configuration file changes the same setting. Give --port all the ports to
protect, each with its own settings, if any.

With --cidr or --for-port the other settings apply to the networks, or to the port, only.
A network's outlive the daemon, and a reboot, until `policy unset`.

Examples:
  ws-guard policy set --max-ping-rate 60 --action drop
  ws-guard policy set --cidr 10.0.0.0/8 --max-ping-rate 100
  ws-guard policy set --for-port 8443 --action observe";

const UNSET_HELP: &str = "\
The settings of all others then apply to it, or the configuration's for it, if there are any.

Example:
  ws-guard policy unset --cidr 10.0.0.0/8";

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Show the policy in force
    Get(Listing),
    /// Change the policy in force
    #[command(after_help = SET_HELP)]
    Set {
        #[command(flatten)]
        flags: PolicyFlags,
        /// Protected port that the other settings are for, and no other port
        #[arg(long, value_name = "PORT", conflicts_with_all = ["cidr", "port"], value_parser = clap::value_parser!(u16).range(1..))]
        for_port: Option<u16>,
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
    /// Remove a network's or a port's own settings
    #[command(after_help = UNSET_HELP)]
    Unset {
        /// Network whose settings were set with `policy set --cidr`
        #[arg(long, value_name = "NETWORK", required_unless_present = "for_port")]
        cidr: Option<String>,
        /// Port whose own settings to remove; it stays protected
        #[arg(long, value_name = "PORT", conflicts_with = "cidr")]
        for_port: Option<u16>,
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
            PolicyCommand::Set { flags, for_port, output } => {
                set(flags, *for_port, *output, global).await
            }
            PolicyCommand::Unset { cidr, for_port, output } => {
                let changes = match (cidr, for_port) {
                    (Some(cidr), _) => vec![("/v1/policy/cidr", json!({ "cidr": cidr }))],
                    (None, port) => vec![("/v1/policy/port", json!({ "port": port }))],
                };
                change(Method::DELETE, &changes, *output, global).await
            }
        }
    }
}

async fn set(
    flags: &PolicyFlags,
    for_port: Option<u16>,
    output: Format,
    global: &Global,
) -> anyhow::Result<()> {
    let mut settings = flags.clone();
    let networks = settings.0.remove("cidr").unwrap_or_default();
    if settings.0.is_empty() {
        let what = "nothing to set: name a setting, see `ws-guard policy set --help`";
        return Err(
            clap::Error::raw(ErrorKind::MissingRequiredArgument, format!("{what}\n")).into()
        );
    }
    if let Some(port) = for_port {
        let mut fields = own_fields(&settings, false)?;
        fields.insert("port".into(), port.into());
        return change(Method::PATCH, &[("/v1/policy/port", fields.into())], output, global).await;
    }
    if networks.is_empty() {
        let fields = fields(&settings)?;
        return change(Method::PATCH, &[("/v1/policy", fields.into())], output, global).await;
    }
    let fields = own_fields(&settings, true)?;
    let with = |network: &str| {
        let mut fields = fields.clone();
        fields.insert("cidr".into(), network.trim().into());
        ("/v1/policy/cidr", Value::from(fields))
    };
    let changes: Vec<_> = networks.iter().flat_map(|list| list.split(',')).map(with).collect();
    change(Method::PATCH, &changes, output, global).await
}

/// Send changes one after the other, and show the last result.
async fn change(
    method: Method,
    changes: &[(&str, Value)],
    output: Format,
    global: &Global,
) -> anyhow::Result<()> {
    let client = daemon(global).await?;
    let mut policy = PolicySettings::default();
    for (path, body) in changes {
        policy = client.send(method.clone(), path, body).await?;
    }
    print(&match output {
        Format::Json => serde_json::to_string_pretty(&policy)? + "\n",
        _ => table(&policy).render(false),
    })
}

/// Parse a network's or port's settings, checked here: errors name the flags.
fn own_fields(flags: &PolicyFlags, network: bool) -> Result<Map<String, Value>, ConfigError> {
    let mut own = Overrides::default();
    let mut problems = Vec::new();
    let mut fields = Map::new();
    for (name, values) in &flags.0 {
        let text = values.last().map_or("", String::as_str);
        if let Err(message) = own.set(name, text, network) {
            problems.push(Problem { place: Place::Flag(name.clone()), message });
        }
        fields.insert(name.replace('-', "_"), text.into());
    }
    if problems.is_empty() { Ok(fields) } else { Err(ConfigError(problems)) }
}

/// Parse the request, checked here as well, so that errors name the flags.
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
    fn a_networks_flags_are_those_it_may_have() {
        let good = own_fields(&flags(&[("max-ping-rate", "100")]), true).unwrap();
        assert_eq!(Value::from(good), json!({"max_ping_rate": "100"}));
        let bad = own_fields(&flags(&[("ipv4-prefix", "24"), ("window-seconds", "0")]), true);
        assert_eq!(bad.unwrap_err().lines().len(), 2);
    }

    #[test]
    fn all_wrong_flags_are_named() {
        let error = fields(&flags(&[("port", "0"), ("action", "stop")])).unwrap_err();
        assert_eq!(error.lines().len(), 2);
        assert!(error.to_string().contains("--port"), "{error}");
    }
}
