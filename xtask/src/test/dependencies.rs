//! Constraints on the crates of the lock file:
//! licences, sources, advisories (`deny.toml`), and the oldest Rust that compiles them.
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{Metadata, MetadataCommand, Package, semver::Version};
use ws_guard_testkit::tools;

use super::report::Report;
use crate::step::{self, Outcome};

const ADVISORIES: &str = "dependencies: advisories";

/// Run the checks of the ordinary test. All of them take a few seconds.
pub fn check(report: &mut Report) {
    report.check("dependencies: licences, bans, sources", || {
        judge(&deny(&["bans", "licenses", "sources"])?)
    });
    match deny(&["advisories"]) {
        Ok(outcome) if cannot_fetch(&outcome.lines) => {
            report.skip(ADVISORIES, "not checked: RustSec's database could not be fetched");
        }
        outcome => report.check(ADVISORIES, || judge(&outcome?)),
    }
    report.check("dependencies: oldest Rust", oldest_rust);
    report.note(&step::output("rustc", &["--version"]).unwrap_or_default());
}

fn deny(checks: &[&str]) -> Result<Outcome> {
    let mut command = Command::new(tools::cargo_deny());
    command.args(["--workspace", "--color", "never", "check"]).args(checks);
    command.current_dir(tools::workspace());
    step::stream(&mut command, |_| {})
}

fn judge(outcome: &Outcome) -> Result<()> {
    if outcome.status.success() {
        return Ok(());
    }
    let told = |line: &&String| !line.is_empty();
    let lines: Vec<&str> = outcome.lines.iter().filter(told).map(String::as_str).collect();
    bail!("cargo-deny, with deny.toml, refuses:\n{}", lines.join("\n"))
}

/// Check whether it failed only because the database is unreachable.
fn cannot_fetch(lines: &[String]) -> bool {
    lines.iter().any(|line| line.contains("failed to fetch advisory database"))
}

/// Check that no crate requires a newer Rust than this workspace declares.
/// The rest is checked by compiling with that one, which clippy's `incompatible_msrv` and the tests
/// do where it is installed.
fn oldest_rust() -> Result<()> {
    let metadata = MetadataCommand::new().current_dir(tools::workspace()).exec()?;
    let ours = minimum(&metadata)?;
    let newer = asking_for_newer(&metadata.packages, &ours);
    ensure!(
        newer.is_empty(),
        "rust-version in Cargo.toml is {ours}, and these need a newer one: {}; raise it, or take \
         older releases of them",
        newer.join(", ")
    );
    Ok(())
}

/// Return `rust-version` of the workspace, which all its crates have.
fn minimum(metadata: &Metadata) -> Result<Version> {
    let mut versions = metadata.workspace_packages().into_iter().map(|package| {
        let version = package.rust_version.clone();
        version.with_context(|| format!("{} has no rust-version", package.name))
    });
    let first = versions.next().context("the workspace is empty")??;
    for version in versions {
        let version = version?;
        ensure!(version == first, "rust-version is {first} in one crate and {version} in another");
    }
    Ok(first)
}

fn asking_for_newer(packages: &[Package], ours: &Version) -> Vec<String> {
    let needs = |package: &Package| {
        let needed = package.rust_version.as_ref().filter(|version| *version > ours)?;
        Some(format!("{} {} ({needed})", package.name, package.version))
    };
    packages.iter().filter_map(needs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_needs_a_newer_rust_is_named() {
        let mut metadata = MetadataCommand::new()
            .current_dir(tools::workspace())
            .no_deps()
            .exec()
            .expect("metadata of this workspace");
        let ours = minimum(&metadata).expect("one rust-version");
        assert!(asking_for_newer(&metadata.packages, &ours).is_empty());
        metadata.packages[0].rust_version = Some(Version::new(1, ours.minor + 1, 0));
        let newer = asking_for_newer(&metadata.packages, &ours);
        assert_eq!(newer.len(), 1, "{newer:?}");
        assert!(minimum(&metadata).is_err(), "crates of this workspace differ");
    }

    #[test]
    fn only_a_missing_database_is_no_failure() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert!(cannot_fetch(&lines("[ERROR] failed to fetch advisory database https://…")));
        assert!(!cannot_fetch(&lines("error[vulnerability]: a crate\nadvisories FAILED")));
    }
}
