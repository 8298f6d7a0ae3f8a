//! Tools to make the container image, and to check deployments.
use std::{fmt, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use super::system;
use crate::{image::Architecture, step};

/// Linkage of the image's binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Rust's musl target.
    Musl,
    /// Debian's static glibc, where rustup cannot fetch that target.
    Glibc,
}

impl Linkage {
    /// Return the target for rustc.
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

/// Return the available linkage; musl before glibc.
pub fn linkage() -> Option<Linkage> {
    let sysroot = step::output("rustc", &["--print", "sysroot"])?;
    let library = PathBuf::from(sysroot).join("lib/rustlib").join(Linkage::Musl.target());
    if library.join("lib").exists() {
        return Some(Linkage::Musl);
    }
    no_musl().exists().then_some(Linkage::Glibc)
}

/// Return the file that records that rustup could not fetch the musl target.
fn no_musl() -> PathBuf {
    tools::root().join("no-musl")
}

/// Libraries that a static binary is linked with.
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

/// Rust's libraries for the other architecture of the images.
pub struct Arm64;

impl super::Component for Arm64 {
    fn name(&self) -> &'static str {
        "Rust for arm64"
    }

    fn present(&self) -> Option<String> {
        let sysroot = PathBuf::from(step::output("rustc", &["--print", "sysroot"])?);
        let target = Architecture::Arm64.target();
        sysroot.join("lib/rustlib").join(&target).join("lib").exists().then_some(target)
    }

    fn install(&self) -> Result<()> {
        let mut add = Command::new("rustup");
        add.args(["target", "add", &Architecture::Arm64.target()]);
        step::run("fetching the musl target for arm64", add)
    }
}

/// A separate program in a Python package, for the examples with OpenTelemetry.
pub struct Rotel;

impl Rotel {
    const VERSION: &str = "0.0.1a15";

    fn folder() -> PathBuf {
        tools::root().join("rotel")
    }
}

impl super::Component for Rotel {
    fn name(&self) -> &'static str {
        "Rotel"
    }

    fn present(&self) -> Option<String> {
        // It prints the version of the program, and not that of the package.
        let said = step::output(tools::rotel().to_str()?, &["--version"])?;
        let described = Rotel::folder().join(format!("rotel-{}.dist-info", Rotel::VERSION));
        described.exists().then(|| format!("{said}, from the package's {}", Rotel::VERSION))
    }

    fn install(&self) -> Result<()> {
        let python = tools::python();
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]);
        pip.args(["--no-deps", &format!("rotel=={}", Rotel::VERSION), "--target"]);
        pip.arg(Rotel::folder());
        step::run("fetching Rotel", pip)?;
        // Its package does not name the library that it is linked with.
        let library = "import sys; print('libpython%d.%d' % sys.version_info[:2])";
        let library = step::output(python.to_str().context("a path")?, &["-c", library]);
        system::apt_install(&[&library.context("running Python")?])
    }
}

/// A Debian package with a server and its tool, unpacked, not installed.
/// Installed, it would start a service.
pub struct Unpacked {
    name: &'static str,
    package: &'static str,
    folder: &'static str,
    server: fn() -> PathBuf,
    tool: fn() -> PathBuf,
}

/// Prometheus and promtool.
pub const PROMETHEUS: Unpacked = Unpacked {
    name: "Prometheus",
    package: "prometheus",
    folder: "prometheus",
    server: tools::prometheus,
    tool: tools::promtool,
};

/// Alertmanager and amtool.
pub const ALERTMANAGER: Unpacked = Unpacked {
    name: "Alertmanager",
    package: "prometheus-alertmanager",
    folder: "alertmanager",
    server: tools::alertmanager,
    tool: tools::amtool,
};

impl super::Component for Unpacked {
    fn name(&self) -> &'static str {
        self.name
    }

    fn present(&self) -> Option<String> {
        let version = step::output((self.tool)().to_str()?, &["--version"])?;
        (self.server)().exists().then(|| version.lines().next().unwrap_or("?").to_owned())
    }

    fn install(&self) -> Result<()> {
        system::apt_unpack(self.package, &tools::root().join(self.folder))
    }
}
