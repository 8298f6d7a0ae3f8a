//! The static binary.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use object::{
    Endianness,
    elf::{FileHeader64, PT_INTERP},
    read::elf::{FileHeader, ProgramHeader},
};
use walkdir::{DirEntry, WalkDir};
use ws_guard_testkit::tools;

use crate::{
    setup::{self, Linkage},
    step,
};

/// Build profile of the binary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    #[default]
    Release,
    Dev,
}

/// Architecture of the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    pub const HOST: Architecture =
        if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::Amd64 };

    /// Return the name that images and Debian have for it.
    pub fn oci(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// Return the name that Rust and C compilers have for it.
    fn machine(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64",
            Architecture::Arm64 => "aarch64",
        }
    }

    /// Return Rust's target for programs of another machine.
    pub fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.machine())
    }

    /// Set the environment of a cross compiler:
    /// Rust's own linker, since the musl target brings its C library along, and a C compiler for
    /// the crate with C in it, which calls no library.
    fn cross(self, cargo: &mut Command) {
        if self == Architecture::HOST {
            return;
        }
        let (machine, target) = (self.machine(), self.target());
        let name = target.replace('-', "_");
        cargo.env(format!("CC_{name}"), format!("{machine}-linux-gnu-gcc"));
        cargo.env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), "rust-lld");
    }
}

/// Profile, architectures and sources of a build.
#[derive(Clone)]
pub struct Build {
    pub profile: Profile,
    pub architecture: Architecture,
    /// Architectures that one run of cargo compiles for; `architecture` is among them.
    together: Vec<Architecture>,
    sources: PathBuf,
    target: PathBuf,
}

impl Build {
    /// Make a build of this workspace, in its usual target directory.
    pub fn new(profile: Profile, architecture: Architecture) -> Build {
        let (sources, target) = (tools::workspace(), tools::target());
        Build { profile, architecture, together: vec![architecture], sources, target }
    }

    /// Return the same build for another architecture.
    pub fn of(&self, architecture: Architecture) -> Build {
        Build { architecture, ..self.clone() }
    }

    /// Compile for all of these at once, whichever is requested first:
    /// macros and build scripts are compiled once, and no core waits for the last crate of one of
    /// them.
    pub fn together(self, architectures: &[Architecture]) -> Build {
        Build { together: architectures.to_vec(), ..self }
    }

    /// Return the same build from a copy of the sources in an empty `folder`.
    /// It has no earlier products.
    pub fn elsewhere(&self, folder: &Path) -> Result<Build> {
        let sources = folder.join("sources");
        let kept = |entry: &DirEntry| {
            entry.depth() == 0 || !["target", ".git"].iter().any(|one| entry.file_name() == *one)
        };
        for entry in WalkDir::new(&self.sources).follow_links(true).into_iter().filter_entry(kept) {
            let entry = entry?;
            let copy = sources.join(entry.path().strip_prefix(&self.sources)?);
            match entry.file_type().is_dir() {
                true => fs::create_dir_all(&copy),
                false => fs::copy(entry.path(), &copy).map(drop),
            }
            .with_context(|| format!("copying {}", entry.path().display()))?;
        }
        Ok(Build { sources, target: folder.join("target"), ..self.clone() })
    }

    /// Compile ws-guard to need only a kernel; return the path, without debug sections.
    pub fn guard(&self) -> Result<PathBuf> {
        self.program("ws-guard", "ws-guard")
    }

    /// Compile a program of a package in the same way.
    pub fn program(&self, package: &str, program: &str) -> Result<PathBuf> {
        let native = self.architecture == Architecture::HOST;
        let linkage =
            setup::linkage().context("no static C library: see `cargo xtask setup --check`")?;
        let target = if native { linkage.target() } else { self.architecture.target() };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--package", package, "--bin", program]);
        cargo.current_dir(&self.sources);
        let mut flags = Vec::new();
        let folder = match self.profile {
            Profile::Release => {
                cargo.arg("--release");
                flags.extend(without_paths()?);
                "release"
            }
            Profile::Dev => "debug",
        };
        let mut built = self.target.clone();
        let mut targets = vec![target.clone()];
        if native && linkage == Linkage::Glibc {
            // Flags are no part of a target folder's name, and these are not those of ordinary builds.
            built.push("static-glibc");
            flags.push("-Ctarget-feature=+crt-static".to_owned());
        } else {
            // With the host's musl all of them have the same flags.
            let alike = |one: &Architecture| *one != Architecture::HOST || linkage == Linkage::Musl;
            let others = self.together.iter().filter(|one| **one != self.architecture);
            targets.extend(others.copied().filter(alike).map(Architecture::target));
            let crossed = self.together.iter().chain([&self.architecture]);
            crossed.for_each(|one| one.cross(&mut cargo));
        }
        for target in &targets {
            cargo.args(["--target", target]);
        }
        if !flags.is_empty() {
            cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        }
        cargo.arg("--target-dir").arg(&built);
        step::run(&format!("building {program} for {}", targets.join(" and ")), cargo)?;
        self.stripped(&built.join(target).join(folder).join(program))
    }

    /// Write a program without its debugging sections to a file next to it.
    fn stripped(&self, built: &Path) -> Result<PathBuf> {
        let stripped = built.with_extension("stripped");
        let strip = match self.architecture == Architecture::HOST {
            true => "strip".to_owned(),
            false => format!("{}-linux-gnu-strip", self.architecture.machine()),
        };
        let mut strip = Command::new(strip);
        strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(built);
        step::run("taking its debugging sections out", strip)?;
        let bytes = fs::read(&stripped).with_context(|| stripped.display().to_string())?;
        ensure!(is_static(&bytes)?, "{} needs a dynamic loader", stripped.display());
        Ok(stripped)
    }
}

/// Return flags that keep this machine's folders out of the messages of panics:
/// a release is the same bytes wherever it is made.
fn without_paths() -> Result<Vec<String>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let mut flags = Vec::new();
    for entry in fs::read_dir(&sources).with_context(|| sources.display().to_string())? {
        flags.push(format!("--remap-path-prefix={}=/crates", entry?.path().display()));
    }
    flags.sort();
    Ok(flags)
}

/// Check whether the kernel starts it without a loader.
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
    fn a_copy_has_the_sources_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let build = Build::new(Profile::Release, Architecture::HOST);
        let copy = build.elsewhere(folder.path()).expect("a copy");
        let same = |path: &str| {
            fs::read(copy.sources.join(path)).ok() == fs::read(build.sources.join(path)).ok()
        };
        assert!(same("Cargo.lock") && same("ws-guard/src/main.rs"));
        assert!(!copy.sources.join("target").exists() && copy.target != build.target);
    }

    #[test]
    fn this_very_program_is_not_static() {
        let own = std::env::current_exe().and_then(fs::read).expect("this program");
        assert!(!is_static(&own).expect("an ELF file"));
    }
}
