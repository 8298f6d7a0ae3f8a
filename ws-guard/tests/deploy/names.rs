//! Metric names in rules, dashboards and documents, against the catalogue.
//!
//! A renamed metric leaves an alert that never fires.
use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};

use crate::{catalogue, files};

const PREFIXES: [&str; 2] = ["wsguard_", "websocket_"];
/// Suffixes of the series that Prometheus makes of a histogram.
const SERIES: [&str; 3] = ["_bucket", "_count", "_sum"];
/// Folders that may name metrics; `docs` with its folders, without the catalogue.
const FOLDERS: [&str; 5] =
    ["deploy/prometheus", "deploy/grafana", "docs", "docs/decisions", "docs/runbooks"];

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Return every name in a text: metrics, and recording rules, which have colons.
pub fn metrics(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !is_of_name(c) && c != ':');
    let words = words.map(|word| word.trim_end_matches(':'));
    let metric = |word: &str| {
        let last = word.split_once(':').map_or(word, |(_, metric)| metric);
        PREFIXES.iter().any(|prefix| last.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()))
    };
    words.filter(|word| *word == "up" || metric(word)).collect()
}

/// Return the names of metrics in a text, and of recording rules.
fn named(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let names = metrics(text).into_iter().filter(|name| *name != "up").map(str::to_owned);
    names.partition(|name| !name.contains(':'))
}

/// Check whether there is a series of this name.
fn is_known(series: &str, known: &BTreeSet<String>) -> bool {
    let stem = SERIES.iter().find_map(|suffix| series.strip_suffix(suffix));
    known.contains(series) || stem.is_some_and(|stem| known.contains(stem))
}

#[test]
fn names_are_told_from_what_is_recorded() {
    let text = "instance:wsguard_a:p99 > 1 and rate(wsguard_b_total{x=\"y\"}[5m]) wsguard_c: 1";
    let (found, recorded) = named(text);
    assert_eq!(found, ["wsguard_b_total", "wsguard_c"].map(str::to_owned).into());
    assert_eq!(recorded, ["instance:wsguard_a:p99".to_owned()].into());
    let known = ["wsguard_d_seconds".to_owned()].into();
    assert!(is_known("wsguard_d_seconds_bucket", &known));
    assert!(!is_known("wsguard_e_bucket", &known));
}

#[test]
fn every_metric_that_is_named_is_in_the_catalogue() -> Result<()> {
    let known = catalogue::families()?.into_keys().collect();
    let recorded = files::read("deploy/prometheus/recording.yaml")?;
    let mut unknown = Vec::new();
    let mut asked = 0;
    for folder in FOLDERS {
        for entry in files::path(folder).read_dir()? {
            let path = entry?.path();
            if path.is_dir() || path.ends_with(catalogue::PAGE) {
                continue;
            }
            let (names, made) = named(&fs::read_to_string(&path)?);
            asked += names.len();
            let is_made = |name: &String| recorded.contains(&format!("record: {name}\n"));
            let strange = names.into_iter().filter(|name| !is_known(name, &known));
            let strange = strange.chain(made.into_iter().filter(|name| !is_made(name)));
            unknown.extend(strange.map(|name| format!("{}: {name}", path.display())));
        }
    }
    ensure!(asked > 50, "only {asked} names were found");
    ensure!(unknown.is_empty(), "no metric has these names:\n{}", unknown.join("\n"));
    Ok(())
}
