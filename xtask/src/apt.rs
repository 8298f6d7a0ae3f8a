//! Package lists separate from the machine's own:
//! with sources, or of another architecture. Nothing of them is installed.
use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use crate::{image::Architecture, step};

/// Options of apt-get and apt-cache.
pub struct Lists {
    config: PathBuf,
    updated: PathBuf,
}

impl Lists {
    /// Return lists of this machine's architecture, with sources too.
    pub fn with_sources() -> Result<Lists> {
        Lists::new(&tools::target().join("k8s/apt"), "deb deb-src", None)
    }

    /// Return lists of another architecture.
    pub fn of(architecture: Architecture) -> Result<Lists> {
        let name = architecture.oci();
        Lists::new(&tools::target().join("apt").join(name), "deb", Some(name))
    }

    fn new(folder: &Path, types: &str, architecture: Option<&str>) -> Result<Lists> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources")
            .context("reading Debian's entry in the sources of apt")?;
        fs::write(
            folder.join("debian.sources"),
            sources.replace("Types: deb\n", &format!("Types: {types}\n")),
        )?;
        let shown = folder.display();
        let mut text = format!(
            "Dir::State::lists \"{shown}/lists\";\nDir::Etc::sourcelist \"{shown}/debian.sources\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\nDir::Cache \"{shown}/cache\";\n\
             APT::Sandbox::User \"root\";\n"
        );
        if let Some(name) = architecture {
            // Nothing of it counts as installed.
            fs::write(folder.join("status"), "")?;
            writeln!(
                text,
                "APT::Architecture \"{name}\";\nAPT::Architectures {{ \"{name}\"; }};\n\
                 Dir::State::status \"{shown}/status\";"
            )?;
        }
        let config = folder.join("apt.conf");
        fs::write(&config, text)?;
        Ok(Lists { config, updated: folder.join("updated") })
    }

    /// Return a command of one of apt's programs on these lists.
    pub fn command(&self, program: &str, words: &[impl AsRef<OsStr>], folder: &Path) -> Command {
        let mut apt = Command::new(program);
        apt.arg("-q").args(words).env("APT_CONFIG", &self.config).current_dir(folder);
        apt
    }

    /// Fetch the lists again.
    pub fn update(&self) -> Result<()> {
        let folder = self.config.parent().unwrap_or(Path::new("/"));
        step::run("fetching the package lists", self.command("apt-get", &["update"], folder))?;
        fs::write(&self.updated, "").context("noting that the lists are there")
    }

    /// Fetch them unless that was done once.
    pub fn update_once(&self) -> Result<()> {
        if self.updated.exists() { Ok(()) } else { self.update() }
    }

    /// Fetch packages into `folder`, and unpack them in `root`.
    pub fn unpack(&self, packages: &[&str], folder: &Path, root: &Path) -> Result<()> {
        for needed in [folder, root] {
            fs::create_dir_all(needed).with_context(|| needed.display().to_string())?;
        }
        let words = [&["download"][..], packages].concat();
        let what = format!("fetching {}", packages.join(", "));
        step::run(&what, self.command("apt-get", &words, folder))?;
        for entry in fs::read_dir(folder)? {
            let archive = entry?.path();
            if archive.extension() == Some(OsStr::new("deb")) {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("--extract").arg(archive).arg(root);
                step::run("unpacking a package", unpack)?;
            }
        }
        Ok(())
    }
}
