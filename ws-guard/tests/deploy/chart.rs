//! The Helm chart: the same objects as the kustomize folders; effects of values.
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard::config::{Inputs, Settings};
use ws_guard_testkit::tools;

use crate::{
    files::{self, find, objects, yaml},
    manifests,
};

/// Folders below `deploy/kubernetes`, and values that make the chart render alike.
const SAME: [(&str, &[&str]); 4] = [
    ("overlays/observe-only", &["deploy/helm/overlays/observe-only.yaml"]),
    ("overlays/enforce", &["deploy/helm/overlays/enforce.yaml"]),
    ("overlays/companion", &["deploy/helm/overlays/companion.yaml"]),
    ("unload", &["unload=true"]),
];
const MONITORING: [&str; 3] = [
    "monitoring.podMonitor.enabled=true",
    "monitoring.rules.enabled=true",
    "monitoring.dashboards.enabled=true",
];

/// Return the chart's manifests with these values, as one text.
fn rendered(values: &[&str]) -> Result<String> {
    let text = files::run(tools::helm("render", values))?;
    let mut templates: BTreeMap<String, String> = serde_json::from_str(&text)?;
    templates.remove("NOTES.txt").context("the chart has no notes")?;
    let filled = templates.into_values().filter(|text| !text.trim().is_empty());
    Ok(filled.map(|text| format!("---\n{}\n", text.trim())).collect())
}

fn chart(values: &[&str]) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(&rendered(values)?).context("what the chart renders")
}

/// Sort by kind and name.
fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| format!("{}/{}", object["kind"], object["metadata"]["name"]));
    objects
}

#[test]
fn it_renders_what_kustomize_renders() -> Result<()> {
    for (folder, values) in SAME {
        let chart = sorted(chart(&[values, &["namespace.create=true"]].concat())?);
        let kustomize = sorted(objects(folder)?);
        assert_eq!(chart.len(), kustomize.len(), "{folder}");
        for (one, other) in chart.iter().zip(&kustomize) {
            assert_eq!(one, other, "{folder}: run `cargo xtask manifests`");
        }
    }
    Ok(())
}

#[test]
fn it_passes_lint() -> Result<()> {
    for (_, values) in SAME {
        files::run(tools::helm("lint", values))?;
    }
    files::run(tools::helm("lint", &MONITORING)).map(drop)
}

/// All options at once, for the kinds of Kubernetes itself;
/// the others are the Prometheus operator's.
#[test]
fn its_options_pass_a_strict_schema() -> Result<()> {
    let options = [
        "namespace.create=true",
        "server.enabled=true",
        "server.serviceType=\"NodePort\"",
        "image.pullPolicy=\"Always\"",
        "imagePullSecrets=[{\"name\":\"registry\"}]",
        "monitoring.dashboards.enabled=true",
        "guard.extraArgs=[\"--tunnel\"]",
        "guard.priorityClassName=\"\"",
        "guard.tolerations=[]",
    ];
    let text = rendered(&options)?;
    for version in manifests::VERSIONS {
        manifests::validate(&text, version)?;
    }
    Ok(())
}

