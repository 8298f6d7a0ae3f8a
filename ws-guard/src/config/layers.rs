//! Layers of settings and their precedence.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
};

use ipnet::IpNet;
use ws_guard_server::source::Prefixes;

use super::{
    file::{self, FileLayer},
    problem::{ConfigError, Given, Place, Problem},
    run::RUN,
    server::ServerSection,
    settings::Settings,
};
use crate::domain::{
    address::{Given as Meant, exemption},
    overrides::NetworkPolicy,
    policy::{POLICY, parse_network},
    setting::{Setting, closest},
};
use crate::guard::OBJECT_VARIABLE;

/// Values of the flags on the command line, by setting.
pub type Arguments = BTreeMap<String, Vec<String>>;

/// Layers of settings, kept by the daemon to read the file again.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub arguments: Arguments,
    pub environment: BTreeMap<String, String>,
    pub file: Option<PathBuf>,
}

impl Inputs {
    /// Take the layers: flags, this process's environment, and the file.
    pub fn new(arguments: Arguments, file: Option<PathBuf>) -> Inputs {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            // A value that is not UTF-8 is refused by its setting, under its name.
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Inputs { arguments, environment: std::env::vars_os().filter_map(text).collect(), file }
    }

    /// Merge and validate. The error holds all problems, not only the first.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        let mut settings = Settings { file: self.file.clone(), ..Settings::default() };
        let mut problems = Vec::new();
        let file = self.file_layer(&mut settings, &mut problems);
        let mut cidrs = Vec::new();
        for setting in &POLICY {
            let winner = self.apply(setting, &mut settings.policy, &file, &mut problems);
            match setting.name {
                "cidr" => cidrs = winner,
                "trusted-proxy" => settings.proxies_given = !winner.is_empty(),
                _ => {}
            }
        }
        let mut allow = Vec::new();
        for setting in &RUN {
            let winner = self.apply(setting, &mut settings.run, &file, &mut problems);
            if setting.name == "allow" {
                allow = winner;
            }
        }
        if problems.is_empty() {
            check_together(&mut settings, &allow, &cidrs, &mut problems);
        }
        if problems.is_empty() { Ok(settings) } else { Err(ConfigError(problems)) }
    }

    /// Return unknown variables that begin as ours, with suggestions.
    /// `others` belong to flags that are not settings.
    pub fn unknown_variables(&self, others: &[String]) -> Vec<String> {
        unknown_variables(self.environment.keys(), others)
    }

    fn file_layer(
        &self,
        settings: &mut Settings,
        problems: &mut Vec<Problem>,
    ) -> HashMap<String, Vec<Given>> {
        let Some(path) = &self.file else { return HashMap::new() };
        let known: Vec<&str> =
            POLICY.iter().map(|s| s.name).chain(RUN.iter().map(|s| s.name)).collect();
        match file::read(path) {
            Ok(text) => {
                let FileLayer { values, problems: wrong } = file::parse(path, &text, &known);
                problems.extend(wrong);
                settings.server = ServerSection::parse(path, &text, problems);
                values.into_iter().collect()
            }
            Err(problem) => {
                problems.push(problem);
                HashMap::new()
            }
        }
    }

    /// Apply a setting from the lowest layer to the highest, and check each of them.
    /// Return the winning values.
    fn apply<T>(
        &self,
        setting: &Setting<T>,
        target: &mut T,
        file: &HashMap<String, Vec<Given>>,
        problems: &mut Vec<Problem>,
    ) -> Vec<Given> {
        let layers = [
            file.get(setting.name).cloned(),
            setting.seed.and_then(|name| self.foreign(name, setting.many)),
            self.variable(&setting.variable(), setting.many),
            self.flag(setting),
        ];
        let mut winner = Vec::new();
        for values in layers.into_iter().flatten() {
            if values.len() > 1 && !setting.many {
                let message = format!("{} takes one value: give one", setting.name);
                problems.push(Problem { place: values[1].place.clone(), message });
            }
            let texts: Vec<&str> = values.iter().map(|given| given.text.as_str()).collect();
            for (index, message) in setting.replace(target, &texts) {
                let place = values[index].place.clone();
                problems
                    .push(Problem { message: message + service_link(texts[index], &place), place });
            }
            winner = values;
        }
        winner
    }

    /// Return a variable that others define, and may leave empty to unset it.
    fn foreign(&self, name: &str, many: bool) -> Option<Vec<Given>> {
        let set = self.environment.get(name).is_some_and(|value| !value.trim().is_empty());
        set.then(|| self.variable(name, many)).flatten()
    }

    fn variable(&self, name: &str, many: bool) -> Option<Vec<Given>> {
        let value = self.environment.get(name)?;
        let place = Place::Variable(name.to_string());
        Some(texts(value, many).map(|text| Given { text, place: place.clone() }).collect())
    }

    fn flag<T>(&self, setting: &Setting<T>) -> Option<Vec<Given>> {
        let values = self.arguments.get(setting.name)?;
        let place = Place::Flag(setting.name.to_string());
        let all = values.iter().flat_map(|value| texts(value, setting.many));
        Some(all.map(|text| Given { text, place: place.clone() }).collect())
    }
}

