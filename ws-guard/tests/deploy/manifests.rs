//! Rendered manifests against Kubernetes' schemas, and their demands on a node.
use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ws_guard::config::Inputs;
use ws_guard_server::Config;
use ws_guard_testkit::tools;

use crate::files::{self, find, objects, rendered};

/// Versions of the schemas they have to pass, up to the newest.
pub const VERSIONS: [&str; 11] =
    ["1.27", "1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];
/// Folders that are meant to be applied.
const FOLDERS: [&str; 5] =
    ["base", "overlays/observe-only", "overlays/enforce", "overlays/companion", "unload"];

/// Run `kubernetes-validate --strict` on a text.
pub fn validate(text: &str, version: &str) -> Result<String> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    fs::write(file.path(), text)?;
    let mut command = Command::new(tools::python());
    command.args(["-m", "kubernetes_validate", "--strict", "-k", version]).arg(file.path());
    files::run(command)
}

#[test]
fn they_pass_a_strict_schema() -> Result<()> {
    let texts = FOLDERS.map(rendered).into_iter().collect::<Result<Vec<_>>>()?;
    let text = texts.join("\n---\n");
    VERSIONS.iter().try_for_each(|version| validate(&text, version).map(drop))
}

#[test]
fn the_schema_is_strict() -> Result<()> {
    let text = rendered("base")?;
    let typo = text.replacen("readOnlyRootFilesystem", "readOnlyRootFileSystem", 1);
    ensure!(typo != text, "there is no readOnlyRootFilesystem");
    ensure!(validate(&typo, VERSIONS[10]).is_err(), "a field that does not exist passes");
    Ok(())
}

/// Return all containers of a workload, init containers included.
fn containers(workload: &Value) -> Vec<&Value> {
    let spec = &workload["spec"]["template"]["spec"];
    let of = |field: &str| spec[field].as_array().into_iter().flatten().collect::<Vec<_>>();
    [of("initContainers"), of("containers")].concat()
}

/// Return the capabilities that a container is given, after all were dropped.
fn capabilities(container: &Value) -> Vec<&str> {
    let added = container["securityContext"]["capabilities"]["add"].as_array();
    added.into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn no_container_has_more_than_it_needs() -> Result<()> {
    let (base, unload) = (objects("overlays/companion")?, objects("unload")?);
    let guard = find(&base, "DaemonSet", "ws-guard")?;
    let server = find(&base, "Deployment", "ws-guard-server")?;
    let removal = find(&unload, "DaemonSet", "ws-guard")?;
    for workload in [guard, server, removal] {
        let spec = &workload["spec"]["template"]["spec"];
        ensure!(spec["automountServiceAccountToken"] == false, "{spec}");
        ensure!(spec["enableServiceLinks"] == false, "{spec}");
        ensure!(spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "{spec}");
        for container in containers(workload) {
            let security = &container["securityContext"];
            ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "{container}");
            ensure!(security["readOnlyRootFilesystem"] == true, "{container}");
            ensure!(security["allowPrivilegeEscalation"] == false, "{container}");
            ensure!(security["privileged"].is_null(), "{container}");
            ensure!(container["resources"]["limits"]["memory"].is_string(), "{container}");
        }
    }
    let of = |workload| containers(workload).into_iter().map(capabilities).collect::<Vec<_>>();
    assert_eq!(of(guard), [vec!["CHOWN"], vec!["BPF", "NET_ADMIN", "PERFMON"]]);
    assert_eq!(of(server), [Vec::<&str>::new()]);
    assert_eq!(of(removal), [vec!["BPF", "NET_ADMIN"], vec![]]);
    let server = &server["spec"]["template"]["spec"];
    ensure!(server["hostNetwork"].is_null(), "{server}");
    let volumes = server["volumes"].as_array().into_iter().flatten();
    let hosts = volumes.filter(|volume| volume["emptyDir"].is_null()).count();
    ensure!(hosts == 0, "the server has volumes of the node: {server}");
    Ok(())
}

/// The removal works even if the base was deleted first, and its namespace with it.
#[test]
fn each_folder_brings_its_namespace_along() -> Result<()> {
    for folder in FOLDERS {
        let objects = objects(folder)?;
        find(&objects, "Namespace", "ws-guard")?;
        let elsewhere = objects.iter().filter(|object| {
            object["kind"] != "Namespace" && object["metadata"]["namespace"] != "ws-guard"
        });
        ensure!(elsewhere.count() == 0, "{folder} has objects of another namespace");
    }
    Ok(())
}

/// The server has the time to end that it was configured to take.
#[test]
fn the_server_has_time_to_end() -> Result<()> {
    let base = objects("overlays/companion")?;
    let pod = &find(&base, "Deployment", "ws-guard-server")?["spec"]["template"]["spec"];
    let args = pod["containers"][0]["args"].as_array().context("no arguments")?;
    let mut args = args.iter().filter_map(Value::as_str);
    let delay = args.find_map(|arg| arg.strip_prefix("--shutdown-delay="));
    let delay = delay.and_then(|text| text.strip_suffix('s')).context("no delay in seconds")?;
    let drain = Config::new(([127, 0, 0, 1], 0).into()).drain_timeout.as_secs();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().context("no period of grace")?;
    ensure!(grace > delay.parse::<u64>()? + drain, "{grace} s for {delay} s and {drain} s");
    Ok(())
}

/// Check that each capability in the sources has its reason in the same line.
#[test]
fn every_capability_says_why() -> Result<()> {
    for name in ["base/guard.yaml", "unload/unload.yaml"] {
        let text = files::read(&format!("deploy/kubernetes/{name}"))?;
        let added = text.split("add:\n").skip(1);
        let lines: Vec<&str> =
            added.flat_map(|rest| rest.lines().take_while(|l| l.trim().starts_with('-'))).collect();
        ensure!(!lines.is_empty(), "{name} adds no capability");
        for line in lines {
            ensure!(line.contains(" # "), "{name}: no reason in {line}");
        }
    }
    Ok(())
}

#[test]
fn the_configuration_is_one() -> Result<()> {
    let file = Some(files::path("deploy/kubernetes/base/guard.toml"));
    let settings = Inputs { file, ..Inputs::default() }.load();
    let settings = settings.map_err(|error| anyhow::anyhow!("{:?}", error.lines()))?;
    assert_eq!(settings.policy.action.name(), "observe");
    let base = objects("base")?;
    let mounted = &find(&base, "ConfigMap", "ws-guard")?["data"]["guard.toml"];
    assert_eq!(
        mounted.as_str().context("no guard.toml")?,
        files::read("deploy/kubernetes/base/guard.toml")?
    );
    Ok(())
}