/// Collect the paths of a tree's leaves; a value with free names is a leaf.
fn leaves(values: &Value, path: &str, out: &mut Vec<String>) {
    const FREE: [&str; 4] = ["nodeSelector", "resources", "labels", "tolerations"];
    let last = path.rsplit('.').next().unwrap_or(path);
    match values.as_object() {
        Some(object) if !FREE.contains(&last) => {
            for (name, value) in object {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(value, &format!("{path}{dot}{name}"), out);
            }
        }
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn each_value_is_described() -> Result<()> {
    let values: Value = yaml("deploy/helm/ws-guard/values.yaml")?;
    let schema: Value =
        serde_json::from_str(&files::read("deploy/helm/ws-guard/values.schema.json")?)?;
    let mut paths = Vec::new();
    leaves(&values, "", &mut paths);
    ensure!(paths.len() > 20, "only {} values", paths.len());
    for path in paths {
        let mut at = &schema;
        for name in path.split('.') {
            at = &at["properties"][name];
            let description = at["description"].as_str().unwrap_or_default();
            ensure!(description.len() > 5, "{path}: {name} is not described");
        }
    }
    Ok(())
}

#[test]
fn wrong_values_are_refused() -> Result<()> {
    for wrong in [
        "guard.actoin=\"defuse\"",
        "guard.action=\"destroy\"",
        "guard.port=[\"http\"]",
        "guard.port=[]",
        "image.digest=\"latest\"",
        "server.replicas=-1",
    ] {
        let refused = files::run(tools::helm("render", &[wrong]));
        ensure!(refused.is_err(), "{wrong} is accepted");
    }
    Ok(())
}

/// Return the settings that the daemon reads from the ConfigMap of a rendering.
fn settings(values: &[&str]) -> Result<Settings> {
    let objects = chart(values)?;
    let text = find(&objects, "ConfigMap", "ws-guard")?["data"]["guard.toml"].clone();
    let file = tempfile::NamedTempFile::with_suffix(".toml")?;
    std::fs::write(file.path(), text.as_str().context("no guard.toml")?)?;
    let inputs = Inputs { file: Some(file.path().to_owned()), ..Inputs::default() };
    inputs.load().map_err(|error| anyhow::anyhow!("{:?}", error.lines()))
}

#[test]
fn values_reach_the_daemon() -> Result<()> {
    let changed = settings(&[
        "guard.action=\"drop\"",
        "guard.interface=[\"eth*\",\"enp*\"]",
        "guard.podInterface=[\"cali*\"]",
        "guard.port=[8080,\"30080\",\"443/tls\"]",
        "guard.maxPingRate=40",
        "guard.extraConfig=\"max-flows = 4096\\n\"",
    ])?;
    assert_eq!(changed.policy.action.name(), "drop");
    let shown = format!("{changed:?}");
    for part in ["enp*", "cali*", "30080", "443", "4096", "40"] {
        ensure!(shown.contains(part), "no {part} in {shown}");
    }
    Ok(())
}

#[test]
fn an_image_can_be_named_by_digest() -> Result<()> {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let objects = chart(&["image.repository=\"r/w\"", &format!("image.digest=\"{digest}\"")])?;
    let pod = &find(&objects, "DaemonSet", "ws-guard")?["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], format!("r/w@{digest}"));
    Ok(())
}

#[test]
fn there_is_one_version() -> Result<()> {
    let chart: Value = yaml("deploy/helm/ws-guard/Chart.yaml")?;
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!([&chart["version"], &chart["appVersion"]], [version, version]);
    for (folder, _) in SAME {
        for object in objects(folder)? {
            let containers = object["spec"]["template"]["spec"]["containers"].clone();
            for container in containers.as_array().into_iter().flatten() {
                assert_eq!(container["image"], format!("ws-guard:{version}"), "{folder}");
            }
        }
    }
    Ok(())
}

#[test]
fn monitoring_is_what_the_files_have() -> Result<()> {
    let off = chart(&[])?;
    let kinds: Vec<_> = off.iter().map(|object| &object["kind"]).collect();
    assert_eq!(kinds, ["ConfigMap", "DaemonSet"], "the default renders more");

    let objects = chart(&[&MONITORING[..], &["server.enabled=true"]].concat())?;
    let rule = find(&objects, "PrometheusRule", "ws-guard")?;
    let mut groups = Vec::new();
    for name in files::RULES {
        let file: Value = yaml(&format!("deploy/prometheus/{name}"))?;
        groups.extend(file["groups"].as_array().context("no groups")?.iter().cloned());
    }
    assert_eq!(rule["spec"]["groups"], Value::from(groups));

    for (monitor, workload) in
        [("guard", ("DaemonSet", "ws-guard")), ("server", ("Deployment", "ws-guard-server"))]
    {
        let monitor = find(&objects, "PodMonitor", &format!("ws-guard-{monitor}"))?;
        let workload = &find(&objects, workload.0, workload.1)?["spec"];
        assert_eq!(monitor["spec"]["selector"], workload["selector"]);
        let ports = workload["template"]["spec"]["containers"][0]["ports"].as_array();
        let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
        ensure!(ports.into_iter().flatten().any(|has| &has["name"] == port), "no port {port}");
    }

    for name in ["overview", "floods", "heartbeats", "framing", "server"] {
        let map = find(&objects, "ConfigMap", &format!("ws-guard-dashboard-{name}"))?;
        let text = map["data"][format!("{name}.json")].as_str().context("no dashboard")?;
        let (one, other): (Value, Value) = (
            serde_json::from_str(text)?,
            serde_json::from_str(&files::read(&format!("deploy/grafana/{name}.json"))?)?,
        );
        assert_eq!(one, other, "{name}");
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    }
    Ok(())
}
