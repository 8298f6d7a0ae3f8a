//! System packages, by Debian's names.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::toolchain::LLVM as LLVM_MAJOR;
use crate::step;

/// Time limit for another program to hold the package manager's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);
/// Interval between two checks of it.
const LOCK_PAUSE: Duration = Duration::from_secs(5);

/// Check for a package without asking the package manager.
enum Probe {
    /// A program in PATH.
    Program(&'static str),
    File(&'static str),
}

impl Probe {
    fn found(&self) -> bool {
        match self {
            Probe::File(path) => Path::new(path).exists(),
            Probe::Program(name) => program(name).is_some(),
        }
    }
}

/// Return the path of a program:
/// in PATH, or where Debian has ip and ethtool, which is not in every user's PATH.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A group of packages.
pub struct Packages {
    name: &'static str,
    needed: &'static [(Probe, &'static str)],
}

/// LLVM's libraries and tools, for bpf-linker and for stripping the object.
pub const LLVM: Packages = Packages {
    name: "LLVM",
    needed: &[
        (Probe::File("/usr/lib/llvm-22/include/llvm-c/Core.h"), "llvm-22-dev"),
        (Probe::File("/usr/lib/llvm-22/lib/libPolly.a"), "libpolly-22-dev"),
        (Probe::File("/usr/include/zstd.h"), "libzstd-dev"),
        (Probe::File("/usr/include/zlib.h"), "zlib1g-dev"),
        (Probe::Program("g++"), "g++"),
    ],
};

/// Tools to make namespaces.
pub const NETWORK: Packages = Packages {
    name: "network programs",
    needed: &[
        (Probe::Program("ip"), "iproute2"),
        (Probe::Program("ethtool"), "ethtool"),
        (Probe::Program("iptables"), "iptables"),
        (Probe::Program("nsenter"), "util-linux"),
    ],
};

/// Tools to make captures, and to compare with the output of `ws-guard inspect`.
pub const CAPTURES: Packages = Packages {
    name: "captures",
    needed: &[
        (Probe::Program("tshark"), "tshark"),
        (Probe::Program("dumpcap"), "wireshark-common"),
    ],
};

/// Browser for the page of `ws-guard inspect --html`.
pub const BROWSER: Packages =
    Packages { name: "browser", needed: &[(Probe::Program("chromium"), "chromium")] };

/// Bus of the servers' topics.
/// Not `redis-server`, which starts a service: this package has the program, under another name.
pub const REDIS: Packages =
    Packages { name: "Redis", needed: &[(Probe::Program("redis-check-rdb"), "redis-tools")] };

/// Compiler of Protocol Buffers, for a crate of sockudo's server.
pub const PROTOBUF: Packages = Packages {
    name: "Protocol Buffers",
    needed: &[
        (Probe::Program("protoc"), "protobuf-compiler"),
        (Probe::File("/usr/include/google/protobuf/timestamp.proto"), "libprotobuf-dev"),
    ],
};

/// Tool that makes a server's clock jump, and no other's.
pub const FAKETIME: Packages =
    Packages { name: "clocks", needed: &[(Probe::Program("faketime"), "faketime")] };

/// Return the path of its library.
pub fn faketime() -> Option<PathBuf> {
    let libraries = fs::read_dir("/usr/lib").ok()?.flatten();
    let places = libraries.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    places.into_iter().find(|path| path.exists())
}

/// Libraries that the unpacked PostgreSQL is linked with and that few systems have.
pub const POSTGRES_LIBRARIES: Packages = Packages {
    name: "libraries of PostgreSQL",
    needed: &[
        (Probe::File("/usr/share/doc/libpq5"), "libpq5"),
        (Probe::File("/usr/share/doc/libldap-2.5-0"), "libldap-2.5-0"),
        (Probe::File("/usr/share/doc/libxslt1.1"), "libxslt1.1"),
    ],
};

/// Terminal in which tests use `ws-guard top`, as a person does.
pub const TERMINAL: Packages =
    Packages { name: "terminal", needed: &[(Probe::Program("tmux"), "tmux")] };

/// Tools to boot other kernels.
pub const MACHINES: Packages = Packages {
    name: "virtual machines",
    needed: &[
        (Probe::Program("qemu-system-x86_64"), "qemu-system-x86"),
        (Probe::Program("busybox"), "busybox-static"),
        (Probe::Program("modprobe"), "kmod"),
    ],
};

