//! Debian's own checkers of a package.
use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::step;

/// Release of Debian that packages are installed in.
pub const SUITE: &str = "bookworm";

/// Return this machine's package source, for programs with another default.
/// `None` where the usual place does not have it.
pub fn archive_of_packages() -> Option<String> {
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").ok()?;
    let uris = sources.lines().find_map(|line| line.strip_prefix("URIs:"))?;
    uris.split_whitespace().next().map(str::to_owned)
}

/// Check for errors; warnings are shown by hand (`lintian PACKAGE`).
pub fn lintian(package: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error", "--allow-root"]).arg(package);
    step::run("checking the package with lintian", lintian)
}

/// Install, purge, and check that nothing is left, in a fresh tree of Debian.
pub fn piuparts(package: &Path, folder: &Path) -> Result<()> {
    let work = folder.join("piuparts");
    fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    let mut piuparts = Command::new("piuparts");
    piuparts.args(["--no-upgrade-test", "--warn-on-others", "--distribution", SUITE]);
    piuparts.arg("--tmpdir").arg(&work);
    if let Some(archive) = archive_of_packages() {
        piuparts.args(["--mirror", &format!("{archive} main")]);
    }
    piuparts.arg(package);
    step::run("installing and purging it with piuparts", piuparts)
}
