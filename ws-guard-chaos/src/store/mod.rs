//! Runs in PostgreSQL; in hypertables where the server has TimescaleDB.

mod faults;

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio_postgres::{Client, NoTls, types::Json};

use crate::verdict::Verdict;

mod migrations {
    refinery::embed_migrations!("migrations");
}

#[derive(clap::Args)]
pub struct Database {
    /// PostgreSQL with the runs, as postgresql://USER@HOST/NAME; a password belongs into the variable
    #[arg(long, value_name = "URL", env = "WS_GUARD_CHAOS_DATABASE", hide_env_values = true)]
    pub database: String,
}

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run, with verdict.json and, if faults are known, faults.jsonl
    folder: PathBuf,
    /// When it began, as 2026-01-31T02:00:00Z [default: as long ago as it lasted]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339)]
    began: Option<SystemTime>,
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Minutes under faults [default: as long as it lasted]
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// What was tested
    #[arg(long, value_name = "TEXT", default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
    /// Fail after a run that has failed
    #[arg(long)]
    judge: bool,
    #[command(flatten)]
    database: Database,
}

/// A stored run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub began: SystemTime,
    pub name: String,
    pub seed: u64,
    pub minutes: f64,
    pub version: String,
    pub passed: bool,
    pub failures: Vec<String>,
    pub tried: u64,
    pub success: f64,
    pub expected: u64,
    pub loss: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// How many of each kind.
    pub faults: Vec<(String, u64)>,
}

/// A connection to the runs, with tables of the present form.
pub struct Store(Client);

impl Store {
    pub async fn open(database: &Database) -> Result<Store> {
        let (mut client, connection) = tokio_postgres::connect(&database.database, NoTls)
            .await
            .context("connecting to the database of the runs")?;
        // Its errors are those of the requests, too.
        tokio::spawn(connection);
        let migrated = migrations::migrations::runner().run_async(&mut client).await;
        migrated.context("bringing the tables of the runs to their present form")?;
        let store = Store(client);
        store.hypertables().await.context("making hypertables")?;
        Ok(store)
    }

    /// Where TimescaleDB is loaded; it may have come after the tables.
    async fn hypertables(&self) -> Result<()> {
        const THERE: &str = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = \
                             'timescaledb') AND current_setting('shared_preload_libraries') LIKE \
                             '%timescaledb%'";
        if !self.0.query_one(THERE, &[]).await?.get::<_, bool>(0) {
            return Ok(());
        }
        self.0.batch_execute("CREATE EXTENSION IF NOT EXISTS timescaledb").await?;
        for table in ["runs", "faults"] {
            let make = format!(
                "SELECT create_hypertable('{table}', 'began', if_not_exists => true, \
                 migrate_data => true)"
            );
            self.0.batch_execute(&make).await?;
        }
        Ok(())
    }

    async fn add(
        &mut self,
        args: &Args,
        verdict: &Verdict,
        faults: &[faults::Fault],
    ) -> Result<()> {
        let lasted = Duration::try_from_secs_f64(verdict.seconds).unwrap_or_default();
        let began = args.began.unwrap_or_else(|| SystemTime::now() - lasted);
        let name = humantime::format_rfc3339_seconds(began).to_string();
        let minutes = args.minutes.unwrap_or(verdict.seconds / 60.0);
        let all = self.0.transaction().await?;
        all.execute(
            "INSERT INTO runs VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            &[
                &began,
                &name,
                // The same bits: PostgreSQL's numbers have a sign.
                &args.seed.cast_signed(),
                &minutes,
                &args.version,
                &verdict.passed(),
                &verdict.failures,
                &verdict.reconnects.tried.cast_signed(),
                &verdict.success(),
                &verdict.deliveries.expected.cast_signed(),
                &verdict.loss(),
                &verdict.reconnects.p50_ms,
                &verdict.reconnects.p99_ms,
                &Json(verdict),
            ],
        )
        .await
        .context("storing the run")?;
        for fault in faults {
            all.execute(
                "INSERT INTO faults VALUES ($1, $2, $3, $4, $5, $6)",
                &[&began, &name, &fault.at, &fault.lasts, &fault.fault, &fault.server],
            )
            .await
            .context("storing a fault of the run")?;
        }
        all.commit().await.context("storing the run")
    }

    /// The latest runs, the last one last.
    pub async fn runs(&self, count: u32) -> Result<Vec<Run>> {
        let rows = self
            .0
            .query(
                "SELECT began, name, seed, minutes, version, passed, failures, reconnects_tried, \
                 reconnects_percent, messages_expected, loss_percent, p50_ms, p99_ms \
                 FROM runs ORDER BY began DESC, name DESC LIMIT $1",
                &[&i64::from(count)],
            )
            .await
            .context("reading the runs")?;
        let mut runs = Vec::new();
        for row in rows.into_iter().rev() {
            let (began, name): (SystemTime, String) = (row.get(0), row.get(1));
            let faults = self
                .0
                .query(
                    "SELECT fault, count(*) FROM faults WHERE began = $1 AND run = $2 GROUP BY 1 \
                     ORDER BY 1",
                    &[&began, &name],
                )
                .await
                .context("reading the faults of a run")?;
            let count = |row: i64| row.cast_unsigned();
            runs.push(Run {
                began,
                name,
                seed: count(row.get(2)),
                minutes: row.get(3),
                version: row.get(4),
                passed: row.get(5),
                failures: row.get(6),
                tried: count(row.get(7)),
                success: row.get(8),
                expected: count(row.get(9)),
                loss: row.get(10),
                p50_ms: row.get(11),
                p99_ms: row.get(12),
                faults: faults.iter().map(|row| (row.get(0), count(row.get(1)))).collect(),
            });
        }
        Ok(runs)
    }
}

/// Store a run that was judged.
pub async fn run(args: Args) -> Result<()> {
    let path = args.folder.join("verdict.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("reading {}: `check --verdict` writes it", path.display()))?;
    let verdict: Verdict =
        serde_json::from_str(&text).with_context(|| format!("{} is no verdict", path.display()))?;
    let faults = faults::read(&args.folder.join("faults.jsonl"))?;
    let mut store = Store::open(&args.database).await?;
    store.add(&args, &verdict, &faults).await?;
    ensure!(verdict.passed() || !args.judge, "the run has failed: {}", verdict.failures.join("; "));
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A run as it comes from the database.
    pub fn stored(passed: bool) -> Run {
        let failures = if passed { vec![] } else { vec!["back after 900 ms (P99)".to_owned()] };
        Run {
            began: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600),
            name: "2026-01-01T00-00-00Z".into(),
            seed: 7,
            minutes: 10.0,
            version: "<v1>".into(),
            passed,
            failures,
            tried: 7000,
            success: 100.0,
            expected: 600_000,
            loss: 0.0,
            p50_ms: 650.0,
            p99_ms: if passed { 790.0 } else { 900.0 },
            faults: vec![("kill".into(), 6), ("delay".into(), 1)],
        }
    }
}
