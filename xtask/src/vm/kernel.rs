//! Debian's kernels: found through apt, unpacked below `target/vm`, not installed.
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};
use ws_guard_testkit::tools;

use crate::{apt::Lists, image::Architecture, setup, step};

/// A series of kernels, such as 6.12; Debian decides on the patch release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Release, String> {
        let parts = text.split_once('.').map(|(major, minor)| (major.parse(), minor.parse()));
        match parts {
            Some((Ok(major), Ok(minor))) => Ok(Release { major, minor }),
            _ => Err(format!("{text} is not the name of a kernel series, such as 6.12")),
        }
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Version of the package, such as `6.1.192-2`.
    pub version: String,
    /// Image that a boot loader loads.
    pub image: PathBuf,
    /// The folder above `lib/modules`.
    pub root: PathBuf,
    /// Output of `uname -r`: the folder in `lib/modules`.
    pub name: String,
    pub architecture: Architecture,
}

/// Debian's package of a kernel for machines of one architecture.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    release: Release,
    architecture: Architecture,
}

impl Release {
    /// Return the package for machines like this one.
    pub fn here(self) -> Package {
        self.of(Architecture::HOST)
    }

    pub fn of(self, architecture: Architecture) -> Package {
        Package { release: self, architecture }
    }
}

impl Package {
    /// Return the folder of its newest known patch release.
    fn folder(self) -> PathBuf {
        let release = self.release;
        let name = match self.is_native() {
            true => format!("linux-{release}"),
            false => format!("linux-{release}-{}", self.architecture.oci()),
        };
        tools::target().join("vm").join(name)
    }

    /// Return the kernel that was fetched last, if there is one.
    pub fn cached(self) -> Option<Kernel> {
        let root = self.folder();
        let version = fs::read_to_string(root.join("version")).ok()?;
        let (name, version) = version.trim().split_once(' ')?;
        let image = root.join("boot").join(format!("vmlinuz-{name}"));
        let modules = root.join("lib/modules").join(name).join("modules.dep.bin");
        (image.exists() && modules.exists()).then(|| Kernel {
            version: version.into(),
            image,
            root,
            name: name.into(),
            architecture: self.architecture,
        })
    }

    fn is_native(self) -> bool {
        self.architecture == Architecture::HOST
    }

    /// Return lists other than the machine's own, where those have no such package.
    fn lists(self) -> Result<Option<Lists>> {
        if self.is_native() { Ok(None) } else { Lists::of(self.architecture).map(Some) }
    }

    /// Return the newest patch release that apt knows, fetched unless it is here.
    ///
    /// # Errors When no package source has it, and none was fetched before.
    pub fn fetch(self) -> Result<Kernel> {
        let (cached, lists) = (self.cached(), self.lists()?);
        let mut newest = self.newest(lists.as_ref());
        if newest.is_none() && cached.is_none() {
            match &lists {
                Some(lists) => lists.update()?,
                None => setup::apt_update()?,
            }
            newest = self.newest(lists.as_ref());
        }
        match (newest, cached) {
            (Some(package), Some(kernel)) if package == package_name(&kernel.name) => Ok(kernel),
            (None, Some(kernel)) => Ok(kernel),
            (Some(package), _) => self.unpack(&package, lists.as_ref()),
            (None, None) => bail!(
                "no package source of this system has linux-image-{}.*-cloud-{}: Debian 12 has 6.1, \
                 its security suite and Debian 13 have 6.12",
                self.release,
                self.architecture.oci()
            ),
        }
    }

    fn newest(self, lists: Option<&Lists>) -> Option<String> {
        let Release { major, minor } = self.release;
        let pattern = format!("^linux-image-{major}[.]{minor}[.]");
        let words = ["search", "--names-only", &pattern];
        let output = apt(lists, "apt-cache", &words, Path::new("/")).output().ok()?;
        let found = String::from_utf8(output.stdout).ok()?;
        let names = found.lines().filter_map(|line| line.split_whitespace().next());
        let suffix = format!("-cloud-{}", self.architecture.oci());
        let images = names.filter(|name| name.ends_with(&suffix));
        images.max_by_key(|name| numbers(name)).map(str::to_owned)
    }

