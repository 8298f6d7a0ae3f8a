//! Events of libtest, shown in its lines for people, with the time of each test.
//!
//! Times are in no stable output of libtest. So it is asked for its events, which `cargo_metadata`
//! reads; any other line passes unchanged.
use std::time::Duration;

use cargo_metadata::libtest::{SuiteEvent, TestEvent, TestMessage};

/// Cargo's configuration under which the tests accept [`ARGUMENTS`]:
/// for them alone, so that nothing is compiled anew.
pub const RUNNER: &str = "target.'cfg(all())'.runner=['env', 'RUSTC_BOOTSTRAP=1']";
/// Arguments that make libtest report events and times.
pub const ARGUMENTS: [&str; 3] = ["-Zunstable-options", "--format=json", "--report-time"];

/// Tests of one step.
#[derive(Default)]
pub struct Events {
    /// The tests that ran, and their times.
    pub times: Vec<(String, Duration)>,
    /// The tests that failed.
    pub failed: Vec<String>,
    /// Output of each failed test of the running suite.
    failures: Vec<(String, String)>,
}

impl Events {
    /// Return the lines to print for a line of output.
    pub fn tell(&mut self, line: &str) -> Vec<String> {
        match serde_json::from_str(line) {
            Ok(TestMessage::Test(event)) => self.test(event),
            Ok(TestMessage::Suite(event)) => self.suite(&event),
            Ok(TestMessage::Bench { .. }) | Err(_) => vec![line.to_owned()],
        }
    }

    fn test(&mut self, event: TestEvent) -> Vec<String> {
        match event {
            TestEvent::Started { .. } => Vec::new(),
            TestEvent::Ignored { name } => vec![format!("test {name} ... ignored")],
            TestEvent::Timeout { name } => {
                vec![format!("test {name} has been running for over 60 seconds")]
            }
            TestEvent::Ok { name, exec_time, stdout } => {
                let mut lines = vec![format!("test {name} ... ok, {exec_time:.1} s")];
                lines.extend(stdout.unwrap_or_default().lines().map(str::to_owned));
                self.times.push((name, Duration::from_secs_f32(exec_time)));
                lines
            }
            TestEvent::Failed { name, exec_time, stdout, reason, message } => {
                let lines = vec![format!("test {name} ... FAILED, {exec_time:.1} s")];
                self.times.push((name.clone(), Duration::from_secs_f32(exec_time)));
                let said = [stdout, reason, message].into_iter().flatten();
                self.failed.push(name.clone());
                self.failures.push((name, said.collect::<Vec<_>>().join("\n")));
                lines
            }
        }
    }

    fn suite(&mut self, event: &SuiteEvent) -> Vec<String> {
        let (state, passed, failed, ignored) = match event {
            SuiteEvent::Started { .. } => return Vec::new(),
            SuiteEvent::Ok { passed, failed, ignored, .. } => ("ok", passed, failed, ignored),
            SuiteEvent::Failed { passed, failed, ignored, .. } => {
                ("FAILED", passed, failed, ignored)
            }
        };
        let mut lines = Vec::new();
        let failures = std::mem::take(&mut self.failures);
        if !failures.is_empty() {
            lines.push("failures:".to_owned());
            for (name, said) in &failures {
                lines.push(format!("---- {name} stdout ----"));
                lines.extend(said.lines().map(str::to_owned));
            }
            lines.push("failures:".to_owned());
            lines.extend(failures.iter().map(|(name, _)| format!("    {name}")));
        }
        lines.push(format!(
            "test result: {state}. {passed} passed; {failed} failed; {ignored} ignored"
        ));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of libtest of Rust 1.95.
    const EVENTS: &str = r#"     Running unittests src/lib.rs
{ "type": "suite", "event": "started", "test_count": 3 }
{ "type": "test", "event": "started", "name": "a" }
{ "type": "test", "name": "a", "event": "ok", "exec_time": 0.25, "stdout": "skipped: needs root\n" }
{ "type": "test", "event": "ignored", "name": "b" }
{ "type": "test", "name": "c", "event": "failed", "exec_time": 1.5, "stdout": "Error: gone\n" }
{ "type": "suite", "event": "failed", "passed": 1, "failed": 1, "ignored": 1, "measured": 0, "filtered_out": 0, "exec_time": 1.75 }"#;

    #[test]
    fn events_are_told_as_libtest_tells_people() {
        let mut events = Events::default();
        let told: Vec<String> = EVENTS.lines().flat_map(|line| events.tell(line)).collect();
        assert_eq!(
            told,
            [
                "     Running unittests src/lib.rs",
                "test a ... ok, 0.2 s",
                "skipped: needs root",
                "test b ... ignored",
                "test c ... FAILED, 1.5 s",
                "failures:",
                "---- c stdout ----",
                "Error: gone",
                "failures:",
                "    c",
                "test result: FAILED. 1 passed; 1 failed; 1 ignored",
            ]
        );
        let times = [
            ("a".to_owned(), Duration::from_millis(250)),
            ("c".to_owned(), Duration::from_millis(1500)),
        ];
        assert_eq!(events.times, times);
        assert_eq!(events.failed, ["c"]);
    }
}
