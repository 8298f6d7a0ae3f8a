//! Tests of precedence, messages, and several problems at once.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use proptest::prelude::*;
use ws_guard_server::watch::Watch;

use super::{Inputs, LogFormat};
use crate::{
    domain::{
        overrides::{NetworkPolicy, PortPolicy},
        policy::{Action, OnFullFlows, OnFullSources},
    },
    guard::AttachMode,
};

fn map<V>(pairs: &[(&str, V)]) -> BTreeMap<String, V>
where
    V: Clone,
{
    pairs.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}

/// Return inputs with an interface and a port, and a file if there is text for one.
fn inputs(
    dir: &Path,
    flags: &[(&str, &str)],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Inputs {
    let mut arguments = map(&[("interface", vec!["eth0".into()]), ("port", vec!["80".into()])]);
    arguments.extend(flags.iter().map(|(n, v)| (n.to_string(), vec![v.to_string()])));
    let path = dir.join("guard.toml");
    let file = file.map(|text| {
        fs::write(&path, text).unwrap();
        path
    });
    let environment = variables.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Inputs { arguments, environment, file }
}

#[test]
fn defaults_are_those_of_the_design() {
    let dir = tempfile::tempdir().unwrap();
    let settings = inputs(dir.path(), &[], &[], None).load().unwrap();
    let policy = &settings.policy;
    assert_eq!((policy.max_ping_rate, policy.window_seconds), (30, 10));
    assert_eq!((policy.action, policy.connection_share), (Action::Defuse, 5));
    assert_eq!((policy.ipv4_prefix, policy.ipv6_prefix), (32, 64));
    assert_eq!(policy.on_full_flows, OnFullFlows::Open);
    assert_eq!(policy.on_full_sources, OnFullSources::Coarser);
    assert_eq!(policy.trusted_proxies.texts(), ["private"]);
    assert_eq!(policy.client_from.texts(), ["forwarded", "x-forwarded-for"]);
    assert_eq!((settings.run.max_flows, settings.run.max_sources), (32_768, 32_768));
    assert_eq!(settings.run.attach, AttachMode::Auto);
    assert_eq!((settings.run.metrics_listen, settings.run.log_format), (None, LogFormat::Text));
}

#[test]
fn each_layer_wins_over_the_ones_below() {
    let dir = tempfile::tempdir().unwrap();
    let rate = |flags: &[_], variables: &[_], file| {
        inputs(dir.path(), flags, variables, file).load().unwrap().policy.max_ping_rate
    };
    let file = Some("max-ping-rate = 31");
    let seed = ("MAX_PING_RATE", "32");
    let own = ("WS_GUARD_MAX_PING_RATE", "33");
    assert_eq!(rate(&[], &[], file), 31);
    assert_eq!(rate(&[], &[seed], file), 32);
    assert_eq!(rate(&[], &[("MAX_PING_RATE", "")], file), 31);
    assert_eq!(rate(&[], &[seed, own], file), 33);
    assert_eq!(rate(&[("max-ping-rate", "34")], &[seed, own], file), 34);
}

#[test]
fn lists_take_commas_and_replace_those_below() {
    let dir = tempfile::tempdir().unwrap();
    let file = "interface = [\"a\", \"b\"]\nport = [1, 2]\nallow = [\"10.0.0.0/8\", \"fd77::1\"]";
    let settings = inputs(dir.path(), &[("port", "443, 80,443")], &[], Some(file)).load().unwrap();
    assert_eq!(settings.policy.ports, [80, 443]);
    let uplinks: Vec<String> =
        settings.run.interfaces.uplinks.iter().map(ToString::to_string).collect();
    assert_eq!(uplinks, ["eth0"]);
    let allow: Vec<String> = settings.allow.iter().map(ToString::to_string).collect();
    assert_eq!(allow, ["10.0.0.0/8", "fd77::/64"]);
}

#[test]
fn at_least_sixty_four_ports() {
    let dir = tempfile::tempdir().unwrap();
    let ports: Vec<String> = (1000..1100).map(|port: u16| port.to_string()).collect();
    let settings = inputs(dir.path(), &[("port", &ports.join(","))], &[], None).load().unwrap();
    assert_eq!(settings.policy.ports.len(), 100);
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = "max-flows = 3\nwindow-secs = 5\n\nallow = [\"10.0.0.0/8\", \"nonsense\"]\n";
    let error = inputs(
        dir.path(),
        &[("port", "80,0"), ("action", "defuze"), ("metrics-listen", "9464")],
        &[("MAX_PING_RATE", "-1"), ("WS_GUARD_IPV6_PREFIX", "129")],
        Some(file),
    )
    .load()
    .unwrap_err();
    let text = error.to_string().replace(dir.path().to_str().unwrap(), "");
    for line in [
        "/guard.toml:2: window-secs: unknown key: did you mean window-seconds?",
        "/guard.toml:1: max-flows: \"3\" is out of range: give a whole number from 16 to 4194304",
        "/guard.toml:4: allow: \"nonsense\" is neither",
        "--port: \"0\" is out of range",
        "--action: \"defuze\" is unknown: give one of observe, defuse, drop, ban; did you mean defuse?",
        "--metrics-listen: \"9464\" is not an address and port",
        "MAX_PING_RATE: \"-1\" is not a whole number",
        "WS_GUARD_IPV6_PREFIX: \"129\" is out of range: give a whole number from 1 to 128",
    ] {
        assert!(text.contains(line), "{line}\nis missing in\n{text}");
    }
    assert!(text.starts_with("the configuration has 8 errors"), "{text}");
}

#[test]
fn interface_and_port_have_no_default() {
    let text = Inputs::default().load().unwrap_err().to_string();
    assert!(text.contains("interface: none given: pass --interface"), "{text}");
    assert!(text.contains("port: none given: pass --port, set WS_GUARD_PORT"), "{text}");
}

#[test]
fn an_exemption_narrower_than_a_source_names_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let error = inputs(dir.path(), &[], &[("WS_GUARD_ALLOW", "fd77::1/128")], None).load();
    let text = error.unwrap_err().to_string();
    assert!(text.contains("WS_GUARD_ALLOW: fd77::1/128 is narrower than a source"), "{text}");
}

