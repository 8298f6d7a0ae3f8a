//! The catalogue of metrics, against a running guard with a companion server.
//!
//! `ws-guard/src/metrics` tests that the page agrees with the code that generates it.
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::tools;

use crate::{
    files,
    stage::{Stage, eventually},
};

pub const PAGE: &str = "docs/metrics.md";

/// Label values; `None` where they are not known beforehand.
type Values = Option<BTreeSet<String>>;

/// A family of metrics, from the page or from a scrape.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Family {
    kind: String,
    help: String,
    labels: BTreeMap<String, Values>,
}

/// Return the families of the page.
pub fn families() -> Result<BTreeMap<String, Family>> {
    let page = files::read(PAGE)?;
    let mut families = BTreeMap::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.trim_end_matches(" |").splitn(4, " | ").collect();
        let [name, kind, labels, help] = cells[..] else { continue };
        let family = Family {
            kind: kind.split(',').next().unwrap_or_default().into(),
            help: help.into(),
            labels: labels.split("; ").filter_map(label).collect(),
        };
        let twice = families.insert(name.trim_end_matches('`').to_owned(), family);
        ensure!(twice.is_none(), "{name} is there twice");
    }
    ensure!(families.len() > 50, "only {} families in {PAGE}", families.len());
    Ok(families)
}

/// Parse `` `name`: `value`, `value` ``.
fn label(text: &str) -> Option<(String, Values)> {
    let (name, values) = text.split_once(": ")?;
    let quoted = |value: &str| Some(value.strip_prefix('`')?.strip_suffix('`')?.to_owned());
    Some((quoted(name)?, values.split(", ").map(quoted).collect()))
}

/// Return the families of a scrape.
fn scraped(text: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').context("no help")?;
            families.entry(name.into()).or_default().help = help.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            families.entry(name.into()).or_default().kind = kind.into();
            last = name.to_owned();
        } else if let Some((_, rest)) = line.split_once('{') {
            let family = families.get_mut(&last).context("a sample without a type")?;
            let (pairs, _) = rest.rsplit_once('}').context("no end of the labels")?;
            for pair in pairs.split("\",").filter(|pair| !pair.starts_with("le=")) {
                let (name, value) = pair.split_once("=\"").context("no value")?;
                let values = family.labels.entry(name.into()).or_insert(Some(BTreeSet::new()));
                values.as_mut().map(|values| values.insert(value.trim_end_matches('"').into()));
            }
        }
    }
    Ok(families)
}

/// Families with one series, for the current one of the values that the page names.
const ONE_OF: [&str; 2] = ["wsguard_attach_info", "wsguard_policy_info"];
/// Families by role: this stage has no interface of a pod.
const ROLES: [&str; 2] = ["wsguard_interface_attached", "wsguard_programs_before"];

/// Compare a family of the page with the scrape's.
/// Values that the page does not know are the scrape's.
fn compare(name: &str, page: &Family, scrape: &Family) -> Result<()> {
    ensure!(page.kind == scrape.kind, "{name} is a {}", scrape.kind);
    ensure!(page.help == scrape.help, "{name}: {}", scrape.help);
    ensure!(page.labels.keys().eq(scrape.labels.keys()), "{name}: {:?}", scrape.labels);
    for (label, values) in &page.labels {
        let (Some(values), Some(found)) = (values, &scrape.labels[label]) else { continue };
        let more: Vec<_> = found.difference(values).collect();
        ensure!(more.is_empty(), "{name}: {label} is also {more:?}");
        let fewer: Vec<_> = values.difference(found).collect();
        let may = ONE_OF.contains(&name) || ROLES.contains(&name) && label == "role";
        ensure!(may || fewer.is_empty(), "{name} has no series with {label} {fewer:?}");
    }
    Ok(())
}

#[test]
fn a_scrape_is_read_as_the_page_is() -> Result<()> {
    let text = "# HELP a_total It counts.\n# TYPE a_total counter\na_total{b=\"c\",d=\"e\"} 1\n";
    let family = Family {
        kind: "counter".into(),
        help: "It counts.".into(),
        labels: ["`b`: `c`", "`d`: `e`"].into_iter().filter_map(label).collect(),
    };
    let scrape = scraped(text)?;
    assert_eq!(scrape["a_total"], family);
    compare("a_total", &family, &scrape["a_total"])?;
    let other = |row| Family { labels: [label(row)].into_iter().flatten().collect(), ..family };
    ensure!(compare("a_total", &other("`b`: `c`, `x`"), &scrape["a_total"]).is_err());
    Ok(())
}

#[test]
fn what_a_guard_with_a_server_exports_is_in_the_catalogue() -> Result<()> {
    needs_root!();
    let stage = Stage::together()?;
    // Series by protocol exist from its first connection on.
    let _client = stage.client(0, true)?;
    let opened = "wsguard_server_protocol_opened_total{protocol=\"none\"} 1";
    eventually("a connection", || Ok(stage.metrics()?.contains(opened)))?;
    // Series of the worst sources exist once there are some.
    stage.throttle(0)?;
    let top = "wsguard_top_source_pings{";
    eventually("a source", || Ok(stage.metrics()?.contains(top)))?;
    let text = stage.metrics()?;
    let (page, scrape) = (families()?, scraped(&text)?);
    let names = |families: &BTreeMap<String, Family>| families.keys().cloned().collect();
    let (known, found): (BTreeSet<String>, BTreeSet<String>) = (names(&page), names(&scrape));
    let missing: Vec<_> = found.difference(&known).collect();
    ensure!(missing.is_empty(), "exported, and not in {PAGE}: {missing:?}");
    let silent: Vec<_> = known.difference(&found).collect();
    ensure!(silent.is_empty(), "in {PAGE}, and not exported: {silent:?}");
    for (name, family) in &page {
        compare(name, family, &scrape[name])?;
    }
    lint(&text)
}

/// Check that `promtool check metrics` finds nothing.
fn lint(text: &str) -> Result<()> {
    let mut promtool = Command::new(tools::promtool());
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().context("promtool: `cargo xtask setup` installs it")?;
    promtool.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
