//! What the container image is made with, and what deployments are checked with.
use std::{fmt, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use super::system;
use crate::step;

/// How the image's binary is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Rust's musl target.
    Musl,
    /// Debian's static glibc, where rustup cannot fetch that target.
    Glibc,
}

impl Linkage {
    /// The target that rustc is given.
    pub fn target(self) -> String {
        let library = match self {
            Linkage::Musl => "musl",
            Linkage::Glibc => "gnu",
        };
        format!("{}-unknown-linux-{library}", std::env::consts::ARCH)
    }
}

impl fmt::Display for Linkage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, static", self.target())
    }
}

/// What there is; musl before glibc.
pub fn linkage() -> Option<Linkage> {
    let sysroot = step::output("rustc", &["--print", "sysroot"])?;
    let library = PathBuf::from(sysroot).join("lib/rustlib").join(Linkage::Musl.target());
    if library.join("lib").exists() {
        return Some(Linkage::Musl);
    }
    no_musl().exists().then_some(Linkage::Glibc)
}

/// Says that rustup could not fetch the musl target.
fn no_musl() -> PathBuf {
    tools::root().join("no-musl")
}

/// The libraries that a static binary is linked with.
pub struct Static;

impl super::Component for Static {
    fn name(&self) -> &'static str {
        "static linking"
    }

    fn present(&self) -> Option<String> {
        linkage().map(|linkage| linkage.to_string())
    }

    fn install(&self) -> Result<()> {
        let mut add = Command::new("rustup");
        add.args(["target", "add", &Linkage::Musl.target()]).env("RUSTUP_MAX_RETRIES", "1");
        if let Err(error) = step::run("fetching the musl target", add) {
            eprintln!("  {error:#}\n  linking with the static glibc instead");
            fs::create_dir_all(tools::root())?;
            fs::write(no_musl(), "").context("noting that there is no musl target")?;
        }
        Ok(())
    }
}

/// Prometheus and promtool, unpacked and not installed: Debian's package starts a service.
pub struct Prometheus;

impl super::Component for Prometheus {
    fn name(&self) -> &'static str {
        "Prometheus"
    }

    fn present(&self) -> Option<String> {
        let version = step::output(tools::promtool().to_str()?, &["--version"])?;
        tools::prometheus().exists().then(|| version.lines().next().unwrap_or("?").to_owned())
    }

    fn install(&self) -> Result<()> {
        system::apt_unpack("prometheus", &tools::root().join("prometheus"))
    }
}