/// Split a list at its commas, or return the text as it is.
fn texts(value: &str, many: bool) -> impl Iterator<Item = String> + '_ {
    let separator = if many { ',' } else { '\0' };
    value.split(separator).map(|text| text.trim().to_string())
}

/// Explain Kubernetes' WS_GUARD_PORT, set in pods for a service called ws-guard.
fn service_link(text: &str, place: &Place) -> &'static str {
    match place {
        Place::Variable(_) if text.starts_with("tcp://") => {
            "; Kubernetes sets this for a service called ws-guard: set enableServiceLinks: false in the pod"
        }
        _ => "",
    }
}

/// Check what depends on several values.
fn check_together(
    settings: &mut Settings,
    allow: &[Given],
    cidrs: &[Given],
    problems: &mut Vec<Problem>,
) {
    let missing = |name: &'static str, flag: &str| Problem {
        place: Place::Missing(name),
        message: format!(
            "none given: pass --{flag}, set WS_GUARD_{}, or write `{flag} = …` in the file",
            flag.to_uppercase()
        ),
    };
    let interfaces = &settings.run.interfaces;
    if interfaces.uplinks.is_empty() && interfaces.pods.is_empty() {
        problems.push(missing("interface", "interface"));
    }
    problems.extend(interfaces.contradictions().into_iter().map(|name| Problem {
        place: Place::Missing("interface"),
        message: format!("{name} is given as interface and as pod-interface: give it as one"),
    }));
    if settings.policy.ports.is_empty() {
        problems.push(missing("port", "port"));
    }
    let prefixes = Prefixes { v4: settings.policy.ipv4_prefix, v6: settings.policy.ipv6_prefix };
    for (given, network) in allow.iter().zip(&settings.run.allow) {
        match exemption(&prefixes, *network) {
            Ok(network) => settings.allow.push(network),
            Err(message) => problems.push(Problem { place: given.place.clone(), message }),
        }
    }
    check_cidrs(settings, prefixes, cidrs, problems);
}

/// Return the unknown ones of `names` that begin as ours, with suggestions.
/// `others` belong to flags that are not settings.
pub fn unknown_variables<'a>(
    names: impl Iterator<Item = &'a String>,
    others: &[String],
) -> Vec<String> {
    const ELSEWHERE: [&str; 4] =
        ["WS_GUARD_CONTROL_SOCKET", "WS_GUARD_PIN_DIR", "WS_GUARD_CONFIG", OBJECT_VARIABLE];
    let ours = POLICY.iter().map(Setting::variable).chain(RUN.iter().map(Setting::variable));
    let known: Vec<String> =
        ours.chain(ELSEWHERE.map(String::from)).chain(others.iter().cloned()).collect();
    let texts: Vec<&str> = known.iter().map(String::as_str).collect();
    let strange = names.filter(|name| name.starts_with("WS_GUARD_") && !known.contains(name));
    let hint = |name: &String| match closest(name, &texts) {
        Some(meant) => format!("{name} (did you mean {meant}?)"),
        None => name.clone(),
    };
    strange.map(hint).collect()
}

/// Check that networks with settings hold whole sources; an address is its source.
fn check_cidrs(
    settings: &mut Settings,
    prefixes: Prefixes,
    cidrs: &[Given],
    problems: &mut Vec<Problem>,
) {
    let whole = |cidr: IpNet| {
        let single = cidr.prefix_len() == cidr.max_prefix_len();
        let meant = if single { Meant::Address(cidr.addr()) } else { Meant::Network(cidr) };
        exemption(&prefixes, meant)
    };
    let mut seen = BTreeSet::new();
    for given in cidrs {
        let network = parse_network(&given.text).ok().and_then(|network| whole(network.cidr).ok());
        if let Some(cidr) = network.filter(|cidr| !seen.insert(*cidr)) {
            let message = format!("{cidr} has settings already: give them in one place");
            problems.push(Problem { place: given.place.clone(), message });
        }
    }
    for network in std::mem::take(&mut settings.policy.cidrs) {
        let cidr = network.cidr;
        match whole(cidr) {
            Ok(cidr) => settings.policy.add_cidr(NetworkPolicy { cidr, ..network }),
            Err(message) => {
                let named = |given: &&Given| {
                    parse_network(&given.text).is_ok_and(|network| network.cidr == cidr)
                };
                let place = cidrs.iter().find(named).map(|given| given.place.clone());
                let place = place.unwrap_or(Place::Missing("cidr"));
                problems.push(Problem { place, message });
            }
        }
    }
}
