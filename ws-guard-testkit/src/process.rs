//! Child processes with output captured line by line, ended when dropped.
use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Maximum time from SIGTERM to the end of a process, before SIGKILL.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    closed: u8,
}

type Shared = Arc<(Mutex<Output>, Condvar)>;

/// Running child; standard output and standard error are kept together, as lines.
pub struct Process {
    name: String,
    child: Child,
    output: Shared,
}

impl Process {
    /// Start `command`, called `name` in messages.
    pub fn spawn(name: &str, mut command: Command) -> Result<Process> {
        // A group of its own: Ctrl-C in the terminal reaches only the parent, which then ends the
        // process in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        let output = Shared::default();
        if let Some(stdout) = child.stdout.take() {
            capture(stdout, output.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            capture(stderr, output.clone());
        }
        Ok(Process { name: name.to_owned(), child, output })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Return its output so far.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.output).lines.clone()
    }

    /// Wait until a line satisfies `wanted`, and return its result.
    /// Earlier lines count too.
    ///
    /// # Errors
    /// If the time is up or the process closed its output; the message has its last lines.
    pub fn wait_for<T>(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut output = lock(&self.output);
        loop {
            if let Some(found) = output.lines[seen..].iter().find_map(|line| wanted(line)) {
                return Ok(found);
            }
            seen = output.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || output.closed == 2 {
                let why =
                    if left.is_zero() { "did not say in time" } else { "ended before it said" };
                let from = seen.saturating_sub(10);
                let last = output.lines[from..].join("\n");
                return Err(anyhow!(
                    "{} {why} what was waited for; its last lines:\n{last}",
                    self.name
                ));
            }
            output =
                self.output.1.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Return the exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Send SIGTERM, and SIGKILL after 5 s; all output is captured afterwards.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                self.drain(deadline);
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Wait for the capturing threads.
    /// A grandchild that keeps the pipe open may outlast the child.
    fn drain(&self, deadline: Instant) {
        let mut output = lock(&self.output);
        while output.closed < 2 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            output =
                self.output.1.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Reaped by `wait`; an error means that it is gone already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn lock(output: &Shared) -> MutexGuard<'_, Output> {
    output.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn capture(stream: impl Read + Send + 'static, output: Shared) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { break };
            lock(&output).lines.push(String::from_utf8_lossy(&line).into_owned());
            output.1.notify_all();
        }
        lock(&output).closed += 1;
        output.1.notify_all();
    });
}
