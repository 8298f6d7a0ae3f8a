//! The kubectl plug-in, and its manifest for krew.
use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use super::{archive, listing};
use crate::{
    image::{Architecture, Build, Profile, VERSION},
    step,
};

const PACKAGE: &str = "kubectl-ws-guard";
const PROGRAM: &str = "kubectl-ws_guard";
const LICENCE: &str = "LICENSE-APACHE";

/// Write an archive for each architecture, and the manifest that names them.
pub fn make(folder: &Path, chosen: &[Architecture]) -> Result<()> {
    let build = Build::new(Profile::Release, chosen[0]).together(chosen);
    let mut archives = Vec::new();
    for &architecture in chosen {
        let program = build.of(architecture).program(PACKAGE, PROGRAM)?;
        let name = format!("{PROGRAM}-{VERSION}-linux-{}.tar.gz", architecture.oci());
        let staged = tempfile::tempdir()?;
        fs::copy(&program, staged.path().join(PROGRAM)).context("copying the plug-in")?;
        fs::copy(tools::workspace().join(LICENCE), staged.path().join(LICENCE))?;
        let mut tar: Command = archive(&folder.join(&name));
        tar.arg("-C").arg(staged.path()).args([LICENCE, PROGRAM]);
        step::run("packing the plug-in", tar)?;
        archives.push((architecture, listing::sum(&folder.join(&name))?, name));
    }
    fs::write(folder.join("krew-ws-guard.yaml"), manifest(&archives)?).context("krew's manifest")
}

/// Return the manifest that krew installs from.
fn manifest(archives: &[(Architecture, String, String)]) -> Result<String> {
    let repository = env!("CARGO_PKG_REPOSITORY");
    let mut text = format!(
        "\
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: ws-guard
spec:
  version: v{VERSION}
  homepage: {repository}
  shortDescription: Show and control ws-guard on all nodes
  description: |
    Runs a command of ws-guard, the eBPF guard for WebSocket services, on every
    node or on those named by --node, and merges the tables with a NODE column.
  platforms:
"
    );
    for (architecture, sum, name) in archives {
        write!(
            text,
            "  - selector:
      matchLabels:
        os: linux
        arch: {}
    uri: {repository}/releases/download/v{VERSION}/{name}
    sha256: {sum}
    bin: {PROGRAM}
    files:
    - from: {PROGRAM}
      to: .
    - from: {LICENCE}
      to: .
",
            architecture.oci()
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{super::ARCHITECTURES, *};

    /// krew's own rules for a manifest.
    /// A version with `v`, a short description of one line without a full stop, and a checksum and
    /// a program for each platform.
    #[test]
    fn the_manifest_keeps_to_krews_rules() {
        let sum = "0".repeat(64);
        let archives = ARCHITECTURES.map(|one| (one, sum.clone(), format!("{}.tar.gz", one.oci())));
        let text = manifest(&archives).expect("a manifest");
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}")).trim()
        };
        assert!(value("version:").starts_with('v') && value("version:").split('.').count() == 3);
        let short = value("shortDescription:");
        assert!(!short.ends_with('.') && short.len() <= 50, "{short}");
        assert_eq!(text.matches("    sha256: ").count(), ARCHITECTURES.len());
        assert!(text.contains("arch: arm64") && text.contains("releases/download/v"), "{text}");
    }
}
