//! The guard itself: daemon, pins, attachments, whether it sees traffic, what it costs in memory.

use std::time::Duration;

use ws_guard_common::{
    flow::Flow,
    maps::{Counter, Counters, FlowKey, PROVEN, Pending, SCHEMA_VERSION, SourceKey},
    source::Source,
};

use super::Check;
use crate::{
    cli::Global,
    control::client::{Client, ClientError},
    domain::status::counter,
    guard::{self, Attachment, GuardError, Maps, TableSizes},
};

/// How long to watch the counters.
const WATCH: Duration = Duration::from_secs(1);
/// What the kernel's hash tables add to each key and value, about.
const ENTRY_OVERHEAD: u64 = 48;

/// What was found.
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
            checks.push(memory(maps.table_sizes()));
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

/// Nothing loaded is a state to be in, not a failure; anything else is one.
fn not_loaded(check: &str, error: &GuardError) -> Check {
    match error {
        GuardError::NotLoaded(dir) => Check::warn(
            check,
            format!("no guard is loaded under {}", dir.display()),
            "start with `ws-guard run`, or name another --pin-dir",
        ),
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

fn memory(sizes: TableSizes) -> Check {
    let table = |entries: u32, key: usize, value: usize| {
        u64::from(entries) * (key as u64 + value as u64 + ENTRY_OVERHEAD)
    };
    let bytes = table(sizes.flows, size_of::<FlowKey>(), size_of::<Flow>())
        + table(sizes.sources, size_of::<SourceKey>(), size_of::<Source>())
        + table(sizes.pending + PROVEN, size_of::<FlowKey>(), size_of::<Pending>());
    let finding = format!(
        "about {} MiB when full: {} flows, {} sources, {} handshakes",
        bytes >> 20,
        sizes.flows,
        sizes.sources,
        sizes.pending
    );
    Check::ok("tables", finding)
}

/// Whether the counters move while we look.
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
