//! Commands run as steps that a person can follow.
use std::{
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Interval of progress lines of a running step without a terminal.
const STILL: Duration = Duration::from_secs(30);
/// Lines of a failed command that are shown.
const LAST_LINES: usize = 40;

/// Result of a command.
pub struct Outcome {
    pub status: ExitStatus,
    /// Standard output and standard error, as lines.
    pub lines: Vec<String>,
}

/// Run `command` as the step `what`, with progress; show its output if it fails.
pub fn run(what: &str, mut command: Command) -> Result<()> {
    let start = Instant::now();
    let progress = Progress::new(what);
    // Without its environment, which Debug would print too.
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let described = words.join(" ");
    let outcome = stream(&mut command, |line| progress.line(line))?;
    if outcome.status.success() {
        progress.done(start.elapsed());
        return Ok(());
    }
    progress.failed();
    let from = outcome.lines.len().saturating_sub(LAST_LINES);
    bail!(
        "{what}: `{described}` ended with {}:\n{}",
        outcome.status,
        outcome.lines[from..].join("\n")
    )
}

/// Run `command`, pass each line of its output to `each`, and keep all of them.
pub fn stream(command: &mut Command, mut each: impl FnMut(&str)) -> Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("running {command:?}"))?;
    let (sender, lines) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, sender);
    }
    let lines: Vec<String> = lines.into_iter().inspect(|line| each(line)).collect();
    let status = child.wait().context("waiting for the command")?;
    Ok(Outcome { status, lines })
}

fn forward(stream: impl Read + Send + 'static, lines: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}

/// Return the standard output of a command that should succeed at once, or `None`.
pub fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A spinner on a terminal; elsewhere lines at start and end, and occasional ones.
struct Progress {
    what: String,
    spinner: ProgressBar,
    last: std::cell::Cell<Instant>,
}

impl Progress {
    fn new(what: &str) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let spinner = if terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg:.dim}")
        {
            spinner.set_style(style);
        }
        spinner.set_prefix(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        if !terminal {
            eprintln!("  {what} ...");
        }
        Progress { what: what.to_owned(), spinner, last: Instant::now().into() }
    }

    fn line(&self, line: &str) {
        self.spinner.set_message(line.trim().to_owned());
        if self.spinner.is_hidden() && self.last.get().elapsed() >= STILL {
            self.last.set(Instant::now());
            eprintln!("  {} goes on: {}", self.what, line.trim());
        }
    }

    fn done(&self, time: Duration) {
        self.spinner.finish_and_clear();
        eprintln!("  {}: done in {:.1} s", self.what, time.as_secs_f64());
    }

    fn failed(&self) {
        self.spinner.finish_and_clear();
        eprintln!("  {}: FAILED", self.what);
    }
}
