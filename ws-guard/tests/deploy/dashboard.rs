//! Dashboards: equal to their source's output, and accepted by a linter.
//! The rules are those of Grafana's own linter (sources, variables, units, descriptions).
use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use ws_guard_testkit::tools;

use crate::{
    files::{self, run},
    names,
};

const FOLDER: &str = "deploy/grafana";
const SOURCE: &str = "${datasource}";
const VARIABLES: [&str; 4] = ["datasource", "cluster", "node", "instance"];
/// Additional variables of dashboards with figures by server.
const SERVERS: [&str; 2] = ["port", "server"];

/// A dashboard, and its name in the address of its page.
pub struct Board {
    pub uid: String,
    value: Value,
}

/// Return all dashboards.
pub fn boards() -> Result<Vec<Board>> {
    let mut boards = Vec::new();
    for entry in files::path(FOLDER).read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let value: Value = serde_json::from_str(&fs::read_to_string(&path)?)
                .with_context(|| path.display().to_string())?;
            let uid = value["uid"].as_str().context("no uid")?.to_owned();
            boards.push(Board { uid, value });
        }
    }
    ensure!(boards.len() == 5, "{} dashboards in {FOLDER}", boards.len());
    Ok(boards)
}

impl Board {
    /// Return all panels except the headings of rows.
    pub fn panels(&self) -> impl Iterator<Item = &Value> {
        let panels = self.value["panels"].as_array().into_iter().flatten();
        panels.filter(|panel| panel["type"] != "row")
    }

    /// Return its title.
    pub fn heading(&self) -> &str {
        self.value["title"].as_str().unwrap_or_default()
    }

    fn annotations(&self) -> impl Iterator<Item = &Value> {
        self.value["annotations"]["list"].as_array().into_iter().flatten()
    }

    fn title<'a>(&self, panel: &'a Value) -> (String, &'a str) {
        (self.uid.clone(), panel["title"].as_str().unwrap_or_default())
    }
}

pub fn targets(panel: &Value) -> impl Iterator<Item = &Value> {
    panel["targets"].as_array().into_iter().flatten()
}

/// Return an expression as Grafana would send it, for every choice of variables.
pub fn sent(target: &Value) -> Result<String> {
    let expr = target["expr"].as_str().context("a target without an expression")?;
    let expr = expr.replace("$__rate_interval", "30s").replace("$__range", "1m");
    let sent = VARIABLES
        .iter()
        .chain(&SERVERS)
        .fold(expr, |expr, name| expr.replace(&format!("\"${name}\""), "\".*\""));
    ensure!(!sent.contains('$'), "{sent} has an unknown variable");
    Ok(sent)
}

/// Return the expressions of all panels, with dashboard and panel title.
pub fn expressions() -> Result<Vec<((String, String), String)>> {
    let mut found = Vec::new();
    for board in boards()? {
        for panel in board.panels() {
            let (uid, title) = board.title(panel);
            for target in targets(panel) {
                found.push(((uid.clone(), title.to_owned()), sent(target)?));
            }
        }
    }
    ensure!(found.len() > 80, "only {} expressions", found.len());
    Ok(found)
}

/// Return the expression of an annotation, which all dashboards have.
pub fn annotation(name: &str) -> Result<String> {
    let mut found = BTreeSet::new();
    for board in boards()? {
        let annotation = board.annotations().find(|annotation| annotation["name"] == name);
        found.insert(sent(annotation.with_context(|| format!("{} has no {name}", board.uid))?)?);
    }
    ensure!(found.len() == 1, "{name} is not the same everywhere");
    found.pop_first().context("no dashboards")
}

#[test]
fn they_are_what_their_source_makes() -> Result<()> {
    let folder = TempDir::with_prefix("wsg-dashboards-")?;
    let mut make = Command::new(tools::python());
    make.arg("-B").arg(files::path(FOLDER).join("source")).arg(folder.path());
    run(make)?;
    let mut made = 0;
    for entry in folder.path().read_dir()? {
        let path = entry?.path();
        let name = path.file_name().context("no name")?;
        let committed = fs::read(files::path(FOLDER).join(name)).unwrap_or_default();
        let same = committed == fs::read(&path)?;
        ensure!(same, "{name:?} is not what its source makes: `cargo xtask dashboards` renews it");
        made += 1;
    }
    assert_eq!(made, boards()?.len());
    Ok(())
}

