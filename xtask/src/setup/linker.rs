//! bpf-linker, pinned, in a separate root.
use std::path::PathBuf;

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use super::{system, toolchain::LLVM};
use crate::step;

/// Release that has a feature for [`LLVM`].
pub const VERSION: &str = "0.13.0";

/// Return the linker's folder: in front of PATH when the kernel programs are built.
pub fn folder() -> PathBuf {
    tools::root().join("bpf-linker/bin")
}

pub struct Component;

impl super::Component for Component {
    fn name(&self) -> &'static str {
        "bpf-linker"
    }

    fn present(&self) -> Option<String> {
        let version = step::output(folder().join("bpf-linker").to_str()?, &["--version"])?;
        (version == format!("bpf-linker {VERSION}")).then(|| format!("{version} on LLVM {LLVM}"))
    }

    fn install(&self) -> Result<()> {
        let prefix = system::llvm_prefix().context("LLVM is not installed")?;
        let mut cargo = super::crates::install("bpf-linker", VERSION);
        cargo.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]);
        cargo.env("LLVM_PREFIX", prefix);
        step::run(&format!("building bpf-linker {VERSION}"), cargo)
    }
}
