//! Catalogue in `docs/metrics.md`, generated from the exported families.

use std::fmt::Write as _;

use expect_test::expect_file;
use prometheus::proto::{MetricFamily, MetricType};
use ws_guard_common::maps::Counters;
use ws_guard_server::specimen::{self, Group};

use super::{
    collector::{self, Daemon},
    servers, top,
};
use crate::{
    companion::supervisor,
    domain::status::Status,
    guard::{Attachment, Mode, Role},
};

const HEAD: &str = "# Metrics

<!-- Made from the code by `cargo xtask docs`. -->

`/metrics` of `--metrics-listen`, and OTLP with `--otlp-endpoint`, have the same families; how to serve them is in [operations](operations.md#metrics) and [the server's telemetry](server.md#telemetry). Counters of the guard are the kernel's: they outlive the daemon. No label is a client's address (but with `--top-sources`), a user or a topic; servers behind the guard are labelled with theirs, the first 64 of them. A series with known label values exists, with 0, before its first event. What asks for them is in `deploy/prometheus` and `deploy/grafana`.
";

/// Descriptions of labels whose values are not the specimen's.
const VALUES: [(&str, &str); 9] = [
    ("action", "`observe`, `defuse`, `drop`, `ban`"),
    ("interface", "its name"),
    ("port", "of the server; or `other`"),
    ("protocol", "the subprotocol's name, or `none`"),
    ("region", "as clients name it: the first 64, `other`, `unknown`"),
    ("schema", "of the pinned maps"),
    ("server", "its address; or `other`, for those beyond the first 64"),
    ("source", "its address or prefix"),
    ("version", "of the daemon"),
];

/// Return the families of a guard without any traffic.
fn guard() -> Vec<MetricFamily> {
    let kernel = Counters::ZERO;
    let attached = |(role, mode)| {
        let (ingress, egress) = match mode {
            Mode::XdpNative | Mode::XdpGeneric => (Some(mode), None),
            Mode::Tcx | Mode::Clsact => (Some(mode), Some(mode)),
        };
        Attachment { name: "eth0".into(), role, ingress, egress }
    };
    let modes = Mode::ALL.map(|mode| (Role::Uplink, mode));
    let interfaces = modes.into_iter().chain([(Role::Pod, Mode::Tcx)]).map(attached).collect();
    let status = Status { interfaces, ..Status::default() };
    let servers = servers::specimen();
    let mut families = collector::families(&kernel, &servers, &status, &Daemon::default());
    families.push(collector::up(true));
    families.extend(top::specimen());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    families
}

fn groups() -> prometheus::Result<Vec<Group>> {
    let registry = prometheus::Registry::new();
    supervisor::restarts(&registry)?;
    let mut groups = vec![
        Group { title: "Guard", when: "`run`", families: guard() },
        Group {
            title: "Companion server's process",
            when: "`run --listen`",
            families: registry.gather(),
        },
    ];
    groups.extend(specimen::groups()?);
    Ok(groups)
}

/// Name a family's type: `counter`, `gauge`, or `histogram` with its bounds.
fn kind(family: &MetricFamily) -> String {
    match family.get_field_type() {
        MetricType::COUNTER => "counter".into(),
        MetricType::GAUGE => "gauge".into(),
        MetricType::HISTOGRAM => {
            let buckets = family.get_metric()[0].get_histogram().get_bucket();
            let bounds: Vec<f64> = buckets.iter().map(|bucket| bucket.upper_bound()).collect();
            let (first, last) = (bounds[0], bounds[bounds.len() - 1]);
            format!("histogram, {} buckets from {first} to {last}", bounds.len())
        }
        other => unreachable!("{}: no {other:?} is exported", family.name()),
    }
}

/// List each label with its values, in the order of their export.
fn labels(family: &MetricFamily) -> String {
    let mut labels: Vec<(&str, Vec<String>)> = Vec::new();
    for pair in family.get_metric().iter().flat_map(|metric| metric.get_label()) {
        let value = format!("`{}`", pair.value());
        match labels.iter_mut().find(|(name, _)| *name == pair.name()) {
            Some((_, values)) if values.contains(&value) => {}
            Some((_, values)) => values.push(value),
            None => labels.push((pair.name(), vec![value])),
        }
    }
    let described = |(name, values): (&str, Vec<String>)| {
        let fixed = VALUES.iter().find(|(label, _)| *label == name);
        let values = fixed.map_or_else(|| values.join(", "), |(_, text)| (*text).to_owned());
        format!("`{name}`: {values}")
    };
    labels.into_iter().map(described).collect::<Vec<_>>().join("; ")
}

fn page(groups: &[Group]) -> String {
    let mut page = HEAD.to_owned();
    for Group { title, when, families } in groups {
        let _ = write!(
            page,
            "\n## {title}\nWith {when}.\n\n| metric | type | labels | |\n|---|---|---|---|\n"
        );
        for family in families {
            let (name, help) = (family.name(), family.help());
            let _ = writeln!(page, "| `{name}` | {} | {} | {help} |", kind(family), labels(family));
        }
    }
    page
}

/// Fails if `docs/metrics.md` is older than the code: `cargo xtask docs` renews it.
#[test]
fn the_catalogue_is_the_codes() {
    let groups = groups().expect("each name once");
    assert!(groups.iter().all(|group| !group.families.is_empty()), "a group without families");
    expect_file!["../../../docs/metrics.md"].assert_eq(&page(&groups));
}