#[test]
fn every_panel_says_what_it_shows() -> Result<()> {
    for board in boards()? {
        let mut titles = BTreeSet::new();
        for panel in board.panels() {
            let (uid, title) = board.title(panel);
            ensure!(!title.is_empty() && titles.insert(title), "{uid}: {title:?} twice, or empty");
            let text = panel["description"].as_str().unwrap_or_default();
            ensure!(text.len() > 20 && text.ends_with('.'), "{title}: {text:?} describes nothing");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            ensure!(unit.is_some_and(|unit| !unit.is_empty()), "{uid}: {title} has no unit");
            ensure!(targets(panel).count() > 0, "{uid}: {title} asks nothing");
        }
    }
    Ok(())
}

#[test]
fn each_has_the_same_variables_and_annotations() -> Result<()> {
    for board in boards()? {
        let variables = board.value["templating"]["list"].as_array().context("no variables")?;
        let names: Vec<&str> = variables.iter().filter_map(|v| v["name"].as_str()).collect();
        let by_server = board.panels().flat_map(targets).any(|target| {
            target["expr"].as_str().is_some_and(|expr| expr.contains("=~\"$server\""))
        });
        let servers = if by_server { &SERVERS[..] } else { &[] };
        assert_eq!(names, [&VARIABLES, servers].concat(), "{}", board.uid);
        ensure!(variables[0]["type"] == "datasource" && variables[0]["query"] == "prometheus");
        for variable in &variables[1..] {
            ensure!(variable["datasource"]["uid"] == SOURCE, "{variable}");
            // `.*` holds for series without the label as well.
            ensure!(variable["includeAll"] == true && variable["allValue"] == ".*", "{variable}");
            ensure!(variable["multi"] == true, "{variable}");
        }
        for annotation in board.annotations() {
            ensure!(annotation["datasource"]["uid"] == SOURCE, "{annotation}");
        }
    }
    for name in ["Policy changes", "Restarts"] {
        annotation(name)?;
    }
    Ok(())
}

#[test]
fn every_query_goes_to_the_chosen_source_and_instances() -> Result<()> {
    for board in boards()? {
        for panel in board.panels() {
            ensure!(panel["datasource"]["uid"] == SOURCE, "{panel}");
            for target in targets(panel) {
                ensure!(target["datasource"]["uid"] == SOURCE, "{target}");
                chosen(target["expr"].as_str().unwrap_or_default())?;
            }
        }
    }
    Ok(())
}

/// Check that each selector names the cluster, and each range is Grafana's.
fn chosen(expr: &str) -> Result<()> {
    let selectors = names::metrics(expr).len();
    let chosen = expr.matches("{cluster=~\"$cluster\"").count();
    ensure!(selectors > 0 && selectors == chosen, "{expr} does not name what is chosen");
    // A rate over a fixed time shows nothing when the scrape interval is longer.
    let count = |words: &[&str]| words.iter().map(|word| expr.matches(word).count()).sum::<usize>();
    let ranges = count(&["[$__rate_interval]", "[$__range]"]);
    ensure!(count(&["rate(", "increase(", "changes("]) == ranges, "{expr}: a range of its own");
    Ok(())
}

#[test]
fn no_panel_covers_another() -> Result<()> {
    for board in boards()? {
        let (mut taken, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for panel in board.value["panels"].as_array().context("no panels")? {
            let place = &panel["gridPos"];
            // The generator omits zeros.
            let number = |field: &str| place[field].as_u64().unwrap_or(0);
            let (x, y, w, h) = (number("x"), number("y"), number("w"), number("h"));
            ensure!(w > 0 && h > 0 && x + w <= 24, "{} is off the grid", panel["title"]);
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                ensure!(taken.insert(cell), "{} covers another", panel["title"]);
            }
            ensure!(ids.insert(panel["id"].as_u64()), "{} shares its id", panel["title"]);
        }
    }
    Ok(())
}
