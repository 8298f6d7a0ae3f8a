//! The verdict on a run, from the logs of clients and publishers alone.
//!
//! It shares no code with the server or with a client: what it takes for stored is what a publisher was
//! told, and what it takes for delivered is what an application was given.

mod deliveries;
mod floods;
mod reconnects;
mod stories;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use self::{deliveries::Deliveries, floods::Floods, reconnects::Reconnects};
use crate::{
    log::{self, Line},
    verdict::{Finding, Targets, Verdict},
};

/// The end of the names of clients' logs.
pub const LOGS: &str = ".clients.jsonl";
/// Findings whose story is told.
const STORIES: usize = 20;

#[derive(clap::Args)]
pub struct Args {
    /// Folder with the logs of the run's clients, *.clients.jsonl
    folder: PathBuf,
    /// Where to write the verdict, as JSON
    #[arg(long, value_name = "FILE")]
    verdict: Option<PathBuf>,
    /// Succeed whatever the verdict is
    #[arg(long)]
    tell: bool,
    #[command(flatten)]
    targets: Targets,
}

/// A finding, and when it happened.
pub struct Found {
    kind: &'static str,
    who: String,
    text: String,
    at: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let verdict = check(&args.folder, &args.targets)?;
    print!("{verdict}");
    if let Some(path) = &args.verdict {
        let text = serde_json::to_string_pretty(&verdict)?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    ensure!(verdict.passed() || args.tell, "the run has failed");
    Ok(())
}

/// What the logs in this folder say.
pub fn check(folder: &Path, targets: &Targets) -> Result<Verdict> {
    let logs = logs(folder)?;
    ensure!(!logs.is_empty(), "there is no *{LOGS} in {}", folder.display());
    let (mut deliveries, mut reconnects, mut floods) =
        (Deliveries::default(), Reconnects::default(), Floods::default());
    let mut span: Option<(u64, u64)> = None;
    for path in &logs {
        let mut ended = false;
        log::read(path, |Line { at, who, event }| {
            let (first, last) = span.get_or_insert((at, at));
            (*first, *last) = ((*first).min(at), (*last).max(at));
            ended |= event == log::Event::Done;
            reconnects.take(at, &who, &event);
            floods.take(at, &event);
            deliveries.take(at, who, event);
        })?;
        ensure!(ended, "{} has no end: its clients did not end in order", path.display());
    }
    let (deliveries, mut found) = deliveries.judge();
    let reconnects = reconnects.judge(&mut found);
    let floods = floods.judge(&mut found);
    let mut counts = BTreeMap::new();
    found.iter().for_each(|finding| *counts.entry(finding.kind.to_owned()).or_insert(0) += 1);
    found.truncate(STORIES);
    let told = stories::tell(&logs, &found)?;
    let findings = found.into_iter().zip(told).map(|(Found { kind, who, text, .. }, story)| {
        Finding { kind: kind.to_owned(), who, text, story }
    });
    let seconds = span.map_or(0.0, |(first, last)| (last - first) as f64 / 1e6);
    let findings = findings.collect();
    Ok(Verdict::new(seconds, deliveries, reconnects, floods, counts, findings, targets))
}

fn logs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut logs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(LOGS) {
            logs.push(path);
        }
    }
    logs.sort();
    Ok(logs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in these lines: the counts of all kinds, and the verdict.
    fn found(lines: &str) -> (Vec<String>, Verdict) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(format!("x{LOGS}"));
        fs::write(file, format!("{lines}{{\"at\":99,\"who\":\"x\",\"event\":\"done\"}}\n"))
            .unwrap();
        let verdict = check(folder.path(), &Targets::default()).unwrap();
        (verdict.counts.keys().cloned().collect(), verdict)
    }

    fn line(at: u64, who: &str, rest: &str) -> String {
        format!("{{\"at\":{at},\"who\":\"{who}\",{rest}}}\n")
    }

    /// A subscriber that begins after offset 1, and acknowledged publications up to this offset.
    fn story(last: u64) -> String {
        let mut text = line(1, "s", r#""event":"began","topic":"t""#);
        text += &line(2, "s", r#""event":"subscribed","topic":"t","offset":1"#);
        for offset in 1..=last {
            let id = format!(r#""topic":"t","id":"p-{offset}""#);
            text += &line(offset, "p", &format!(r#""event":"publish",{id}"#));
            let stored = format!(r#""event":"published",{id},"offset":{offset},"repeated":false"#);
            text += &line(offset, "p", &stored);
        }
        text
    }

    fn message(offset: u64, id: u64) -> String {
        let rest = format!(r#""event":"message","topic":"t","offset":{offset},"id":"p-{id}""#);
        line(10 + offset, "s", &rest)
    }

    #[test]
    fn what_was_acknowledged_has_to_arrive() {
        let whole = story(4) + &message(2, 2) + &message(3, 3) + &message(4, 4);
        let (kinds, verdict) = found(&whole);
        assert!(kinds.is_empty() && verdict.passed(), "{verdict}");
        assert_eq!((verdict.deliveries.expected, verdict.deliveries.lost), (3, 0));
        let (kinds, verdict) = found(&(story(4) + &message(2, 2) + &message(4, 4)));
        assert_eq!((kinds, verdict.deliveries.lost), (vec!["lost in silence".to_owned()], 1));
        let told = line(12, "s", r#""event":"gap","topic":"t","from":2,"to":3"#);
        let (kinds, verdict) = found(&(story(4) + &message(2, 2) + &told + &message(4, 4)));
        assert_eq!((kinds.len(), verdict.deliveries.lost, verdict.deliveries.told), (0, 1, 1));
        assert!(!verdict.passed());
    }

    #[test]
    fn order_repetition_and_mistaken_identity_are_found() {
        let kinds = |rest: String| found(&(story(4) + &rest)).0;
        let swapped = message(2, 2) + &message(4, 4) + &message(3, 3);
        assert_eq!(kinds(swapped), ["out of order"]);
        let twice = message(2, 2) + &message(3, 3) + &message(4, 4) + &message(5, 3);
        assert_eq!(kinds(twice), ["delivered twice"]);
        let other = message(2, 2) + &message(3, 4) + &message(4, 3);
        assert_eq!(kinds(other), ["another at its offset"]);
        let strange = message(2, 2) + &message(3, 3) + &message(4, 4) + &message(5, 77);
        assert_eq!(kinds(strange), ["never published"]);
    }

    #[test]
    fn times_are_from_the_end_to_the_session_without_the_waits_that_were_asked_for() {
        let mut text = String::new();
        for client in 0..100 {
            let who = format!("c-{client}");
            let begun = r#""event":"began","topic":"t""#;
            text += &line(1, &who, begun);
            text += &line(1, &who, r#""event":"subscribed","topic":"t","offset":0"#);
            text += &line(1, &who, r#""event":"open","recovered":true"#);
            text += &line(1_000_000, &who, r#""event":"closed","why":"1012""#);
            text += &line(1_000_000, &who, r#""event":"wait","ms":500"#);
            text += &line(
                1_000_000 + 500_000 + client * 1000,
                &who,
                r#""event":"open","recovered":true"#,
            );
        }
        let (_, verdict) = found(&text);
        let back = &verdict.reconnects;
        assert_eq!((back.tried, back.succeeded), (100, 100));
        assert!((back.p99_ms - 98.0).abs() <= 1.0 && (back.with_waits_p99_ms - 598.0).abs() <= 1.0);
        let (_, verdict) = found(&(text + &line(2_000_000, "c-7", r#""event":"closed","why":"""#)));
        assert_eq!((verdict.reconnects.tried, verdict.reconnects.succeeded), (101, 100));
        assert!(!verdict.passed());
    }

    #[test]
    fn pings_over_the_limit_are_not_to_be_answered() {
        let flood = |ms, answered| {
            line(
                1,
                "flooder",
                &format!(r#""event":"flooded","ms":{ms},"sent":5000,"answered":{answered}"#),
            )
        };
        assert_eq!(found(&flood(25_000, 90)).1.floods.over, 0);
        let (kinds, verdict) = found(&flood(25_000, 91));
        assert_eq!((verdict.floods.over, kinds), (1, vec!["flood answered".to_owned()]));
    }
}
