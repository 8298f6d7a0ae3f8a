//! The manifests of `deploy/chaos`: Kubernetes' schemas, and Chaos Mesh's fields.

use std::{collections::BTreeMap, fs, process::Command};

use serde::Deserialize;
use serde_json::Value;
use ws_guard_testkit::tools;

fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn rendered() -> String {
    let mut kustomize = Command::new("kubectl");
    kustomize.arg("kustomize").arg(tools::workspace().join("deploy/chaos"));
    output(kustomize)
}

fn objects() -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), rendered()).unwrap();
    let mut python = Command::new(tools::python());
    let program =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    python.args(["-c", program]).arg(file.path());
    serde_json::from_str(&output(python)).unwrap()
}

/// What a Schedule of Chaos Mesh 2 may have, as far as it is used here: another field is an error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Schedule {
    schedule: String,
    r#type: String,
    #[serde(rename = "concurrencyPolicy")]
    _concurrency_policy: Policy,
    #[serde(rename = "historyLimit")]
    _history_limit: u32,
    network_chaos: Option<NetworkChaos>,
    pod_chaos: Option<PodChaos>,
}

#[derive(Deserialize)]
enum Policy {
    Allow,
    Forbid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NetworkChaos {
    action: NetworkAction,
    mode: Mode,
    selector: Selector,
    delay: Delay,
    direction: Direction,
    target: Target,
    duration: String,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NetworkAction {
    Netem,
    Delay,
    Loss,
    Duplicate,
    Corrupt,
    Partition,
    Bandwidth,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    One,
    All,
    Fixed,
    FixedPercent,
    RandomMaxPercent,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Direction {
    To,
    From,
    Both,
}

/// All of it are texts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delay {
    latency: String,
    jitter: String,
    #[serde(rename = "correlation")]
    _correlation: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    namespaces: Vec<String>,
    label_selectors: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    mode: Mode,
    selector: Selector,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodChaos {
    action: PodAction,
    mode: Mode,
    container_names: Vec<String>,
    selector: Selector,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PodAction {
    PodKill,
    PodFailure,
    ContainerKill,
}

#[test]
fn they_pass_kubernetes_schemas() {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    fs::write(file.path(), rendered()).unwrap();
    for version in ["1.27", "1.37"] {
        let mut validate = Command::new(tools::python());
        validate.args(["-m", "kubernetes_validate", "--strict", "-k", version]).arg(file.path());
        output(validate);
    }
    let objects = objects();
    let night = objects.iter().find(|object| object["kind"] == "CronJob").unwrap();
    assert_eq!(
        (&night["spec"]["schedule"], &night["spec"]["timeZone"]),
        (&"0 2 * * *".into(), &"Etc/UTC".into())
    );
    let pod = &night["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/component"], "chaos");
}

#[test]
fn the_faults_are_those_of_a_run_on_one_machine() {
    let server =
        fs::read_to_string(tools::workspace().join("deploy/kubernetes/server/server.yaml"))
            .unwrap();
    assert!(
        server.contains("app.kubernetes.io/component: server") && server.contains("- name: server")
    );
    let (mut delays, mut kills) = (0, 0);
    for object in objects().into_iter().filter(|object| object["kind"] == "Schedule") {
        assert_eq!(object["apiVersion"], "chaos-mesh.org/v1alpha1");
        let schedule: Schedule = serde_json::from_value(object["spec"].clone()).unwrap();
        assert!(schedule.schedule.ends_with(" 2 * * *"), "{}", schedule.schedule);
        let of_servers = |selector: &Selector| {
            assert_eq!(selector.namespaces, ["ws-guard"]);
            assert_eq!(selector.label_selectors["app.kubernetes.io/component"], "server");
        };
        if let Some(network) = schedule.network_chaos {
            assert_eq!(
                (schedule.r#type.as_str(), network.action),
                ("NetworkChaos", NetworkAction::Delay)
            );
            assert_eq!(
                (network.delay.latency.as_str(), network.delay.jitter.as_str()),
                ("100ms", "20ms")
            );
            assert_eq!(
                (network.mode, network.target.mode, network.direction),
                (Mode::All, Mode::All, Direction::Both)
            );
            assert_eq!(
                network.target.selector.label_selectors["app.kubernetes.io/component"],
                "chaos"
            );
            assert_eq!(network.duration, "10m");
            of_servers(&network.selector);
            delays += 1;
        } else if let Some(pod) = schedule.pod_chaos {
            assert_eq!(
                (schedule.r#type.as_str(), pod.action, pod.mode),
                ("PodChaos", PodAction::ContainerKill, Mode::One)
            );
            assert_eq!(pod.container_names, ["server"]);
            of_servers(&pod.selector);
            kills += 1;
        }
    }
    assert_eq!((delays, kills), (1, 1));
}
