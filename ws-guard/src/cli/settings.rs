//! Flags generated from the tables of settings, for equal names in help, file, API.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::{
    config::{Arguments, RUN, RunSettings},
    domain::{
        policy::{POLICY, PolicySettings},
        setting::Setting,
    },
};

/// Flags of `run`.
#[derive(Clone, Debug, Default)]
pub struct RunFlags(pub Arguments);

/// Flags of `policy set`.
#[derive(Clone, Debug, Default)]
pub struct PolicyFlags(pub Arguments);

/// Create a flag. Its text is checked together with environment and file, not here.
fn flag<T>(setting: &'static Setting<T>) -> Arg {
    let arg = Arg::new(setting.name).long(setting.name).help(setting.help);
    if setting.value.is_empty() {
        return arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false");
    }
    let action = if setting.many { ArgAction::Append } else { ArgAction::Set };
    arg.value_name(setting.value).action(action).allow_hyphen_values(true)
}

/// Create a flag of `run`; its help also names its default and its variables.
fn run_flag<T>(setting: &'static Setting<T>, defaults: &T) -> Arg {
    let mut help = setting.help.to_string();
    if setting.many {
        help.push_str("; several with commas, or by giving it again");
    }
    let default = (setting.get)(defaults).join(",");
    if !default.is_empty() {
        help.push_str(&format!(" [default: {default}]"));
    }
    help.push_str(&format!(" [env: {}", setting.variable()));
    help.push_str(&setting.seed.map_or(String::from("]"), |seed| format!(", {seed}]")));
    flag(setting).help(help)
}

fn given<T>(matches: &ArgMatches, settings: &[Setting<T>], arguments: &mut Arguments) {
    for setting in settings {
        // Settings unknown to clap belong to other commands.
        if let Ok(Some(values)) = matches.try_get_many::<String>(setting.name) {
            arguments.insert(setting.name.to_string(), values.cloned().collect());
        }
    }
}

impl FromArgMatches for RunFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<RunFlags, Error> {
        let mut flags = RunFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        given(matches, &RUN, &mut self.0);
        given(matches, &POLICY, &mut self.0);
        Ok(())
    }
}

impl Args for RunFlags {
    fn augment_args(command: Command) -> Command {
        let (run, policy) = (RunSettings::default(), PolicySettings::default());
        // Flags that are always given come first.
        let (first, rest) = RUN.split_at(2);
        let command = command.args(first.iter().map(|setting| run_flag(setting, &run)));
        let command = command.args(POLICY.iter().map(|setting| run_flag(setting, &policy)));
        command.args(rest.iter().map(|setting| run_flag(setting, &run)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        RunFlags::augment_args(command)
    }
}

impl FromArgMatches for PolicyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<PolicyFlags, Error> {
        let mut flags = PolicyFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        given(matches, &POLICY, &mut self.0);
        Ok(())
    }
}

impl Args for PolicyFlags {
    fn augment_args(command: Command) -> Command {
        command.args(POLICY.iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        PolicyFlags::augment_args(command)
    }
}
