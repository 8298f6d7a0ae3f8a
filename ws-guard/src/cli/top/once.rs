//! `ws-guard top --once`: two readings as text or JSON.

use serde::Serialize;

use super::{
    columns::{COLUMNS, milliseconds, rate},
    model::{Sort, arranged},
    sample::{Heartbeats, Rates, Row, Verdicts},
};
use crate::{
    cli::output::{Column, Table, plural},
    domain::{clock::Timestamp, event::EventView},
};

/// Width of a plain table: columns that need no more.
const PLAIN: u16 = 120;

/// JSON document for scripts.
#[derive(Serialize)]
struct Document<'a> {
    time: Timestamp,
    interval_seconds: f64,
    /// Process of the daemon; null when the pins were read.
    pid: Option<u32>,
    clients: u32,
    throttled: u32,
    connections: u32,
    paced: u32,
    per_second: Verdicts,
    heartbeats: Heartbeats,
    /// Selected clients, in order.
    rows: Vec<&'a Row>,
    /// Latest events; none without a daemon.
    events: &'a [EventView],
}

/// Return the selected rows, in order.
fn wanted<'a>(rates: &'a Rates, sort: Sort, filter: &str, limit: usize) -> Vec<&'a Row> {
    let order = arranged(&rates.rows, sort, false, filter);
    order.into_iter().take(limit).map(|i| &rates.rows[i]).collect()
}

pub fn json(
    rates: &Rates,
    events: &[EventView],
    sort: Sort,
    filter: &str,
    limit: usize,
) -> serde_json::Result<String> {
    let status = &rates.status;
    let document = Document {
        time: rates.time,
        interval_seconds: rates.span.as_secs_f64(),
        pid: status.pid,
        clients: status.sources,
        throttled: status.throttled,
        connections: status.flows,
        paced: status.flow_states.paced,
        per_second: rates.verdicts,
        heartbeats: rates.heartbeats,
        rows: wanted(rates, sort, filter, limit),
        events,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

pub fn text(rates: &Rates, sort: Sort, filter: &str, limit: usize, wide: bool) -> String {
    let rows = wanted(rates, sort, filter, limit);
    let did = rates.verdicts;
    let beats = rates.heartbeats;
    let column = |of: &super::columns::Column| Column {
        title: of.title,
        number: of.number,
        wide: of.from > PLAIN,
    };
    let throttled = rows.iter().filter(|row| row.is_throttled()).count();
    let table = Table {
        columns: COLUMNS.iter().map(column).collect(),
        rows: rows.iter().map(|row| COLUMNS.iter().map(|of| (of.cell)(row)).collect()).collect(),
        count: format!("{}, {throttled} throttled", plural(rows.len(), "client", "clients")),
    };
    format!(
        "a second: {} pings, {} defused; packets: {} seen, {} tracked, {} dropped\n\
         heartbeats: median {}, p99 {}, slowest {}\n{}",
        rate(did.pings),
        rate(did.defused),
        rate(did.seen),
        rate(did.tracked),
        rate(did.dropped),
        milliseconds(beats.median_us),
        milliseconds(beats.p99_us),
        milliseconds(beats.slowest_us),
        table.render(wide)
    )
}