    /// Download a package and unpack it in place of the earlier one.
    fn unpack(self, package: &str, lists: Option<&Lists>) -> Result<Kernel> {
        let folder = self.folder();
        let new = folder.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new).with_context(|| new.display().to_string())?;
        }
        fs::create_dir_all(&new).with_context(|| new.display().to_string())?;
        let download = apt(lists, "apt-get", &["download", package], &new);
        step::run(&format!("fetching {package}"), download)?;
        let archive = find(&new, "deb")?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&archive).arg(&new);
        step::run(&format!("unpacking {package}"), unpack)?;
        let name = package.trim_start_matches("linux-image-");
        let mut depmod = Command::new(setup::program("depmod").context("there is no depmod")?);
        depmod.arg("--basedir").arg(&new).arg(name);
        step::run("finding out which modules need which", depmod)?;
        let archive_text = archive.to_str().context("the path is not text")?;
        let version = step::output("dpkg-deb", &["--field", archive_text, "Version"])
            .context("the package has no version")?;
        fs::write(new.join("version"), format!("{name} {version}\n"))?;
        fs::remove_file(&archive)?;
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        fs::rename(&new, &folder)?;
        self.cached().with_context(|| format!("{package} has no kernel {name}, or no modules"))
    }
}

/// Return one of apt's programs, on these lists or on the machine's own.
fn apt(lists: Option<&Lists>, program: &str, words: &[&str], folder: &Path) -> Command {
    match lists {
        Some(lists) => lists.command(program, words, folder),
        None => {
            let mut apt = Command::new(program);
            apt.arg("-q").args(words).current_dir(folder);
            apt
        }
    }
}

fn package_name(kernel: &str) -> String {
    format!("linux-image-{kernel}")
}

/// Return the one file in `folder` with this extension.
fn find(folder: &Path, extension: &str) -> Result<PathBuf> {
    let files = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut found = files.filter(|path| path.extension().is_some_and(|e| e == extension));
    found.next().with_context(|| format!("no .{extension} in {}", folder.display()))
}

/// Return all numbers in a name, to order patch releases: 6.12.99 before 6.12.100.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

impl Kernel {
    /// Return module files in the order in which they are to be loaded:
    /// each after its dependencies. A module that is built into the kernel has none.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let modprobe = setup::program("modprobe").context("there is no modprobe")?;
        let root = self.root.to_str().context("the path is not text")?;
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut command = Command::new(&modprobe);
            command.arg("--dirname").arg(&self.root).args(["--set-version", &self.name]);
            let output = command.args(["--show-depends", name]).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "Linux {} has no module {name}", self.version);
            // `insmod PATH OPTIONS`
            let paths = said.lines().filter_map(|line| {
                let path = line.strip_prefix("insmod ")?.strip_prefix(root)?;
                Some(self.root.join(path.split_whitespace().next()?.trim_start_matches('/')))
            });
            for path in paths {
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }
}

/// A kernel as something that `cargo xtask setup` installs.
pub struct Component(pub Package, pub &'static str);

impl setup::Component for Component {
    fn name(&self) -> &'static str {
        self.1
    }

    fn present(&self) -> Option<String> {
        self.0.cached().map(|kernel| kernel.version)
    }

    fn install(&self) -> Result<()> {
        self.0.fetch().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::{Release, numbers};

    #[test]
    fn a_series_has_two_numbers() {
        assert_eq!("6.12".parse(), Ok(Release { major: 6, minor: 12 }));
        for wrong in ["6", "6.", "6.1.2", "six.one", ""] {
            assert!(wrong.parse::<Release>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn patch_releases_are_compared_as_numbers() {
        let names =
            ["linux-image-6.12.99+deb12-cloud-amd64", "linux-image-6.12.100+deb12-cloud-amd64"];
        assert!(numbers(names[0]) < numbers(names[1]));
    }
}