#[test]
fn ports_and_networks_have_settings_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = "\
max-ping-rate = 60

[[cidr]]
cidr = [\"10.0.0.0/8\", \"fd77::1\"]
max-ping-rate = 100

[[cidr]]
cidr = \"192.0.2.0/24\"
action = \"drop\"
";
    let flags = [("port", "80,8443 max-ping-rate=5 action=drop")];
    let policy = inputs(dir.path(), &flags, &[], Some(file)).load().unwrap().policy;
    assert_eq!(policy.ports, [80, 8443]);
    let texts: Vec<String> = policy.port_policies.iter().map(PortPolicy::text).collect();
    assert_eq!(texts, ["8443 action=drop max-ping-rate=5"]);
    let texts: Vec<String> = policy.cidrs.iter().map(NetworkPolicy::text).collect();
    assert_eq!(
        texts,
        ["10.0.0.0/8 max-ping-rate=100", "192.0.2.0/24 action=drop", "fd77::/64 max-ping-rate=100"]
    );
}

#[test]
fn settings_of_their_own_are_checked_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = "[[cidr]]\ncidr = \"10.0.0.0/8\"\nmax-ping-rate = 0\n\n[[cidr]]\ncidr = \"fd77::/96\"\naction = \"drop\"\n";
    let text = |file: &str| {
        let error = inputs(dir.path(), &[], &[], Some(file)).load().unwrap_err().to_string();
        error.replace(dir.path().to_str().unwrap(), "")
    };
    let found = text(file);
    assert!(found.contains("/guard.toml:3: cidr: max-ping-rate: \"0\" is out of range"), "{found}");
    let found = text(&file.replace("= 0", "= 1"));
    assert!(found.contains("/guard.toml:6: cidr: fd77::/96 is narrower than a source"), "{found}");
    // The same network, written differently.
    let found = text(&file.replace("= 0", "= 1").replace("fd77::/96", "::ffff:10.0.0.0/104"));
    assert!(found.contains("/guard.toml:6: cidr: 10.0.0.0/8 has settings already"), "{found}");
}