/// Tools to make the container image.
/// `musl-tools` has the C compiler for a crate with C in it.
pub const IMAGE: Packages = Packages {
    name: "image building",
    needed: &[
        (Probe::Program("buildah"), "buildah"),
        (Probe::Program("musl-gcc"), "musl-tools"),
        (Probe::Program("strip"), "binutils"),
        (Probe::Program("setcap"), "libcap2-bin"),
    ],
};

/// Checkers of a Debian package.
pub const PACKAGE_CHECKS: Packages = Packages {
    name: "checks of packages",
    needed: &[
        (Probe::Program("lintian"), "lintian"),
        (Probe::Program("piuparts"), "piuparts"),
        (Probe::Program("debootstrap"), "debootstrap"),
        (Probe::Program("systemd-nspawn"), "systemd-container"),
    ],
};

/// Tools to compile for arm64, and to run the result.
pub const ARM64: Packages = Packages {
    name: "arm64",
    needed: &[
        (Probe::Program("aarch64-linux-gnu-gcc"), "gcc-aarch64-linux-gnu"),
        (Probe::File("/usr/aarch64-linux-gnu/include/stdio.h"), "libc6-dev-arm64-cross"),
        (Probe::Program("qemu-system-aarch64"), "qemu-system-arm"),
    ],
};

/// Tools to render manifests and run their containers.
/// Any `kubectl` does, even Debian's.
pub const CONTAINERS: Packages = Packages {
    name: "containers",
    needed: &[(Probe::Program("kubectl"), "kubernetes-client"), (Probe::Program("runc"), "runc")],
};

/// Libraries of the unpacked HAProxy, and nginx's Lua, that few systems have.
pub const PROXY_LIBRARIES: Packages = Packages {
    name: "libraries of proxies",
    needed: &[
        (Probe::File("/usr/share/doc/liblua5.3-0"), "liblua5.3-0"),
        (Probe::File("/usr/share/doc/libopentracing-c-wrapper0"), "libopentracing-c-wrapper0"),
        (Probe::File("/usr/share/doc/libluajit2-5.1-2"), "libluajit2-5.1-2"),
        (Probe::File("/usr/share/doc/libpcre3"), "libpcre3"),
    ],
};

/// Tools to install the servers in Python, JavaScript and Go.
pub const PYTHON: Packages = Packages {
    name: "Python",
    needed: &[
        (Probe::Program("python3"), "python3"),
        (Probe::File("/usr/share/doc/python3-venv"), "python3-venv"),
    ],
};
pub const NODE: Packages = Packages {
    name: "Node.js",
    needed: &[(Probe::Program("node"), "nodejs"), (Probe::Program("npm"), "npm")],
};
pub const GO: Packages = Packages {
    name: "Go",
    needed: &[
        (Probe::Program("go"), "golang-go"),
        (
            Probe::File("/usr/share/gocode/src/github.com/gorilla/websocket/conn.go"),
            "golang-github-gorilla-websocket-dev",
        ),
    ],
};

impl Packages {
    fn missing(&self) -> Vec<&'static str> {
        let missing = self.needed.iter().filter(|(probe, _)| !probe.found());
        missing.map(|(_, package)| *package).collect()
    }
}

impl super::Component for Packages {
    fn name(&self) -> &'static str {
        self.name
    }

    fn present(&self) -> Option<String> {
        // An LLVM named by LLVM_PREFIX serves for all of its group.
        if self.name == LLVM.name && std::env::var_os("LLVM_PREFIX").is_some() {
            return llvm_prefix().map(|prefix| prefix.display().to_string());
        }
        let packages: Vec<&str> = self.needed.iter().map(|(_, package)| *package).collect();
        self.missing().is_empty().then(|| packages.join(" "))
    }

    fn install(&self) -> Result<()> {
        apt_install(&self.missing())
    }
}

/// Return LLVM's prefix: `LLVM_PREFIX`, or where Debian and its relatives put it.
pub fn llvm_prefix() -> Option<PathBuf> {
    let default = || format!("/usr/lib/llvm-{LLVM_MAJOR}").into();
    let prefix = std::env::var_os("LLVM_PREFIX").map_or_else(default, PathBuf::from);
    prefix.join("bin/llvm-objcopy").exists().then_some(prefix)
}

