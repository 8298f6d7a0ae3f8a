//! `cargo xtask manifests`:
//! the folders of `deploy/kubernetes`, from the chart in `deploy/helm`; and the chart's copies of
//! rules and dashboards.
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::tools;

use crate::setup;

const HEADER: &str =
    "# Made from deploy/helm/ws-guard by `cargo xtask manifests`: change the chart instead.\n";

/// A rendering of the chart, and the files made of its templates.
struct Rendering {
    values: &'static [&'static str],
    /// Template, and its file below `deploy/kubernetes`.
    files: &'static [(&'static str, &'static str)],
}

const RENDERINGS: [Rendering; 3] = [
    Rendering {
        values: &["namespace.create=true", "server.enabled=true"],
        files: &[
            ("namespace.yaml", "namespace/namespace.yaml"),
            ("config.yaml", "base/guard.toml"),
            ("guard.yaml", "base/guard.yaml"),
            ("server.yaml", "server/server.yaml"),
        ],
    },
    Rendering {
        values: &["guard.action=\"defuse\""],
        files: &[("config.yaml", "overlays/enforce/guard.toml")],
    },
    Rendering { values: &["unload=true"], files: &[("unload.yaml", "unload/unload.yaml")] },
];

/// Folders below `deploy`, and their files that the chart has copies of:
/// Helm reads none outside of a chart.
const COPIED: [(&str, &[&str]); 2] = [
    ("prometheus", &["alerts.yaml", "recording.yaml"]),
    (
        "grafana",
        &["floods.json", "framing.json", "heartbeats.json", "overview.json", "server.json"],
    ),
];

pub fn main() -> Result<()> {
    setup::python()?;
    copy()?;
    for rendering in &RENDERINGS {
        let templates = render(rendering.values)?;
        for (template, file) in rendering.files {
            let text = templates.get(*template).context("the chart has no such template")?;
            let path = tools::workspace().join("deploy/kubernetes").join(file);
            write(&path, text).with_context(|| format!("{template} to {file}"))?;
        }
    }
    Ok(())
}

/// Renew the chart's copies.
pub fn copy() -> Result<()> {
    let deploy = tools::workspace().join("deploy");
    for (folder, files) in COPIED {
        let to = deploy.join("helm/ws-guard/files").join(folder);
        fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
        for file in files {
            let from = deploy.join(folder).join(file);
            fs::copy(&from, to.join(file)).with_context(|| from.display().to_string())?;
        }
    }
    Ok(())
}

fn render(values: &[&str]) -> Result<BTreeMap<String, String>> {
    let output = tools::helm("render", values).output().context("running Helm")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the chart cannot be rendered: {said}");
    serde_json::from_slice(&output.stdout).context("what Helm rendered")
}

fn write(path: &Path, text: &str) -> Result<()> {
    let text = text.trim();
    let text = if path.extension().is_some_and(|name| name == "toml") {
        literal(text).context("no guard.toml in the ConfigMap")?
    } else {
        format!("{HEADER}{text}\n")
    };
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// Return the text below `guard.toml: |` in a ConfigMap.
fn literal(text: &str) -> Option<String> {
    let (_, literal) = text.split_once("guard.toml: |\n")?;
    let lines = literal.lines().map(|line| line.strip_prefix("    ").unwrap_or(line));
    Some(lines.flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_loses_its_indentation_alone() {
        let text = "data:\n  guard.toml: |\n    # a\n\n    b = \"    c\"";
        assert_eq!(literal(text).as_deref(), Some("# a\n\nb = \"    c\"\n"));
    }
}
