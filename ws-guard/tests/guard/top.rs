//! `ws-guard top`, used by a person in a terminal during a flood.
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use ws_guard_testkit::{
    client::Cut,
    flood::{Bounds, flood},
    netns::{Family, PairOptions},
    servers::Library,
    tmux::Tmux,
};

use crate::{
    process::Guard,
    stage::{Stage, eventually, source_name},
    talk::{pings, round_trip},
};

/// Duration that outlasts the test.
const LONG: Duration = Duration::from_secs(300);
/// Pace at which the flooder is never held for seconds.
const FAST: &str = "--pace 1000000B/s";
/// Pause after each 500 pings: the display needs no busy CPU.
const PAUSE: Duration = Duration::from_millis(50);
const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (200, 60);
/// Line of the first client, below the figures and the heading.
const FIRST: usize = 5;

/// The guard under a flood, and the names of its two clients.
struct Scene<'a> {
    stage: &'a Stage,
    flooder: String,
    calm: String,
    /// End point of the calm client.
    calm_end: String,
}

#[test]
fn top_shows_a_flood_and_does_what_keys_say() -> Result<()> {
    needs_root!();
    if let Some(reason) = Tmux::missing() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let options = PairOptions { clients: 2, ..PairOptions::default() };
    let stage = Stage::new(Library::TokioTungstenite, options, FAST)?;
    let (mut flooder, mut calm) = (stage.client(Family::V4, 0)?, stage.client(Family::V4, 1)?);
    calm.send(&pings(0, 3), &Cut::Whole)?;
    round_trip(&mut calm, "served")?;
    let scene = Scene {
        stage: &stage,
        flooder: source_name(Family::V4.client(0)),
        calm: source_name(Family::V4.client(1)),
        calm_end: calm.local().to_string(),
    };
    let stop = AtomicBool::new(false);
    let bounds = Bounds { pings: u64::MAX, time: LONG, pause: PAUSE };
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&mut flooder, bounds, || !stop.load(Relaxed)));
        let done = scene.play();
        stop.store(true, Relaxed);
        flooding.join().map_err(|_| anyhow!("the flood panicked"))??;
        done
    })?;
    calm.close()?;
    drop(flooder);
    stage.finish_one().map(drop)
}

