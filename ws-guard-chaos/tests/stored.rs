//! Runs in a real PostgreSQL: stored, judged by the gate, drawn as a page, and asked for by the dashboard.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_postgres::NoTls;
use ws_guard_testkit::{postgres::Postgres, tools};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ws-guard-chaos");

struct Stage {
    folder: TempDir,
    postgres: Postgres,
}

impl Stage {
    fn new() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(&folder.path().join("postgres")).unwrap();
        Stage { folder, postgres }
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(words).env("WS_GUARD_CHAOS_DATABASE", &self.postgres.url);
        command.output().unwrap()
    }

    /// Judge a run of one reconnect that took so long, and store it.
    fn store(&self, day: u32, ms: u64) {
        let folder = log(self.folder.path(), day, ms);
        let verdict = folder.join("verdict.json");
        let folder = folder.to_str().unwrap();
        self.run(&["check", folder, "--tell", "--verdict", verdict.to_str().unwrap()]);
        let began = format!("2026-01-{day:02}T02:00:00Z");
        let stored =
            self.run(&["store", folder, "--began", &began, "--seed", "7", "--minutes", "10"]);
        assert!(stored.status.success(), "{}", String::from_utf8_lossy(&stored.stderr));
    }
}

/// Logs of such a run.
fn log(home: &Path, day: u32, ms: u64) -> PathBuf {
    let folder = home.join(format!("run-{day}"));
    fs::create_dir(&folder).unwrap();
    let line = |at: u64, event: Value| {
        let mut line = json!({"at": at, "who": "c"});
        line.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
        format!("{line}\n")
    };
    let lines = [
        line(1, json!({"event": "began", "topic": "t"})),
        line(2, json!({"event": "subscribed", "topic": "t", "offset": 0})),
        line(3, json!({"event": "open", "recovered": true})),
        line(1_000_000, json!({"event": "closed", "why": "1006"})),
        line(1_000_000 + ms * 1000, json!({"event": "open", "recovered": true})),
        line(9_000_000, json!({"event": "done"})),
    ];
    fs::write(folder.join("x.clients.jsonl"), lines.concat()).unwrap();
    let faults = [
        json!({"fault": "delay", "at": 0.0, "lasts": 600.0, "seed": 1}),
        json!({"fault": "kill", "server": 2, "at": 5.0, "lasts": 1.5, "seed": u64::MAX}),
    ];
    let faults = faults.map(|fault| format!("{fault}\n")).concat();
    fs::write(folder.join("faults.jsonl"), faults).unwrap();
    folder
}

#[test]
fn three_failed_runs_block_a_release_and_one_that_passes_unblocks_it() {
    let stage = Stage::new();
    let gate = || {
        let output = stage.run(&["gate"]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    assert!(gate().0, "{}", gate().1);
    stage.store(1, 700);
    stage.store(2, 900);
    stage.store(3, 901);
    let (open, said) = gate();
    assert!(open && said.contains("2 failed"), "{said}");
    stage.store(4, 902);
    let (open, said) = gate();
    assert!(!open, "{said}");
    for part in ["2026-01-02", "back after 902 ms (P99), target 800 ms", "--seed 7", "unblocks"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    page(&stage);
    dashboard(&stage);
    stage.store(5, 650);
    assert!(gate().0, "{}", gate().1);
    // The same run is not stored twice.
    let folder = stage.folder.path().join("run-5");
    let words = ["store", folder.to_str().unwrap(), "--began", "2026-01-05T02:00:00Z"];
    assert!(!stage.run(&words).status.success());
}

fn page(stage: &Stage) {
    let file = stage.folder.path().join("report.html");
    let output = stage.run(&["report", "--output", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(file).unwrap();
    assert_eq!((page.matches("<svg").count(), page.matches("<circle").count()), (3, 12));
    for part in ["kill&nbsp;×1", "+200</small>", "target 99.95 %", "target 0.01 %"] {
        assert!(page.contains(part), "{part}");
    }
}

/// What Grafana asks for is there.
fn dashboard(stage: &Stage) {
    let text = fs::read_to_string(tools::workspace().join("deploy/chaos/dashboard.json")).unwrap();
    let board: Value = serde_json::from_str(&text).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&stage.postgres.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        for panel in panels {
            let sql = panel["targets"][0]["rawSql"].as_str().unwrap();
            // Grafana's macro: whether a time is within what the page shows.
            let sql = sql.replace("$__timeFilter(began)", "began > '2025-01-01'");
            assert!(!sql.contains("$__"), "{sql}");
            let rows = client.query(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            assert!(!rows.is_empty(), "{sql}");
        }
        let failed = panels[0]["targets"][0]["rawSql"].as_str().unwrap();
        assert_eq!(client.query_one(failed, &[]).await.unwrap().get::<_, i64>(0), 3);
    });
}
