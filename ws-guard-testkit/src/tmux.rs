//! Terminal of a user, in tmux: keys in, the screen out.
use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

const TMUX: &str = "tmux";
/// Single pane.
const PANE: &str = "=ws-guard:0.0";
/// Time-out of expected output, on a machine under load.
const WAIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Marker of the shell's return.
/// The shell assembles it, so that it is not found in the command itself.
const BACK: &str = "back-42";

/// tmux server with one terminal and a shell in it; killed when dropped.
pub struct Tmux {
    /// Folder of its socket.
    dir: TempDir,
}

impl Tmux {
    /// Return the reason why tests in a terminal cannot run here.
    pub fn missing() -> Option<String> {
        let found = Command::new(TMUX).arg("-V").output().is_ok_and(|out| out.status.success());
        (!found).then(|| "there is no tmux: `cargo xtask setup` installs it".into())
    }

    /// Start a terminal of this size.
    pub fn start(width: u16, height: u16) -> Result<Tmux> {
        let tmux = Tmux { dir: TempDir::with_prefix("wsg-tmux-")? };
        let (width, height) = (width.to_string(), height.to_string());
        let session = ["new-session", "-d", "-s", "ws-guard", "-x", &width, "-y", &height];
        let shell = ["env", "-u", "NO_COLOR", "PS1=$ ", "sh"];
        tmux.ask(&[&session[..], &shell].concat())?;
        // Not the terminal of the person running the tests, and no line for tmux itself.
        tmux.ask(&["set-option", "-g", "status", "off"])?;
        tmux.ask(&["resize-window", "-t", "ws-guard", "-x", &width, "-y", &height])?;
        Ok(tmux)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(TMUX);
        command.args(["-u", "-f", "/dev/null", "-S"]).arg(self.socket()).args(words);
        let output = command.env_remove("TMUX").output().context("running tmux")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {words:?}: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Type a command line, each word quoted, and Enter.
    pub fn run(&self, words: &[&str]) -> Result<()> {
        let quoted: Vec<String> =
            words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        self.type_text(&format!("clear; {}", quoted.join(" ")))?;
        self.press("Enter")
    }

    /// Press a key by its name in tmux, such as `Enter`, `Down`, `C-c`.
    pub fn press(&self, key: &str) -> Result<()> {
        self.ask(&["send-keys", "-t", PANE, key]).map(drop)
    }

    /// Type text unchanged.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.ask(&["send-keys", "-t", PANE, "-l", text]).map(drop)
    }

    /// Return the text on the screen, without colours.
    pub fn screen(&self) -> Result<String> {
        self.ask(&["capture-pane", "-p", "-t", PANE])
    }

    /// Return the screen with the escape sequences of its colours.
    pub fn screen_with_colours(&self) -> Result<String> {
        self.ask(&["capture-pane", "-p", "-e", "-t", PANE])
    }

    fn value(&self, name: &str) -> Result<String> {
        let format = format!("#{{{name}}}");
        Ok(self.ask(&["display-message", "-p", "-t", PANE, &format])?.trim().to_owned())
    }

    /// Return the pid of the program that the shell runs.
    pub fn running(&self) -> Result<Option<i32>> {
        let shell = self.value("pane_pid")?;
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        children.split_whitespace().next().map(str::parse).transpose().context("a pid")
    }

    /// Wait until the screen satisfies `wanted`, and return it.
    ///
    /// # Errors
    /// If that takes too long; the message has the screen.
    pub fn wait(&self, what: &str, mut wanted: impl FnMut(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + WAIT;
        loop {
            let screen = self.screen()?;
            if wanted(&screen) {
                return Ok(screen);
            }
            if Instant::now() > deadline {
                bail!("{what}: not within {WAIT:?} on the screen\n{screen}");
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Wait until the screen has this text, and return the screen.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        self.wait(text, |screen| screen.contains(text))
    }

    /// Wait until the program has ended, and check the state of the terminal.
    /// It has to suit a shell: the normal screen, a cursor, lines and echo.
    pub fn ensure_given_back(&self) -> Result<()> {
        let deadline = Instant::now() + WAIT;
        while self.running()?.is_some() {
            ensure!(Instant::now() < deadline, "it still runs:\n{}", self.screen()?);
            thread::sleep(LOOK_AGAIN);
        }
        self.type_text("clear; stty -a; echo back-$((6*7))")?;
        self.press("Enter")?;
        let screen = self.wait_for(BACK)?;
        for flag in ["icanon", "echo", "isig", "icrnl"] {
            let on = screen.split_whitespace().any(|word| word == flag);
            ensure!(on, "{flag} is off:\n{screen}");
        }
        ensure!(self.value("alternate_on")? == "0", "still the alternate screen");
        ensure!(self.value("cursor_flag")? == "1", "no cursor");
        Ok(())
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        if let Err(error) = self.ask(&["kill-server"]) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}
