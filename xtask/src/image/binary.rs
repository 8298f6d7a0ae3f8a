//! The static binary.
use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use object::{
    Endianness,
    elf::{FileHeader64, PT_INTERP},
    read::elf::{FileHeader, ProgramHeader},
};
use ws_guard_testkit::tools;

use crate::{
    setup::{self, Linkage},
    step,
};

/// How it is compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    #[default]
    Release,
    Dev,
}

/// Compile ws-guard so that it needs nothing but a kernel; where it is, without debugging sections.
pub fn compile(profile: Profile) -> Result<PathBuf> {
    let linkage =
        setup::linkage().context("no static C library: see `cargo xtask setup --check`")?;
    let target = linkage.target();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--package", "ws-guard", "--bin", "ws-guard", "--target", &target]);
    cargo.current_dir(tools::workspace());
    let folder = match profile {
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
        Profile::Dev => "debug",
    };
    let mut built = tools::target();
    if linkage == Linkage::Glibc {
        // Flags are no part of a target folder's name, and these are not those of ordinary builds.
        built.push("static-glibc");
        cargo.arg("--target-dir").arg(&built).env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    }
    step::run(&format!("building ws-guard for {linkage}"), cargo)?;
    let built = built.join(target).join(folder).join("ws-guard");
    let stripped = built.with_extension("stripped");
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(&built);
    step::run("taking its debugging sections out", strip)?;
    let bytes = fs::read(&stripped).with_context(|| stripped.display().to_string())?;
    ensure!(is_static(&bytes)?, "{} needs a dynamic loader", stripped.display());
    Ok(stripped)
}

/// Whether the kernel starts it without a loader.
fn is_static(bytes: &[u8]) -> Result<bool> {
    let header = FileHeader64::<Endianness>::parse(bytes).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, bytes)?;
    Ok(segments.iter().all(|segment| segment.p_type(endian) != PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_is_not_static() {
        let own = std::env::current_exe().and_then(fs::read).expect("this program");
        assert!(!is_static(&own).expect("an ELF file"));
    }
}
