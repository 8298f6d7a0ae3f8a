//! Results of a test run's steps.
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

/// Number of lines of a failed step that are shown where no test says what failed.
const LAST_LINES: usize = 60;
/// Number of tests that are named as the slowest.
const SLOWEST: usize = 10;
/// Maximum number of failed tests of a whole run that may run again.
/// More have a common cause.
const REPEATED: u64 = 3;
/// Number of lines of a failed test's reason that are repeated at the end.
const REASON: usize = 8;

/// Results of checks and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    /// Number of `passed` that failed at first.
    pub repeated: u64,
}

impl Tally {
    /// Add up the output of `cargo test`.
    /// A test that cannot run here prints `skipped: ` and the reason, and passes.
    pub fn of(lines: &[String]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            if let Some(result) = line.strip_prefix("test result: ") {
                tally.passed += number_before(result, " passed");
                tally.failed += number_before(result, " failed");
                tally.skipped += number_before(result, " ignored");
            }
        }
        let not_run = lines.iter().filter(|line| line.starts_with("skipped: ")).count() as u64;
        let not_run = not_run.min(tally.passed);
        Tally { passed: tally.passed - not_run, skipped: tally.skipped + not_run, ..tally }
    }

    /// Count failed tests as passed after their second run.
    pub fn repair(&mut self) {
        self.passed += self.failed;
        self.repeated += self.failed;
        self.failed = 0;
    }

    fn state(self) -> &'static str {
        match self {
            Tally { failed: 1.., .. } => "FAILED",
            Tally { repeated: 1.., .. } => "flaky",
            Tally { passed: 0, .. } => "skipped",
            _ => "ok",
        }
    }
}

/// Return the number right before `word`, as in `3 passed`.
fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().filter(|before| before.len() < text.len());
    before.and_then(|before| before.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

struct Row {
    name: String,
    time: Duration,
    tally: Tally,
    note: String,
}

/// The steps so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    /// Failures and their reasons, in short.
    failures: Vec<String>,
    /// The same of tests that passed at their second run.
    flaky: Vec<String>,
    /// Time of each test, with its step's name before its own.
    times: Vec<(Duration, String)>,
}

impl Report {
    /// Run something that passes or fails as a whole.
    pub fn check(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let mut tally = Tally { passed: 1, ..Tally::default() };
        if let Err(error) = run() {
            eprintln!("  {error:#}");
            self.failures.push(format!("{name}: {error:#}"));
            tally = Tally { failed: 1, ..Tally::default() };
        }
        self.add(name, start.elapsed(), tally);
    }

    /// Print the output of a step's failing tests, or else the end of all output.
    /// Keep a summary for the end, where it is found without searching. Return the number of
    /// entries kept.
    pub fn failed(&mut self, name: &str, lines: &[String]) -> usize {
        let from = lines.iter().position(|line| line == "failures:");
        let from = from.unwrap_or(lines.len().saturating_sub(LAST_LINES));
        for line in &lines[from..] {
            eprintln!("    {line}");
        }
        let reasons = reasons(&lines[from..]);
        if reasons.is_empty() {
            self.failures.push(format!("{name}: see above"));
        }
        let kept = reasons.len().max(1);
        self.failures.extend(reasons.into_iter().map(|reason| format!("{name}: {reason}")));
        kept
    }

    /// Check whether the tests that failed, and nothing else, may run once more.
    pub fn may_repeat(&self, tally: &Tally, failed: &[String]) -> bool {
        let before: u64 = self.rows.iter().map(|row| row.tally.repeated).sum();
        tally.failed == failed.len() as u64 && before + tally.failed <= REPEATED
    }

    /// Mark the last `entries` of [`Report::failed`] as passed at their second run.
    pub fn passed_again(&mut self, entries: usize) {
        let from = self.failures.len().saturating_sub(entries);
        self.flaky.extend(self.failures.drain(from..));
    }

    pub fn add(&mut self, name: &str, time: Duration, tally: Tally) {
        self.rows.push(Row { name: name.to_owned(), time, tally, note: String::new() });
    }

    /// Keep the times of a step's tests.
    pub fn timed(&mut self, step: &str, times: Vec<(String, Duration)>) {
        self.times.extend(times.into_iter().map(|(test, time)| (time, format!("{step}: {test}"))));
    }

    /// Return the slowest tests, the slowest of them first.
    fn slowest(&self) -> Vec<&(Duration, String)> {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by(|a, b| b.cmp(a));
        times.truncate(SLOWEST);
        times
    }

    pub fn skip(&mut self, name: &str, reason: &str) {
        eprintln!("  {name}: skipped: {reason}");
        self.add(name, Duration::ZERO, Tally { skipped: 1, ..Tally::default() });
        self.note(reason);
    }

    /// Print a note on the last step.
    pub fn note(&mut self, text: &str) {
        if let Some(row) = self.rows.last_mut() {
            row.note = text.to_owned();
        }
    }

