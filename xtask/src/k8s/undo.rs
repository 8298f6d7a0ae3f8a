//! Undoing as documented: enforcement, a version, an installation with kustomize.
use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::tools;

use super::{
    scenarios::{LIMIT, LOCAL, attack, counted, crowd},
    stage::{FIGURES, Stage, stdout},
    traffic::mixed,
};
use crate::image::NAME;

/// Tag of the image that serves as an older version of the same schema.
const OLDER: &str = "older";

/// Switch enforcement off and on again by one command each;
/// deploy another version of the image, and go back.
pub fn rollback(stage: &mut Stage) -> Result<()> {
    stage.plugin(&["policy", "set", "--action", "observe"])?;
    passed(stage, 127)?;
    stage.plugin(&["policy", "set", "--action", "defuse"])?;
    attack(stage, LOCAL, 5, 128, LIMIT)?;
    let Some(node) = stage.cluster.own() else {
        stage.say("left out: there is no image of another version on the nodes");
        return Ok(());
    };
    node.tag(&format!("{NAME}:{}", crate::image::VERSION), &format!("{NAME}:{OLDER}"))?;
    let source = stage.cluster.client(128).to_string();
    let before = counted(stage, &source)?;
    let set = format!("*={NAME}:{OLDER}");
    stage.kubectl(&["-n", "ws-guard", "set", "image", "daemonset/ws-guard", &set])?;
    stage.rolled_out("ws-guard", "daemonset/ws-guard")?;
    stage.answers()?;
    let there = counted(stage, &source)?;
    stage.kubectl(&["-n", "ws-guard", "rollout", "undo", "daemonset/ws-guard"])?;
    stage.rolled_out("ws-guard", "daemonset/ws-guard")?;
    stage.answers()?;
    let back = counted(stage, &source)?;
    stage.say(&format!(
        "DaemonSet set to another tag, then rolled back: {source} counted {before}, {there}, {back}"
    ));
    ensure!(before > 0 && before <= there && there <= back, "a counter was lost");
    Ok(())
}

/// Check that a flood is only observed.
fn passed(stage: &mut Stage, flooder: u8) -> Result<()> {
    let (clients, _, address) = crowd(&stage.cluster, LOCAL, 5, flooder)?;
    let (served, flooded) = mixed(clients, Duration::from_secs(3))?;
    stage.say(&format!(
        "observed: {} of {} pings of {address} answered",
        flooded.answered, flooded.pings
    ));
    ensure!(served.all_served(), "an honest client noticed the flood");
    ensure!(flooded.answered > 10 * LIMIT, "observe holds something back");
    Ok(())
}

/// Apply the repository's folders, adapted to the cluster, and remove them again.
pub fn kustomize(stage: &mut Stage) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(tools::workspace().join("deploy/kubernetes")).arg(folder.path());
    stdout(copy)?;
    let folder = folder.path().join("kubernetes");
    fit(&folder.join("base/guard.toml"), stage.cluster.uplink())?;
    let companion = rendered(stage, &folder.join("overlays/companion"))?;
    stage.apply(&companion)?;
    stage.rolled_out("ws-guard", "daemonset/ws-guard")?;
    stage.rolled_out("ws-guard", "deployment/ws-guard-server")?;
    passed(stage, 129)?;
    let source = stage.cluster.client(129).to_string();
    ensure!(counted(stage, &source)? > LIMIT, "the flood was not counted");
    let before = stage.cluster.own().map(|node| node.leftovers()).transpose()?;

    let removal = rendered(stage, &folder.join("unload"))?;
    stage.apply(&removal)?;
    stage.rolled_out("ws-guard", "daemonset/ws-guard")?;
    stage.delete(&companion)?;
    match (before, stage.cluster.own().map(|node| node.leftovers()).transpose()?) {
        (Some(before), Some(after)) => {
            let count = before.len();
            stage.say(&format!("kustomize: {count} {FIGURES} before, {} after", after.len()));
            ensure!(count > 0 && after.is_empty(), "left on the node: {after:?}");
        }
        _ => stage.say("kustomize: the removal's pods are ready: each has unloaded its node"),
    }
    let gone = stage.kubectl(&["get", "namespace", "ws-guard"]).is_err();
    ensure!(gone, "the namespace is still there");
    Ok(())
}

/// Edit the lines that an operator adapts.
fn fit(config: &Path, uplink: &str) -> Result<()> {
    let mut text = fs::read_to_string(config).with_context(|| config.display().to_string())?;
    for (from, to) in [
        ("interface = [\"eth0\"]", format!("interface = [\"{uplink}\"]")),
        ("port = [8080]", "port = [30081, 30082]".to_owned()),
    ] {
        ensure!(text.matches(from).count() == 1, "{} has no {from}", config.display());
        text = text.replace(from, &to);
    }
    fs::write(config, text).with_context(|| config.display().to_string())
}

/// Return the manifests of `kubectl apply -k`, with the folders of this node.
fn rendered(stage: &Stage, folder: &Path) -> Result<String> {
    let mut kustomize = Command::new("kubectl");
    kustomize.arg("kustomize").arg(folder);
    stage.placed(&stdout(kustomize)?, ["path: ", "\n"])
}
