//! The metrics that rules, dashboard and runbooks name, against the names in the code.
//!
//! A renamed metric leaves an alert that never fires. This needs no guard that runs, and sees also
//! what has no series before its first event.
use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, ensure};

use crate::files;

const PREFIXES: [&str; 2] = ["wsguard_", "websocket_"];
/// What Prometheus makes of a histogram.
const SERIES: [&str; 3] = ["_bucket", "_count", "_sum"];
/// The folder whose families get their prefix when they are built.
const WITHOUT_PREFIX: &str = "ws-guard/src/metrics";

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The names of metrics in a text; what a recording rule made, `level:metric:operation`, is none.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !is_of_name(c) && c != ':');
    let words = words.filter(|word| !word.trim_end_matches(':').contains(':'));
    let words = words.map(|word| word.trim_end_matches(':'));
    let metric = |word: &&str| PREFIXES.iter().any(|prefix| word.starts_with(prefix));
    words.filter(metric).map(str::to_owned).collect()
}

/// The string literals of all Rust files in a folder that could be names.
fn literals(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            literals(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let names = text.split('"').filter(|word| word.chars().all(is_of_name));
            found.extend(names.map(str::to_owned));
        }
    }
    Ok(())
}

/// The names that the code gives to metrics.
fn registered() -> Result<BTreeSet<String>> {
    let (mut names, mut bare) = (BTreeSet::new(), BTreeSet::new());
    for folder in ["ws-guard/src", "ws-guard-server/src"] {
        literals(&files::path(folder), &mut names)?;
    }
    names.retain(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
    literals(&files::path(WITHOUT_PREFIX), &mut bare)?;
    names.extend(bare.into_iter().map(|name| format!("wsguard_{name}")));
    Ok(names)
}

/// Whether the code makes a series of this name.
fn is_known(series: &str, registered: &BTreeSet<String>) -> bool {
    let stem = SERIES.iter().find_map(|suffix| series.strip_suffix(suffix));
    registered.contains(series) || stem.is_some_and(|stem| registered.contains(stem))
}

#[test]
fn names_are_told_from_what_is_recorded() {
    let text = "instance:wsguard_a:p99 > 1 and rate(wsguard_b_total{x=\"y\"}[5m]) wsguard_c: 1";
    assert_eq!(named(text), ["wsguard_b_total", "wsguard_c"].map(str::to_owned).into());
    let registered = ["wsguard_d_seconds".to_owned()].into();
    assert!(is_known("wsguard_d_seconds_bucket", &registered));
    assert!(!is_known("wsguard_e_bucket", &registered));
}

#[test]
fn every_metric_that_is_asked_for_is_in_the_code() -> Result<()> {
    let registered = registered()?;
    let mut unknown = Vec::new();
    let mut asked = 0;
    for folder in ["deploy/prometheus", "deploy/grafana", "docs/runbooks"] {
        for entry in files::path(folder).read_dir()? {
            let path = entry?.path();
            let names = named(&fs::read_to_string(&path)?);
            asked += names.len();
            let strange = names.into_iter().filter(|name| !is_known(name, &registered));
            unknown.extend(strange.map(|name| format!("{}: {name}", path.display())));
        }
    }
    ensure!(asked > 50, "only {asked} names were found");
    ensure!(unknown.is_empty(), "no metric of the code has these names:\n{}", unknown.join("\n"));
    Ok(())
}
