//! The Rust toolchain for the kernel programs.
//! It needs the sources of `core`, and the right LLVM.
use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::system;
use crate::step;

/// LLVM version common to compiler and bpf-linker:
/// bpf-linker reads the compiler's bitcode, and each LLVM reads only its own and older ones.
pub const LLVM: u32 = 22;
/// One of the last nightlies before rustc moved on;
/// its date is pinned, or the build breaks on the day that nightly takes the next LLVM.
const NIGHTLY: &str = "nightly-2026-05-20";
/// Time limit of rustup, in seconds, before Debian's packages are tried.
const RUSTUP_SECONDS: &str = "300";
/// Environment variable that insists on `rustup` or `debian`.
const CHOICE: &str = "WS_GUARD_EBPF_TOOLCHAIN";
/// Debian's compiler, with the sources of its own library.
const DEBIAN: [&str; 4] = ["rustc-web", "rust-web-src", "cargo-web", "rust-web-clippy"];

/// A toolchain that can compile the kernel programs.
pub struct Toolchain {
    /// Folder of `cargo` and `rustc`.
    pub bin: PathBuf,
    /// Folder above the library sources.
    pub sysroot: PathBuf,
    /// Output of `rustc --version`.
    version: String,
}

impl Toolchain {
    /// Return the folder of its LLVM tools.
    pub fn llvm_folder(&self) -> Result<PathBuf> {
        let prefix = system::llvm_prefix().with_context(|| {
            format!("LLVM {LLVM} was not found: set LLVM_PREFIX to where it is installed")
        })?;
        Ok(prefix.join("bin"))
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} in {}", self.version, self.sysroot.display())
    }
}

/// Return the toolchain to use: rustup's where it is complete, otherwise Debian's.
pub fn find() -> Option<Toolchain> {
    let rustup = || at(&rustup_bin()?);
    let debian = || at(Path::new("/usr/bin"));
    match choice().as_deref() {
        Some("rustup") => rustup(),
        Some("debian") => debian(),
        _ => rustup().or_else(debian),
    }
}

fn choice() -> Option<String> {
    std::env::var(CHOICE).ok().filter(|choice| !choice.is_empty())
}

fn rustup_bin() -> Option<PathBuf> {
    let rustc = step::output("rustup", &["which", "--toolchain", NIGHTLY, "rustc"])?;
    Some(Path::new(&rustc).parent()?.to_owned())
}

/// Return the toolchain in `bin`, if it has library sources and the right LLVM.
fn at(bin: &Path) -> Option<Toolchain> {
    let rustc = bin.join("rustc");
    let described = step::output(rustc.to_str()?, &["-vV"])?;
    let sysroot = PathBuf::from(step::output(rustc.to_str()?, &["--print", "sysroot"])?);
    let sources = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    let complete = sources.exists() && bin.join("cargo").exists() && llvm(&described) == Some(LLVM);
    let version = described.lines().next()?.to_owned();
    complete.then(|| Toolchain { bin: bin.to_owned(), sysroot, version })
}

/// Return the major version in the line `LLVM version: 22.1.4` of `rustc -vV`.
fn llvm(described: &str) -> Option<u32> {
    let version = described.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

pub struct Component;

impl super::Component for Component {
    fn name(&self) -> &'static str {
        "eBPF toolchain"
    }

    fn present(&self) -> Option<String> {
        find().map(|toolchain| toolchain.to_string())
    }

    fn install(&self) -> Result<()> {
        match choice().as_deref() {
            Some("rustup") => return rustup(),
            Some("debian") => return debian(),
            Some(other) => bail!("{CHOICE}={other} is unknown: set it to rustup or debian"),
            None => {}
        }
        if step::output("rustup", &["--version"]).is_none() {
            eprintln!("  there is no rustup here: taking Debian's toolchain");
            return debian();
        }
        match rustup() {
            Ok(()) => Ok(()),
            Err(error) => {
                eprintln!(
                    "  {error:#}\n  rustup cannot fetch {NIGHTLY}: taking Debian's toolchain"
                );
                debian()
            }
        }
    }
}

fn rustup() -> Result<()> {
    let mut install = Command::new("timeout");
    install.args([RUSTUP_SECONDS, "rustup", "toolchain", "install", NIGHTLY]);
    install.args(["--profile", "minimal", "--component", "rust-src", "--component", "clippy"]);
    install.args(["--no-self-update"]).env("RUSTUP_MAX_RETRIES", "1");
    step::run(&format!("fetching {NIGHTLY} with rust-src"), install)
}

fn debian() -> Result<()> {
    system::apt_install(&DEBIAN)?;
    if let Some(described) = step::output("/usr/bin/rustc", &["-vV"])
        && llvm(&described) != Some(LLVM)
    {
        bail!(
            "{} has {}, and bpf-linker {} is pinned to LLVM {LLVM}: use rustup, or a Debian release \
             whose rustc-web has LLVM {LLVM}",
            described.lines().next().unwrap_or_default(),
            described.lines().last().unwrap_or_default(),
            super::linker::VERSION
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::llvm;

    #[test]
    fn reads_the_llvm_of_a_compiler() {
        assert_eq!(llvm("rustc 1.97.0-nightly\nhost: x\nLLVM version: 22.1.4"), Some(22));
        assert_eq!(llvm("rustc 1.97.0-nightly\nhost: x"), None);
    }
}
