//! Origin of a wrong value: the command line, or a variable.

use std::ffi::OsString;

use clap::{
    Arg, Command, Error,
    error::{ContextKind, ContextValue},
};

/// Name the variables at fault in a usage error, and tell whether there are any.
/// `is_set` says whether a variable has a value.
pub fn named(
    mut error: Error,
    command: &Command,
    arguments: &[OsString],
    is_set: impl Fn(&Arg) -> bool,
) -> (Error, bool) {
    let variable = |text: &str| {
        let flag = text.split([' ', '=']).next()?;
        let long = flag.strip_prefix("--")?;
        if was_given(flag, arguments) {
            return None;
        }
        let arg = find(command, long).filter(|arg| is_set(arg))?;
        Some(arg.get_env()?.to_string_lossy().into_owned())
    };
    let mut blamed = Vec::new();
    for (kind, value) in error.context() {
        if !matches!(kind, ContextKind::InvalidArg | ContextKind::PriorArg) {
            continue;
        }
        match value {
            ContextValue::String(text) => {
                blamed.extend(variable(text).map(|name| (kind, ContextValue::String(name))));
            }
            ContextValue::Strings(texts) => {
                let names: Vec<_> = texts.iter().map(|text| variable(text)).collect();
                if names.iter().any(Option::is_some) {
                    let named = names.into_iter().zip(texts);
                    let named = named.map(|(name, text)| name.unwrap_or_else(|| text.clone()));
                    blamed.push((kind, ContextValue::Strings(named.collect())));
                }
            }
            _ => {}
        }
    }
    let any = !blamed.is_empty();
    for (kind, value) in blamed {
        error.insert(kind, value);
    }
    (error, any)
}

fn was_given(flag: &str, arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        argument.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// Find the flag with this name and a variable, in any subcommand.
/// A name has the same variable everywhere. Flags of `run` without one are not checked here.
fn find<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    let own =
        command.get_arguments().find(|arg| arg.get_long() == Some(long) && arg.get_env().is_some());
    own.or_else(|| command.get_subcommands().find_map(|command| find(command, long)))
}

/// Return the variables of a command's flags.
pub fn variables(command: &Command) -> Vec<String> {
    let variables = command.get_arguments().filter_map(Arg::get_env);
    variables.map(|name| name.to_string_lossy().into_owned()).collect()
}
