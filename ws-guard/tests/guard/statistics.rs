//! What a namespace's TCP counts.
use anyhow::{Context, Result};
use ws_guard_testkit::netns::Namespace;

/// A counter of the row `Tcp:` in /proc/net/snmp, such as `InCsumErrors` (both IP versions).
pub fn tcp(namespace: &Namespace, name: &str) -> Result<u64> {
    statistic(namespace, "Tcp: ", name)
}

/// The same of the row `Udp:` (IPv4 only).
pub fn udp(namespace: &Namespace, name: &str) -> Result<u64> {
    statistic(namespace, "Udp: ", name)
}

fn statistic(namespace: &Namespace, row: &str, name: &str) -> Result<u64> {
    // "self" would be the main thread, which is in another namespace.
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(row));
    let (names, values) = (rows.next().context("no names")?, rows.next().context("no values")?);
    let mut both = names.split(' ').zip(values.split(' '));
    let value = both.find(|(found, _)| *found == name).with_context(|| format!("no {name}"))?.1;
    value.parse().with_context(|| format!("{name}: {value}"))
}
