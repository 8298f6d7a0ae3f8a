//! Files of `deploy/`.
use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use ws_guard_testkit::tools;

/// The rules in `deploy/prometheus`.
pub const RULES: [&str; 2] = ["recording.yaml", "alerts.yaml"];

/// Return the path of a file in the repository.
pub fn path(name: &str) -> PathBuf {
    tools::workspace().join(name)
}

pub fn read(name: &str) -> Result<String> {
    fs::read_to_string(path(name)).with_context(|| name.to_owned())
}

/// Read a file with one YAML document.
pub fn yaml<T: DeserializeOwned>(name: &str) -> Result<T> {
    serde_saphyr::from_str(&read(name)?).with_context(|| name.to_owned())
}

/// Return the output of `kubectl kustomize` for a folder in `deploy/kubernetes`.
pub fn rendered(folder: &str) -> Result<String> {
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("kustomize").arg(path("deploy/kubernetes").join(folder));
    run(kubectl)
}

/// Return the same as objects.
pub fn objects(folder: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(&rendered(folder)?).with_context(|| format!("rendered {folder}"))
}

/// Return the object of a kind and name.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let found =
        objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} is called {name}"))
}

/// Run a command; return its standard output.
pub fn run(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| {
        format!("running {:?}: `cargo xtask setup` installs it", command.get_program())
    })?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} failed: {out}{err}");
    Ok(out.into_owned())
}

/// Run `promtool` with these arguments, in the folder of Prometheus' files.
pub fn promtool(words: &[&str]) -> Result<String> {
    let mut promtool = Command::new(tools::promtool());
    promtool.args(words).current_dir(path("deploy/prometheus"));
    run(promtool)
}
