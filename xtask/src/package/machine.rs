//! A Debian with systemd and the package, in a container with its own network.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ws_guard_testkit::{netns::Namespace, tools};

use super::tools::{SUITE, archive_of_packages};
use crate::step;

const PATIENCE: Duration = Duration::from_secs(60);

/// A running container; it ends when this is dropped.
pub struct Machine {
    container: Child,
    /// Its first process, by its id outside.
    init: Pid,
    root: PathBuf,
    bpffs: PathBuf,
    // Removed last.
    _folder: tempfile::TempDir,
}

impl Machine {
    /// Boot a copy of a fresh Debian in `network`, with `files` in its folder `/root`.
    pub fn boot(network: &Namespace, files: &[&Path]) -> Result<Machine> {
        let folder = tempfile::tempdir_in(tools::target())?;
        let (root, bpffs) = (folder.path().join("root"), folder.path().join("bpf"));
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--reflink=auto"]).arg(tree()?).arg(&root);
        step::run("copying a fresh Debian", copy)?;
        for file in files {
            let name = file.file_name().context("a file without a name")?;
            fs::copy(file, root.join("root").join(name))
                .with_context(|| file.display().to_string())?;
        }
        fs::create_dir(&bpffs)?;
        // For root alone, as systemd mounts it.
        mount(None::<&str>, &bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .context("mounting a BPF file system")?;
        let log = fs::File::create(folder.path().join("console"))?;
        let mut nspawn = Command::new("systemd-nspawn");
        nspawn.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--capability=all"]);
        nspawn.args(["--system-call-filter=bpf perf_event_open", "--console=pipe", "--directory"]);
        nspawn.arg(&root).arg("--bind").arg(format!("{}:/sys/fs/bpf", bpffs.display()));
        nspawn.arg("--network-namespace-path").arg(network.path());
        nspawn.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let container = nspawn.spawn().context("running systemd-nspawn")?;
        let init = Pid::from_raw(0);
        let mut machine = Machine { container, init, root, bpffs, _folder: folder };
        machine.init = machine.find_init()?;
        machine.eventually("systemd has started", |machine| {
            let state = machine.output("systemctl is-system-running")?;
            // Without hardware some units of the tree fail, which is irrelevant here.
            Ok(["running", "degraded"].contains(&state.trim()))
        })?;
        Ok(machine)
    }

    /// Find the container's first process, the child of nspawn.
    fn find_init(&mut self) -> Result<Pid> {
        let children = format!("/proc/{0}/task/{0}/children", self.container.id());
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.container.try_wait()? {
                bail!("systemd-nspawn ended with {status}:\n{}", self.console());
            }
            let text = fs::read_to_string(&children).unwrap_or_default();
            let named = |pid: &i32| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                name.trim() == "systemd"
            };
            let found = text.split_whitespace().filter_map(|pid| pid.parse().ok()).find(named);
            if let Some(pid) = found {
                return Ok(Pid::from_raw(pid));
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("the container did not start:\n{}", self.console())
    }

    fn console(&self) -> String {
        let path = self.root.with_file_name("console");
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn command(&self, script: &str) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["--all", "--target", &self.init.to_string(), "/usr/bin/env", "-i"]);
        enter.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]);
        enter.args(["sh", "-c", script]).stdin(Stdio::null());
        enter
    }

    /// Return the output of a script in it, whether it succeeds or not.
    pub fn output(&self, script: &str) -> Result<String> {
        let output = self.command(script).output().context("entering the container")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Run a script in it that has to succeed.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.command(script).output().context("entering the container")?;
        let (said, errors) = (output.stdout, output.stderr);
        let (said, errors) = (String::from_utf8_lossy(&said), String::from_utf8_lossy(&errors));
        ensure!(
            output.status.success(),
            "`{script}` in the container ended with {}:\n{said}{errors}{}",
            output.status,
            self.output("journalctl --no-pager --lines 30 --output cat")?
        );
        Ok(said.into_owned())
    }

    pub fn eventually(
        &self,
        what: &str,
        mut done: impl FnMut(&Machine) -> Result<bool>,
    ) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !done(self)? {
            ensure!(
                Instant::now() < until,
                "{what}: not within {} s:\n{}",
                PATIENCE.as_secs(),
                self.console()
            );
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.init.as_raw() > 1 {
            // Its first process; all others end with it.
            let _ = kill(self.init, Signal::SIGKILL);
        } else {
            let _ = self.container.kill();
        }
        let _ = self.container.wait();
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
    }
}

/// Return a fresh Debian with systemd, made once.
fn tree() -> Result<PathBuf> {
    let tree = tools::root().join(format!("debian-{SUITE}"));
    if tree.exists() {
        return Ok(tree);
    }
    let making = tree.with_extension("new");
    if making.exists() {
        fs::remove_dir_all(&making)?;
    }
    fs::create_dir_all(tools::root())?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2", SUITE]);
    debootstrap.arg(&making).args(archive_of_packages());
    step::run("fetching a fresh Debian", debootstrap)?;
    fs::rename(&making, &tree).context("keeping the fresh Debian")?;
    Ok(tree)
}
