//! TCP counters of a namespace.
use anyhow::{Context, Result};

use crate::netns::Namespace;

/// Read a counter of the row `Tcp:` in /proc/net/snmp, such as `InCsumErrors`.
/// The row is for both IP versions.
pub fn tcp(namespace: &Namespace, name: &str) -> Result<u64> {
    statistic(namespace, "snmp", "Tcp: ", name)
}

/// Return the number of segments retransmitted so far (RFC 4022, tcpRetransSegs).
pub fn retransmissions(namespace: &Namespace) -> Result<u64> {
    tcp(namespace, "RetransSegs")
}

/// Return the number of segments that were lost on the path and retransmitted.
/// A late machine makes TCP retransmit what was not lost, for example as a tail loss probe (RFC
/// 8985, 7): then the peer has it twice, and reports that (RFC 2883).
pub fn lost(namespace: &Namespace) -> Result<u64> {
    let had_twice = statistic(namespace, "netstat", "TcpExt: ", "TCPDSACKRecvSegs")?;
    Ok(retransmissions(namespace)?.saturating_sub(had_twice))
}

/// Read a counter of the row `Udp:` (IPv4 only).
pub fn udp(namespace: &Namespace, name: &str) -> Result<u64> {
    statistic(namespace, "snmp", "Udp: ", name)
}

fn statistic(namespace: &Namespace, file: &str, row: &str, name: &str) -> Result<u64> {
    // "self" would be the main thread, which is in another namespace.
    let path = format!("/proc/thread-self/net/{file}");
    let text = namespace.run(|| std::fs::read_to_string(path))??;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(row));
    let (names, values) = (rows.next().context("no names")?, rows.next().context("no values")?);
    let mut both = names.split(' ').zip(values.split(' '));
    let value = both.find(|(found, _)| *found == name).with_context(|| format!("no {name}"))?.1;
    value.parse().with_context(|| format!("{name}: {value}"))
}
