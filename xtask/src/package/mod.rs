//! `cargo xtask package`:
//! the Debian package, made by cargo-deb from files staged below `target/package`.
mod life;
mod machine;
mod stage;
mod tools;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::tools as installed;

use crate::{
    image::{Architecture, Build, Profile, VERSION},
    setup, step,
};

/// Revision of the package that is upgraded.
const OLDER: u32 = 0;

#[derive(clap::Args)]
pub struct Args {
    /// How the binary is compiled: `release`, or `dev` for a quick look
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Judge it with lintian and piuparts, and install, upgrade and remove it under systemd, beside a
    /// flood
    #[arg(long)]
    check: bool,
}

pub fn main(args: Args) -> Result<()> {
    let folder = installed::target().join("package");
    let package = make(args.profile, &folder)?;
    println!("{}", package.display());
    if args.check {
        setup::package_checks()?;
        tools::lintian(&package)?;
        tools::piuparts(&package, &folder)?;
        life::test(&pack(&folder, OLDER)?, &package)?;
    }
    Ok(())
}

/// Compile, stage, and write the package into `folder`.
pub fn make(profile: Profile, folder: &Path) -> Result<PathBuf> {
    setup::package()?;
    stage::fill(&Build::new(profile, Architecture::HOST).guard()?)?;
    pack(folder, 1)
}

/// Pack the staged files, as this revision.
fn pack(folder: &Path, revision: u32) -> Result<PathBuf> {
    let version = format!("{VERSION}-{revision}");
    let architecture = Architecture::HOST.oci();
    let package = folder.join(format!("ws-guard_{version}_{architecture}.deb"));
    let mut deb = Command::new(installed::cargo_deb());
    deb.args(["--package", "ws-guard", "--no-build", "--no-strip", "--deb-version", &version]);
    deb.arg("--output").arg(&package);
    if revision == OLDER {
        // The package is not kept.
        deb.arg("--fast");
    }
    deb.current_dir(installed::workspace()).env("SOURCE_DATE_EPOCH", stage::time()?);
    step::run("packing the Debian package", deb)?;
    ensure!(package.exists(), "cargo-deb made no {}", package.display());
    package.canonicalize().context("the package")
}
