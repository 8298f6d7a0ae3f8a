//! Links from an alert to its panel and its page, and from the panel to the page.
use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{dashboard::boards, rules::alerts};

/// Query that selects the alert's instance in a panel that can show one.
const CHOICE: &str = "&var-instance={{ $labels.instance }}";

/// Return the alert that a panel's link names, by its target page.
fn alert_of(link: &Value) -> Option<&str> {
    link["url"].as_str()?.split_once("/docs/runbooks/")?.1.strip_suffix(".md")
}

/// Return the paths of all panels with the alerts whose pages they link to.
fn panels() -> Result<BTreeSet<(String, String)>> {
    let mut panels = BTreeSet::new();
    for board in boards()? {
        for panel in board.panels() {
            let id = panel["id"].as_u64().context("a panel without an id")?;
            let one = panel["targets"].to_string().contains("$instance");
            let choice = if one { CHOICE } else { "" };
            let path = format!("/d/{}?viewPanel={id}{choice}", board.uid);
            let links = panel["links"].as_array().into_iter().flatten();
            for alert in links.map(alert_of) {
                let alert = alert.with_context(|| format!("{path} links to no runbook"))?;
                panels.insert((alert.to_owned(), path.clone()));
            }
        }
    }
    Ok(panels)
}

#[test]
fn every_alert_has_a_panel_that_has_its_page() -> Result<()> {
    let mut wanted = BTreeSet::new();
    for alert in alerts()? {
        let path = alert.annotations["dashboard"].as_str().unwrap_or_default().to_owned();
        ensure!(!path.is_empty(), "{} has no panel", alert.alert);
        wanted.insert((alert.alert, path));
    }
    assert_eq!(wanted, panels()?);
    Ok(())
}