    /// Print the table and the sum, and return the sum.
    pub fn print(&self) -> Tally {
        let mut table = Table::new();
        let header = ["STEP", "STATE", "SECONDS", "PASSED", "FAILED", "SKIPPED", "NOTE"];
        table.load_style(presets::NOTHING).set_header(header);
        let mut sum = Tally::default();
        let mut time = Duration::ZERO;
        for Row { name, time: took, tally, note } in &self.rows {
            let numbers = [tally.passed, tally.failed, tally.skipped].map(|n| n.to_string());
            let [passed, failed, skipped] = &numbers;
            let seconds = format!("{:.1}", took.as_secs_f64());
            table.add_row([name, tally.state(), &seconds, passed, failed, skipped, note]);
            sum.passed += tally.passed;
            sum.failed += tally.failed;
            sum.skipped += tally.skipped;
            time += *took;
        }
        for column in table.column_iter_mut().skip(2).take(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("\n{table}");
        if !self.times.is_empty() {
            println!("\nSlowest tests:");
        }
        for (time, test) in self.slowest() {
            println!("  {:>7.1} s  {test}", time.as_secs_f64());
        }
        println!("\n{} steps in {:.0} s", self.rows.len(), time.as_secs_f64());
        println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
        for flaky in &self.flaky {
            println!("  FLAKY, passed at its second run: {flaky}");
        }
        for failure in &self.failures {
            println!("  FAILED: {failure}");
        }
        sum
    }
}

/// Return each failing test's name and last lines, from libtest's failures.
fn reasons(lines: &[String]) -> Vec<String> {
    let heading = |line: &String| {
        let name = line.strip_prefix("---- ")?.strip_suffix(" stdout ----")?;
        Some(name.to_owned())
    };
    let ends = |line: &String| line.starts_with("Error: ") || line.contains("' panicked at ");
    let starts = lines.iter().enumerate().filter_map(|(at, line)| Some((at, heading(line)?)));
    let one = |(at, name): (usize, String)| {
        let section = &lines[at + 1..];
        let length = section.iter().position(|line| line == "failures:" || heading(line).is_some());
        let section = &section[..length.unwrap_or(section.len())];
        let from = section.iter().rposition(ends).unwrap_or(0);
        let words = section[from..].iter().take_while(|line| *line != "Stack backtrace:");
        let words = words.filter(|line| !line.is_empty());
        let words: Vec<_> = words.take(REASON).map(|line| format!("\n      {line}")).collect();
        format!("{name}{}", words.concat())
    };
    starts.map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Report, SLOWEST, Tally, reasons};

    #[test]
    fn the_slowest_tests_come_first() {
        let mut report = Report::default();
        for step in ["one", "two"] {
            let times = (1..=8).map(|n| (format!("test{n}"), Duration::from_secs(n)));
            report.timed(step, times.collect());
        }
        let slowest: Vec<&str> = report.slowest().iter().map(|(_, test)| test.as_str()).collect();
        assert_eq!(slowest.len(), SLOWEST);
        assert_eq!(slowest[..3], ["two: test8", "one: test8", "two: test7"]);
        assert_eq!(slowest[9], "one: test4");
    }

    #[test]
    fn few_tests_run_a_second_time() {
        let mut report = Report::default();
        let failed = |failed| Tally { failed, ..Tally::default() };
        let names = |count| vec![String::from("a"); count];
        assert!(report.may_repeat(&failed(2), &names(2)));
        assert!(!report.may_repeat(&failed(1), &[]), "it did not compile");
        assert!(!report.may_repeat(&failed(4), &names(4)));
        let mut repaired = failed(2);
        repaired.repair();
        assert_eq!((repaired.passed, repaired.failed, repaired.state()), (2, 0, "flaky"));
        report.add("step", Duration::ZERO, repaired);
        assert!(report.may_repeat(&failed(1), &names(1)));
        assert!(!report.may_repeat(&failed(2), &names(2)));

        let kept = report.failed("other", &[String::from("ended")]);
        report.failures.insert(0, String::from("an earlier step's"));
        report.passed_again(kept);
        assert_eq!(report.failures, ["an earlier step's"]);
        assert_eq!(report.flaky, ["other: see above"]);
    }

    #[test]
    fn adds_up_what_cargo_prints() {
        let lines = [
            "skipped: needs root",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test a ... FAILED",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ];
        let tally = Tally::of(&lines.map(String::from));
        assert_eq!(tally, Tally { passed: 12, failed: 2, skipped: 2, repeated: 0 });
    }

    #[test]
    fn says_which_tests_failed_and_why() {
        let lines = [
            "failures:",
            "",
            "---- traffic::both stdout ----",
            "ws-guard run said:",
            "Error: only 3 pings left",
            "",
            "Caused by:",
            "    the peer has closed",
            "Stack backtrace:",
            "   0: anyhow::error",
            "---- traffic::none stdout ----",
            "",
            "thread 'traffic::none' panicked at src/lib.rs:3:",
            "assertion failed",
            "",
            "failures:",
            "    traffic::both",
            "    traffic::none",
        ];
        let wanted = [
            "traffic::both\n      Error: only 3 pings left\n      Caused by:\n          \
             the peer has closed",
            "traffic::none\n      thread 'traffic::none' panicked at src/lib.rs:3:\n      \
             assertion failed",
        ];
        assert_eq!(reasons(&lines.map(String::from)), wanted);
    }
}
