//! Alerts: promtool's check of them, their own tests, and their pages.
use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::files::{self, promtool};

/// An alert of `alerts.yaml`.
#[derive(Clone, Debug, Deserialize)]
pub struct Alert {
    pub alert: String,
    pub expr: String,
    pub annotations: Value,
    labels: Value,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

pub fn alerts() -> Result<Vec<Alert>> {
    let groups: Groups = files::yaml("deploy/prometheus/alerts.yaml")?;
    Ok(groups.groups.into_iter().flat_map(|group| group.rules).collect())
}

/// Return the series of the recording rules.
pub fn recorded() -> Result<BTreeSet<String>> {
    let rules: Value = files::yaml("deploy/prometheus/recording.yaml")?;
    let groups = rules["groups"].as_array().context("no groups")?.iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    Ok(rules.filter_map(|rule| rule["record"].as_str().map(str::to_owned)).collect())
}

#[test]
fn promtool_finds_nothing() -> Result<()> {
    for rules in files::RULES {
        promtool(&["check", "rules", "--lint=all", "--lint-fatal", rules])?;
    }
    promtool(&["test", "rules", "alerts_test.yaml"])?;
    Ok(())
}

#[test]
fn every_alert_has_tests_in_which_it_fires_and_is_silent() -> Result<()> {
    let tests: Value = files::yaml("deploy/prometheus/alerts_test.yaml")?;
    let cases = tests["tests"].as_array().context("no tests")?.iter();
    let cases = cases.flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten());
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for case in cases {
        let name = case["alertname"].as_str().context("a test without a name")?.to_owned();
        let expected = case["exp_alerts"].as_array().context("a test that expects nothing")?;
        if expected.is_empty() {
            silent.insert(name)
        } else {
            fires.insert(name)
        };
    }
    let all: BTreeSet<String> = alerts()?.into_iter().map(|alert| alert.alert).collect();
    assert_eq!(all, fires);
    assert_eq!(all, silent);
    Ok(())
}

#[test]
fn every_alert_says_what_is_wrong() -> Result<()> {
    for Alert { alert, annotations, .. } in alerts()? {
        for (field, least) in [("summary", 20), ("description", 40)] {
            let text = annotations[field].as_str().unwrap_or_default();
            ensure!(text.len() > least, "{alert}: {field} is {text:?}");
        }
    }
    Ok(())
}

#[test]
fn every_alert_has_a_page_and_every_page_an_alert() -> Result<()> {
    let mut pages = BTreeSet::new();
    for entry in files::path("docs/runbooks").read_dir()? {
        pages.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    let mut wanted = BTreeSet::new();
    for Alert { alert, annotations, labels, .. } in alerts()? {
        let page = format!("{alert}.md");
        let url = annotations["runbook_url"].as_str().unwrap_or_default();
        ensure!(url.ends_with(&format!("/docs/runbooks/{page}")), "{alert}: {url}");
        let severity = labels["severity"].as_str().unwrap_or_default();
        ensure!(["page", "ticket", "info"].contains(&severity), "{alert}: {severity}");
        let text = files::read(&format!("docs/runbooks/{page}"))?;
        ensure!(text.starts_with(&format!("# {alert}\n")), "{page} has another title");
        wanted.insert(page);
    }
    assert_eq!(pages, wanted);
    Ok(())
}
