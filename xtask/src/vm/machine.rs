//! Kernels booted in QEMU, and the output of their jobs.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use super::{Initramfs, Kernel};
use crate::{image::Architecture, step};

/// Script of the machine's first process before the first job.
const INIT: &str = include_str!("init.sh");
/// Environment variable with QEMU's accelerator, such as `kvm`.
/// Not chosen automatically where there is one: on a virtual machine it may exist and hang.
const ACCELERATOR: &str = "WS_GUARD_VM_ACCELERATOR";
/// Time limit of booting, which takes 3 s under emulation on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const MEMORY: &str = "1536M";
/// Number of console lines that are shown when a machine dies.
const CONSOLE_LINES: usize = 60;

/// Work that is run in a machine.
pub struct Job {
    pub name: String,
    /// Time limit of the machine.
    pub limit: Duration,
    pub environment: Vec<(&'static str, String)>,
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// Result of a job.
pub struct Outcome {
    pub name: String,
    pub lines: Vec<String>,
    pub time: Duration,
    /// `None` when the machine died before the job had ended, or had begun.
    pub status: Option<i32>,
}

impl Outcome {
    fn new(name: &str) -> Outcome {
        Outcome { name: name.into(), lines: Vec::new(), time: Duration::ZERO, status: None }
    }
}

/// Run jobs one after the other on `kernel`, in a machine with these files.
/// Each line that they print goes to `each` as it comes.
///
/// Outcomes are in the order of the jobs. When the machine dies, by a panic or by taking too long,
/// the last lines of its console are added to the job that ran.
pub fn run(
    kernel: &Kernel,
    mut files: Initramfs,
    jobs: &[Job],
    mut each: impl FnMut(&str),
) -> Result<Vec<Outcome>> {
    let folder = tools::target().join("vm");
    let archive = folder.join(format!("initramfs-{}", kernel.name));
    let console = folder.join(format!("console-{}", kernel.name));
    files.add("/init", script(jobs).into_bytes());
    files.write(&archive)?;
    drop(files);
    let mut outcomes: Vec<Outcome> = jobs.iter().map(|job| Outcome::new(&job.name)).collect();
    let mut running: Option<(usize, Instant)> = None;
    let mut of_no_job = Vec::new();
    let limit = jobs.iter().map(|job| job.limit).sum::<Duration>() + BOOT_LIMIT;
    let machine = step::stream(&mut qemu(kernel, &archive, &console, limit), |line| {
        let line = line.trim_end();
        match (parse(line), running) {
            (Some(Event::Job(name)), _) => {
                let found = outcomes.iter().position(|outcome| outcome.name == name);
                running = found.map(|job| (job, Instant::now()));
            }
            (Some(Event::Exit(status)), Some((job, start))) => {
                outcomes[job].status = Some(status);
                outcomes[job].time = start.elapsed();
                running = None;
            }
            (None, Some((job, start))) => {
                outcomes[job].time = start.elapsed();
                outcomes[job].lines.push(line.to_owned());
                each(line);
            }
            _ => of_no_job.push(line.to_owned()),
        }
    })?;
    fs::remove_file(&archive).context("removing the archive")?;
    if let Some(died) = outcomes.iter_mut().find(|outcome| outcome.status.is_none()) {
        died.lines.push(format!("the machine ended with {}", machine.status));
        died.lines.extend(of_no_job);
        died.lines.push("Its console:".into());
        died.lines.extend(last_lines(&console));
    }
    Ok(outcomes)
}

/// Return the script of the first process.
fn script(jobs: &[Job]) -> String {
    let mut script = INIT.to_owned();
    for job in jobs {
        script += &format!("job {} {} env", quoted(&job.name), job.limit.as_secs());
        for (name, value) in &job.environment {
            script += &format!(" {name}={}", quoted(value));
        }
        script += &format!(" {}", quoted(&job.program.to_string_lossy()));
        for argument in &job.arguments {
            script += &format!(" {}", quoted(argument));
        }
        script += "\n";
    }
    script + "poweroff -f\n"
}

/// Quote one word of a shell's command line.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn qemu(kernel: &Kernel, archive: &Path, console: &Path, limit: Duration) -> Command {
    // `timeout` also ends hangs in the machine's firmware.
    let mut command = Command::new("timeout");
    // In the foreground: an interrupt ends the machine too.
    command.args(["--foreground", "--kill-after=10", &limit.as_secs().to_string()]);
    match kernel.architecture {
        Architecture::Amd64 => command.arg("qemu-system-x86_64"),
        // A board that exists only in QEMU, with one serial port.
        Architecture::Arm64 => command.args(["qemu-system-aarch64", "-machine", "virt"]),
    };
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    let own = kernel.architecture == Architecture::HOST;
    let accelerator = std::env::var(ACCELERATOR).ok().filter(|_| own);
    command.args(["-accel", accelerator.as_deref().unwrap_or("tcg")]);
    command.args(["-smp", "2", "-m", MEMORY]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    let words = match kernel.architecture {
        Architecture::Amd64 => {
            command.args(["-cpu", "max", "-serial", &format!("file:{}", console.display())]);
            "console=ttyS0 no_timer_check jobs=ttyS1"
        }
        Architecture::Arm64 => {
            // The default method to authenticate pointers takes half of the time under emulation.
            command.args(["-cpu", "max,pauth-impdef=on"]);
            "console=ttyAMA0 jobs=ttyAMA0"
        }
    };
    command.args(["-append", &format!("{words} quiet panic=-1 rdinit=/init")]);
    command.args(["-serial", "stdio"]);
    command
}

/// Report of the first process on a job.
#[derive(Debug, PartialEq, Eq)]
enum Event<'a> {
    Job(&'a str),
    Exit(i32),
}

fn parse(line: &str) -> Option<Event<'_>> {
    if let Some(name) = line.strip_prefix("@job ") {
        return Some(Event::Job(name));
    }
    let (_, status) = line.strip_prefix("@exit ")?.rsplit_once(' ')?;
    status.parse().ok().map(Event::Exit)
}

fn last_lines(console: &Path) -> Vec<String> {
    let bytes = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(CONSOLE_LINES);
    lines[from..].iter().map(|line| format!("  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Event, Job, parse, script};

    #[test]
    fn a_job_is_one_line_of_the_script() {
        let job = Job {
            name: "guard".into(),
            limit: std::time::Duration::from_secs(7),
            environment: vec![("A", "it's".into())],
            program: "/a b/guard".into(),
            arguments: vec!["--exact".into()],
        };
        let script = script(&[job]);
        let lines: Vec<&str> = script.lines().rev().take(2).collect();
        assert_eq!(lines[1], r"job 'guard' 7 env A='it'\''s' '/a b/guard' '--exact'");
        assert_eq!(lines[0], "poweroff -f");
    }

    #[test]
    fn what_the_first_process_says_is_told_from_what_tests_say() {
        assert_eq!(parse("@job guard"), Some(Event::Job("guard")));
        assert_eq!(parse("@exit guard 101"), Some(Event::Exit(101)));
        assert_eq!(parse("test packets ... ok"), None);
    }
}
