//! Programs from pinned crates, each in a separate root.
use std::process::Command;

use anyhow::Result;
use ws_guard_testkit::tools;

use crate::step;

/// A program that cargo runs as one of its commands.
pub struct Program {
    name: &'static str,
    version: &'static str,
    /// Arguments that print its version.
    ask: &'static [&'static str],
}

/// Maker of Debian packages.
pub const CARGO_DEB: Program = Program { name: "cargo-deb", version: "3.8.0", ask: &["--version"] };
/// Maker of bills of materials.
pub const CARGO_CYCLONEDX: Program =
    Program { name: "cargo-cyclonedx", version: "0.5.9", ask: &["cyclonedx", "--version"] };

impl super::Component for Program {
    fn name(&self) -> &'static str {
        self.name
    }

    fn present(&self) -> Option<String> {
        let program = tools::root().join(self.name).join("bin").join(self.name);
        let version = step::output(program.to_str()?, self.ask)?;
        version.contains(self.version).then_some(version)
    }

    fn install(&self) -> Result<()> {
        let what = format!("building {} {}", self.name, self.version);
        let mut cargo = install(self.name, self.version);
        // They run for seconds, and would be compiled for minutes.
        cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        step::run(&what, cargo)
    }
}

/// Return the command that compiles a crate's programs into its root.
pub fn install(name: &str, version: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["install", name, "--version", version, "--locked", "--force", "--root"]);
    cargo.arg(tools::root().join(name));
    cargo
}