impl Scene<'_> {
    fn play(&self) -> Result<()> {
        eventually("it is throttled", || self.stage.is_throttled(Family::V4, 0))?;
        self.once()?;
        for (size, end) in [(SMALL, "q"), (LARGE, "C-c")] {
            let tmux = Tmux::start(size.0, size.1)?;
            self.start(&tmux, &[])?;
            self.looks(&tmux, size)?;
            self.finds(&tmux)?;
            self.changes(&tmux)?;
            tmux.press(end)?;
            tmux.ensure_given_back()?;
        }
        let tmux = Tmux::start(SMALL.0, SMALL.1)?;
        self.without_colour(&tmux)?;
        self.without_daemon(&tmux)
    }

    /// Start it, and wait until it has rates.
    fn start(&self, tmux: &Tmux, before: &[&str]) -> Result<String> {
        let words = words(&self.stage.guard)?;
        let words: Vec<&str> =
            before.iter().copied().chain(words.iter().map(String::as_str)).collect();
        tmux.run(&words)?;
        tmux.wait("the flooder is first, with a rate", |screen| {
            let row = screen.lines().nth(FIRST).unwrap_or_default();
            row.starts_with(&self.flooder) && cell(row, 2).is_some_and(|rate| rate > 1.0)
        })
    }

    /// Check the screen before a key is pressed.
    fn looks(&self, tmux: &Tmux, (width, height): (u16, u16)) -> Result<()> {
        let screen = tmux.wait("an event", |screen| screen.contains("limit 30 in 10 s"))?;
        println!("{screen}");
        let lines: Vec<&str> = screen.lines().collect();
        ensure!(lines.len() == usize::from(height), "{} lines", lines.len());
        ensure!(lines.iter().any(|line| line.chars().count() > usize::from(width) / 2), "{screen}");
        let pid = self.stage.guard.ask::<Value>("status")?["pid"].to_string();
        for wanted in [&format!("daemon {pid}"), "2, 1 throttled", "2 clients", "1 paced", "q quit"]
        {
            ensure!(screen.contains(wanted), "{wanted:?} is missing:\n{screen}");
        }
        ensure!(lines[FIRST].contains("throttled") && lines[FIRST].contains('█'), "{screen}");
        ensure!(lines[FIRST + 1].starts_with(&self.calm), "{screen}");
        ensure!(screen.contains("HEARTBEAT") == (width > 100), "{screen}");
        ensure!(colours(&tmux.screen_with_colours()?) > 0, "it has colours");
        Ok(())
    }

    /// Check order, filter, pause and details.
    fn finds(&self, tmux: &Tmux) -> Result<()> {
        tmux.press("s")?;
        tmux.wait_for("WINDOW▼")?;
        tmux.press("S")?;
        tmux.wait_for("PINGS/S▼")?;
        tmux.type_text(&format!("/{}", self.calm))?;
        tmux.press("Enter")?;
        let screen = tmux.wait_for("1 client, 0 throttled")?;
        ensure!(
            screen.lines().nth(FIRST).is_some_and(|row| row.starts_with(&self.calm)),
            "{screen}"
        );
        tmux.press("Enter")?;
        let screen = tmux.wait_for("3 in all")?;
        ensure!(screen.contains(&self.calm_end) && screen.contains(" 1 connection "), "{screen}");
        tmux.press("Enter")?;
        tmux.wait_for("1 client, 0 throttled")?;
        tmux.press("Escape")?;
        tmux.wait_for("2 clients, 1 throttled")?;
        tmux.press("p")?;
        let paused = tmux.wait_for("PAUSED")?;
        tmux.press("p")?;
        tmux.wait("it goes on", |screen| !screen.contains("PAUSED") && screen != paused).map(drop)
    }

    /// Throttle, release and allow the calm client, which is still selected.
    fn changes(&self, tmux: &Tmux) -> Result<()> {
        let calm = &self.calm;
        let is_throttled = || self.stage.is_throttled(Family::V4, 1);
        tmux.press("t")?;
        tmux.wait_for(&format!("Throttle {calm} for 15 minutes?"))?;
        tmux.press("n")?;
        tmux.wait_for("nothing was changed")?;
        ensure!(!is_throttled()?, "a no is a no");
        tmux.type_text("ty")?;
        tmux.wait_for(&format!("{calm} is throttled until"))?;
        ensure!(is_throttled()?, "the daemon knows");
        tmux.wait_for("2 clients, 2 throttled")?;
        tmux.wait_for("by an operator")?;
        tmux.type_text("ry")?;
        tmux.wait_for(&format!("{calm} is free"))?;
        ensure!(!is_throttled()?, "the daemon knows");
        tmux.type_text("ay")?;
        tmux.wait_for(&format!("{calm} is allowed"))?;
        let allowed = self.stage.guard.ask::<Value>("allow")?;
        ensure!(allowed[0]["network"] == calm.as_str(), "{allowed}");
        // Refusals of the daemon are shown.
        tmux.type_text("ty")?;
        tmux.wait_for("is on the allowlist")?;
        self.stage.guard.run(&format!("allow {calm} --remove")).map(drop)
    }

    /// Check NO_COLOR, and the end by SIGTERM.
    fn without_colour(&self, tmux: &Tmux) -> Result<()> {
        self.start(tmux, &["env", "NO_COLOR=1"])?;
        let screen = tmux.screen_with_colours()?;
        ensure!(colours(&screen) == 0, "{screen:?}");
        let first = screen.lines().nth(FIRST).context("a row")?;
        ensure!(attributes(first, |code| code == 1) > 0, "throttled is bold instead: {first:?}");
        let top = tmux.running()?.context("it runs")?;
        nix::sys::signal::kill(Pid::from_raw(top), Signal::SIGTERM)?;
        tmux.ensure_given_back()
    }

    /// End the daemon: the pins are read, and nothing can be changed.
    fn without_daemon(&self, tmux: &Tmux) -> Result<()> {
        self.start(tmux, &[])?;
        self.stage.guard.signal_end()?;
        tmux.wait_for("no daemon: read-only, from the pins")?;
        tmux.press("t")?;
        let screen = tmux.wait_for("read-only: no daemon runs")?;
        ensure!(screen.contains(&self.flooder) && screen.contains(&self.calm), "{screen}");
        let once: Value = self.stage.guard.ask("top --once --interval 200ms")?;
        ensure!(
            once["pid"].is_null() && once["rows"][0]["source"] == self.flooder.as_str(),
            "{once}"
        );
        tmux.press("q")?;
        tmux.ensure_given_back()
    }

    /// Check the output for scripts.
    fn once(&self) -> Result<()> {
        let once: Value = self.stage.guard.ask("top --once")?;
        let first = &once["rows"][0];
        ensure!(
            first["source"] == self.flooder.as_str() && first["state"] == "throttled",
            "{once}"
        );
        ensure!(
            positive(&first["pings_per_second"]) && positive(&once["per_second"]["pings"]),
            "{once}"
        );
        ensure!(
            positive(&once["per_second"]["defused"]) && positive(&once["interval_seconds"]),
            "{once}"
        );
        ensure!(
            once["clients"] == 2 && once["throttled"] == 1 && once["connections"] == 2,
            "{once}"
        );
        let events = once["events"].as_array().context("events")?;
        ensure!(events.iter().any(|event| event["kind"] == "throttled"), "{once}");
        let calm: Value =
            self.stage.guard.ask(&format!("top --once --interval 200ms --filter {}", self.calm))?;
        ensure!(calm["rows"].as_array().is_some_and(|rows| rows.len() == 1), "{calm}");
        let table = self.stage.guard.run("top --once --interval 200ms --sort source --limit 1")?;
        let table = String::from_utf8(table)?;
        ensure!(table.contains("1 client, ") && table.contains("PINGS/S"), "{table}");
        Ok(())
    }
}

/// Return the command line of a view of this guard.
fn words(guard: &Guard) -> Result<Vec<String>> {
    let command = guard.command();
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words = words.map(|word| word.to_str().map(str::to_owned));
    words.chain([Some("top".into())]).collect::<Option<_>>().context("a word that is no text")
}

/// Return the number in a column of a row.
fn cell(row: &str, column: usize) -> Option<f64> {
    row.split_whitespace().nth(column)?.parse().ok()
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

/// Count the escape sequences that set a colour.
fn colours(screen: &str) -> usize {
    attributes(screen, |code| matches!(code, 30..=38 | 40..=48 | 90..=97 | 100..=107))
}

/// Count the escape sequences that set such an attribute of text.
fn attributes(screen: &str, wanted: impl Fn(u8) -> bool) -> usize {
    let codes = screen.split("\u{1b}[").skip(1).filter_map(|rest| rest.split_once('m'));
    let sets = |code: &str| code.parse().is_ok_and(&wanted);
    codes.filter(|(codes, _)| codes.split(';').any(sets)).count()
}