/// Install Debian packages; fetch the lists again when a package is unknown.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    if step::output("apt-get", &["--version"]).is_none() {
        bail!(
            "there is no apt-get here: install what Debian calls {} by other means",
            packages.join(", ")
        );
    }
    make_known(packages)?;
    once_unlocked(|| {
        let mut install = apt(&["install", "-q", "-y", "--no-install-recommends"])?;
        install.args(packages);
        step::run(&format!("installing {}", packages.join(" ")), install)
    })
}

fn make_known(packages: &[&str]) -> Result<()> {
    if packages.iter().all(|package| known(package)) {
        return Ok(());
    }
    apt_update()?;
    if let Some(package) = packages.iter().find(|package| !known(package)) {
        bail!(
            "no package source of this system has {package}: Debian 12 has it in its security suite"
        );
    }
    Ok(())
}

/// Unpack a Debian package in `folder`, uninstalled; replace earlier content.
pub fn apt_unpack(package: &str, folder: &Path) -> Result<()> {
    make_known(&[package])?;
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-q", package]).current_dir(folder);
    step::run(&format!("fetching {package}"), download)?;
    let archive = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
    let archive = archive.with_context(|| format!("apt-get fetched no {package}"))?;
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(&archive).arg(folder);
    step::run(&format!("unpacking {package}"), unpack)?;
    fs::remove_file(&archive).with_context(|| archive.display().to_string())
}

/// Fetch the lists of packages again.
pub fn apt_update() -> Result<()> {
    once_unlocked(|| step::run("fetching the package lists", apt(&["update", "-q"])?))
}

/// Run apt once no other program holds one of its locks.
/// Holders are, for example, the automatic upgrades of a fresh machine. apt waits for one of the
/// locks only (`DPkg::Lock::Timeout`).
fn once_unlocked(attempt: impl Fn() -> Result<()>) -> Result<()> {
    wait_for_lock(attempt, LOCK_PATIENCE, LOCK_PAUSE)
}

fn wait_for_lock(
    attempt: impl Fn() -> Result<()>,
    patience: Duration,
    pause: Duration,
) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_locked(&error.to_string()) && start.elapsed() < patience => {
                let left = patience.saturating_sub(start.elapsed()).as_secs();
                eprintln!(
                    "  another program holds the package manager's lock; waiting, at most {left} s more"
                );
                thread::sleep(pause);
            }
            Err(error) if is_locked(&error.to_string()) => {
                return Err(error.context("another program holds the package manager's lock for too long: wait until it ends, and run `cargo xtask setup` again"));
            }
            ended => return ended,
        }
    }
}

/// Recognise messages of apt and dpkg about a lock held by another process.
fn is_locked(output: &str) -> bool {
    ["Could not get lock", "Unable to lock", "Unable to acquire the dpkg", "is locked by another"]
        .iter()
        .any(|said| output.contains(said))
}

fn known(package: &str) -> bool {
    step::output("apt-cache", &["show", "--no-all-versions", package]).is_some()
}

fn apt(args: &[&str]) -> Result<Command> {
    let root = nix::unistd::geteuid().is_root();
    let mut command = Command::new(if root { "env" } else { "sudo" });
    // In English, by which a lock is told from other failures.
    command.args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "apt-get"]).args(args);
    if !root {
        step::output("sudo", &["--version"])
            .context("installing packages needs root, and there is no sudo: run it as root")?;
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LOCKED: &str =
        "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7";

    /// Simulate a package manager whose lock is free from the `free`th attempt on;
    /// return the number of attempts.
    fn tried(free: u32, patience: Duration) -> (u32, Result<()>) {
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            let mut shell = Command::new("sh");
            let script = format!("echo '{LOCKED}' >&2; exit 100");
            shell.args(["-c", if attempts.get() < free { &script } else { "exit 0" }]);
            step::run("installing", shell)
        };
        let ended = wait_for_lock(attempt, patience, Duration::from_millis(1));
        (attempts.get(), ended)
    }

    #[test]
    fn a_lock_is_waited_for() {
        let (attempts, ended) = tried(3, LOCK_PATIENCE);
        assert!(attempts == 3 && ended.is_ok(), "{attempts}: {ended:?}");
        let (_, ended) = tried(u32::MAX, Duration::from_millis(20));
        assert!(ended.unwrap_err().to_string().contains("run `cargo xtask setup` again"));
    }

    #[test]
    fn other_failures_are_not() {
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            bail!("E: Unable to locate package nonsense")
        };
        assert!(wait_for_lock(attempt, LOCK_PATIENCE, LOCK_PAUSE).is_err());
        assert_eq!(attempts.get(), 1);
    }
}