/// Refuse files that cannot be reread at once: a pipe, a device, a folder.
#[test]
fn only_regular_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, link) = (dir.path().join("pipe"), dir.path().join("link"));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let load = |path: &Path| {
        let arguments = map(&[("interface", vec!["eth0".into()]), ("port", vec!["80".into()])]);
        let inputs = Inputs { arguments, file: Some(path.into()), ..Inputs::default() };
        inputs.load().map_err(|error| error.to_string())
    };
    for path in [&*pipe, Path::new("/dev/null"), Path::new("/dev/stdin"), dir.path()] {
        let error = load(path).unwrap_err();
        let said = error.contains("a regular file is required");
        assert!(said && error.contains(path.to_str().unwrap()), "{error}");
    }
    fs::write(dir.path().join("file"), "action = \"drop\"").unwrap();
    std::os::unix::fs::symlink("file", &link).unwrap();
    assert_eq!(load(&link).unwrap().policy.action, Action::Drop);
}

#[test]
fn kubernetes_service_links_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let variables = [("WS_GUARD_PORT", "tcp://10.0.0.1:80")];
    let text = inputs(dir.path(), &[], &variables, None).load().unwrap_err().to_string();
    assert!(text.contains("enableServiceLinks: false"), "{text}");
}

#[test]
fn strange_variables_are_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = inputs(dir.path(), &[], &[("WS_GUARD_PORTS", "1"), ("OTHER", "x")], None);
    assert_eq!(inputs.unknown_variables(&[]), ["WS_GUARD_PORTS (did you mean WS_GUARD_PORT?)"]);
}

#[test]
fn what_waits_for_a_restart_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let old = inputs(dir.path(), &[], &[], None).load().unwrap();
    let changed = [("max-flows", "64"), ("allow", "10.0.0.0/8"), ("attach", "tcx")];
    let new = inputs(dir.path(), &changed, &[], None).load().unwrap();
    assert_eq!(old.run.restart_needed(&new.run), ["attach", "max-flows"]);
}

/// Check whether the watch notices `change` within two seconds.
async fn notices(watch: &mut Watch, change: impl FnOnce()) -> bool {
    change();
    tokio::time::timeout(Duration::from_secs(2), watch.changed()).await.is_ok()
}

#[tokio::test]
async fn a_watch_sees_every_way_a_file_can_change() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // As the kubelet lays out a ConfigMap: file → ..data/file, ..data → one directory per version.
    for (version, text) in [("..v1", "port = 1"), ("..v2", "port = 2")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("guard.toml"), text).unwrap();
    }
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, at(to)).unwrap();
    link("..v1", "..data");
    link("..data/guard.toml", "guard.toml");
    let mut watch = Watch::new(at("guard.toml"));
    assert!(!notices(&mut watch, || {}).await, "nothing changed");
    let swap = || {
        link("..v2", "..tmp");
        fs::rename(at("..tmp"), at("..data")).unwrap();
    };
    assert!(notices(&mut watch, swap).await, "symlink swap");
    let replace = || {
        fs::write(at("new"), "port = 3").unwrap();
        fs::rename(at("new"), at("guard.toml")).unwrap();
    };
    assert!(notices(&mut watch, replace).await, "rename over it");
    assert!(notices(&mut watch, || fs::remove_file(at("guard.toml")).unwrap()).await, "deleted");
    assert!(notices(&mut watch, || fs::write(at("guard.toml"), "").unwrap()).await, "came back");
    assert!(notices(&mut watch, || fs::write(at("guard.toml"), "x").unwrap()).await, "in place");
}

proptest! {
    #[test]
    fn any_values_are_taken_or_refused(
        rate in ".{0,12}", port in "[0-9,]{0,12}", allow in "[0-9a-f:./]{0,20}", text in ".{0,80}",
    ) {
        let dir = tempfile::tempdir().unwrap();
        let flags = [("max-ping-rate", rate.as_str()), ("port", &port), ("allow", &allow)];
        if let Err(error) = inputs(dir.path(), &flags, &[], Some(&text)).load() {
            prop_assert!(error.0.iter().all(|problem| !problem.message.is_empty()));
        }
    }
}
