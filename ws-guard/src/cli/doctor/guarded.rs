//! The guard itself: daemon, pins, attachments, visible traffic, memory.

use std::{cmp::Reverse, time::Duration};

use ws_guard_common::maps::{Counter, Counters, SCHEMA_VERSION};

use super::Check;
use crate::{
    api::client::{Client, ClientError},
    cli::Global,
    domain::status::counter,
    guard::{self, Attachment, GuardError, MapMemory, Maps, Memory},
};

/// Time between two readings of the counters.
const WATCH: Duration = Duration::from_secs(1);
/// Size limit of maps that share one figure.
const WORTH_A_FIGURE: u64 = 256 << 10;

/// Findings about the guard.
pub struct Guarded {
    pub attachments: Vec<Attachment>,
    pub checks: Vec<Check>,
}

pub async fn look(global: &Global) -> Guarded {
    let mut checks = vec![daemon(global).await];
    let attachments = match guard::pinned_attachments(&global.pin_dir) {
        Ok(attachments) => attachments,
        Err(error) => {
            checks.push(not_loaded("attached", &error));
            return Guarded { attachments: Vec::new(), checks };
        }
    };
    checks.push(attached(&attachments));
    checks.push(precedence(global));
    match Maps::from_pins(&global.pin_dir) {
        Ok(maps) => {
            let schema = format!("schema {SCHEMA_VERSION} in {}", global.pin_dir.display());
            checks.push(Check::ok("pins", schema));
            checks.extend(memory(&maps));
            checks.push(traffic(&maps).await);
            checks.push(super::proxies::check(&maps));
        }
        Err(error) => checks.push(not_loaded("pins", &error)),
    }
    Guarded { attachments, checks }
}

async fn daemon(global: &Global) -> Check {
    match Client::new(&global.control_socket).info().await {
        Ok(info) if info.pin_dir == global.pin_dir => {
            Check::ok("daemon", format!("pid {}, version {}", info.pid, info.version))
        }
        Ok(info) => Check::warn(
            "daemon",
            format!("pid {} guards {}", info.pid, info.pin_dir.display()),
            "name the --control-socket that belongs to the --pin-dir",
        ),
        Err(ClientError::Unreachable(socket)) => Check::warn(
            "daemon",
            format!("none on {}", socket.display()),
            "start one with `ws-guard run`; pinned programs protect without it",
        ),
        Err(error) => Check::warn("daemon", error.to_string(), "see its log"),
    }
}

/// Report a guard that is not loaded as a warning, any other error as a failure.
fn not_loaded(check: &str, error: &GuardError) -> Check {
    match error {
        GuardError::NotLoaded(dir) => Check::warn(
            check,
            format!("no guard is loaded under {}", dir.display()),
            "start with `ws-guard run`, or name another --pin-dir",
        ),
        GuardError::Earlier(..) => {
            Check::warn(check, error.to_string(), "start `ws-guard run` of this version")
        }
        other => Check::fail(check, other.to_string(), "see the message"),
    }
}

fn attached(attachments: &[Attachment]) -> Check {
    let half = |a: &&Attachment| a.ingress.is_none() || a.egress.is_none();
    let name = |a: &Attachment| a.name.clone();
    let missing: Vec<String> = attachments.iter().filter(half).map(name).collect();
    if attachments.is_empty() {
        let remedy = "start the daemon: it attaches to its interfaces as they appear";
        return Check::fail("attached", "pinned, but on no interface", remedy);
    }
    if !missing.is_empty() {
        let finding = format!("on one side only: {}", missing.join(", "));
        return Check::fail("attached", finding, "restart the daemon, and see its log");
    }
    let names: Vec<String> = attachments.iter().map(name).collect();
    Check::ok("attached", names.join(", "))
}

fn precedence(global: &Global) -> Check {
    let check = "precedence";
    match guard::overtaken(&global.pin_dir) {
        Ok(found) if found.is_empty() => Check::ok(check, "no TCX program runs before the guard's"),
        Ok(found) => {
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            let remedy = "let it pass with TCX_NEXT (-1), or attach it behind, \
                          or unload and run again to come first";
            Check::warn(check, texts.join("; "), remedy)
        }
        Err(error) => Check::fail(check, error.to_string(), "see the message"),
    }
}

/// Report the memory of the tables: all together, and each large one.
fn memory(maps: &Maps) -> Vec<Check> {
    let check = "tables";
    let sizes = maps.table_sizes();
    let by_map = match maps.memory_by_map() {
        Ok(by_map) => by_map,
        Err(error) => return vec![Check::fail(check, error.to_string(), "see the message")],
    };
    let memory: Memory = by_map.iter().map(|map| map.memory).sum();
    let (flows, sources, handshakes) = (sizes.flows, sizes.sources, sizes.pending + sizes.opening);
    let all = format!("{memory}: {flows} flows, {sources} sources, {handshakes} handshakes");
    vec![Check::ok(check, all), Check::ok("memory", largest_first(by_map))]
}

/// List figures in MiB, the smallest maps as one.
fn largest_first(mut maps: Vec<MapMemory>) -> String {
    maps.sort_by_key(|map| Reverse((map.memory.full, map.memory.now)));
    let small = maps.iter().position(|map| map.memory.full < WORTH_A_FIGURE);
    let rest = maps.split_off(small.unwrap_or(maps.len()));
    let mut parts: Vec<String> = maps.iter().map(MapMemory::to_string).collect();
    if !rest.is_empty() {
        let now = rest.iter().map(|map| map.memory.now).sum::<u64>();
        parts.push(format!("{} more {:.1}", rest.len(), now as f64 / f64::from(1 << 20)));
    }
    format!("MiB: {}", parts.join(", "))
}

/// Check whether the counters move while we look.
async fn traffic(maps: &Maps) -> Check {
    let seen = |counters: &Counters| {
        (counter(counters, Counter::Seen), counter(counters, Counter::EgressSeen))
    };
    let before = maps.counters().map(|counters| seen(&counters));
    tokio::time::sleep(WATCH).await;
    let after = maps.counters().map(|counters| seen(&counters));
    let ((in_before, out_before), (in_after, out_after)) = match (before, after) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => {
            return Check::fail("traffic", error.to_string(), "see the message");
        }
    };
    let moved = (in_after.saturating_sub(in_before), out_after.saturating_sub(out_before));
    let finding = format!("{} packets in, {} out within 1 s", moved.0, moved.1);
    match (moved.0 > 0, moved.1 > 0) {
        (true, true) => Check::ok("traffic", finding),
        (false, false) => Check::warn("traffic", finding, "send some, and look again"),
        _ => Check::warn(
            "traffic",
            format!("{finding}: one direction only"),
            "both directions of a connection have to pass a guarded interface",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_tables_come_first() {
        let map = |map, now, full| MapMemory { map, memory: Memory { now, full } };
        let maps = vec![
            map("SMALL", 100 << 10, 100 << 10),
            map("STEADY", 8 << 20, 8 << 20),
            map("GROWS", 1 << 19, 34 << 20),
            map("TINY", 3 << 10, 3 << 10),
        ];
        assert_eq!(largest_first(maps), "MiB: GROWS 0.5 of 34.0, STEADY 8.0, 2 more 0.1");
    }
}
