//! The dashboard, by the rules of Grafana's own linter: sources, variables, units, descriptions.
use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::files;

const SOURCE: &str = "${datasource}";

fn dashboard() -> Result<Value> {
    serde_json::from_str(&files::read("deploy/grafana/overview.json")?).context("overview.json")
}

/// All panels but the headings of rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    panels.filter(|panel| panel["type"] != "row").collect()
}

fn targets(panel: &Value) -> impl Iterator<Item = &Value> {
    panel["targets"].as_array().into_iter().flatten()
}

/// Title of a panel, and an expression in it as Grafana would send it, for all instances.
pub fn expressions() -> Result<Vec<(String, String)>> {
    let dashboard = dashboard()?;
    let mut found = Vec::new();
    for panel in panels(&dashboard) {
        for target in targets(panel) {
            let expr = target["expr"].as_str().context("a target without an expression")?;
            let expr = expr.replace("$__rate_interval", "30s").replace("$__range", "1m");
            let expr = expr.replace("$instance", ".*").replace("$server", ".*");
            ensure!(!expr.contains('$'), "{expr} has a variable that nobody knows");
            found.push((panel["title"].as_str().unwrap_or("?").to_owned(), expr));
        }
    }
    ensure!(found.len() > 20, "only {} expressions", found.len());
    Ok(found)
}

#[test]
fn every_panel_says_what_it_shows() -> Result<()> {
    let dashboard = dashboard()?;
    let mut titles = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap_or_default();
        ensure!(!title.is_empty() && titles.insert(title), "{title:?} is there twice, or empty");
        let text = panel["description"].as_str().unwrap_or_default();
        ensure!(text.len() > 20 && text.ends_with('.'), "{title}: {text:?} describes nothing");
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
        ensure!(unit.is_some_and(|unit| !unit.is_empty()), "{title} has no unit");
        ensure!(targets(panel).count() > 0, "{title} asks nothing");
    }
    Ok(())
}

#[test]
fn every_query_goes_to_the_chosen_source_and_instances() -> Result<()> {
    let dashboard = dashboard()?;
    let variables = dashboard["templating"]["list"].as_array().context("no variables")?;
    let names: Vec<&str> = variables.iter().filter_map(|v| v["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "instance", "server"]);
    ensure!(variables[0]["type"] == "datasource" && variables[0]["query"] == "prometheus");
    for variable in &variables[1..] {
        ensure!(variable["datasource"]["uid"] == SOURCE && variable["multi"] == true, "{variable}");
        ensure!(variable["includeAll"] == true && variable["allValue"] == ".*", "{variable}");
    }
    for panel in panels(&dashboard) {
        ensure!(panel["datasource"]["uid"] == SOURCE, "{panel}");
        for target in targets(panel) {
            ensure!(target["datasource"]["uid"] == SOURCE, "{target}");
            let expr = target["expr"].as_str().unwrap_or_default();
            let selectors = expr.matches("wsguard_").count() + expr.matches("websocket_").count();
            let chosen = expr.matches("instance=~\"$instance\"").count()
                + expr.matches("instance=~\"$server\"").count();
            ensure!(selectors > 0 && selectors == chosen, "{expr} does not name its instances");
            // A rate over a fixed time shows nothing when the scrape interval is longer.
            let rates = expr.matches("rate(").count() + expr.matches("increase(").count();
            let ranges =
                expr.matches("[$__rate_interval]").count() + expr.matches("[$__range]").count();
            ensure!(rates == ranges, "{expr}: a range of its own");
        }
    }
    Ok(())
}

#[test]
fn no_panel_covers_another() -> Result<()> {
    let dashboard = dashboard()?;
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let place = &panel["gridPos"];
        let number = |field: &str| place[field].as_u64().with_context(|| format!("{panel}"));
        let (x, y, w, h) = (number("x")?, number("y")?, number("w")?, number("h")?);
        ensure!(x + w <= 24, "{} is off the grid", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            ensure!(taken.insert(cell), "{} covers another", panel["title"]);
        }
        ensure!(ids.insert(panel["id"].as_u64()), "{} shares its id", panel["title"]);
    }
    Ok(())
}
