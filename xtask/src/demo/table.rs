//! The three rounds next to each other.
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use ws_guard_testkit::servers::Library;

use super::round::Figures;

/// A figure of the table, by its name.
type Row = (&'static str, fn(&Figures) -> String);

const ROWS: [Row; 14] = [
    ("honest client: p50", |f| millis(f.served.p50)),
    ("honest client: p99", |f| millis(f.served.p99)),
    ("honest client: lost / messages", |f| format!("{} / {}", f.served.lost, f.served.messages)),
    ("honest client: pongs / pings", |f| format!("{} / {}", f.served.pongs, f.served.pings)),
    ("server: CPU", |f| percent(f.cpu)),
    ("server: memory growth", growth),
    // Its library answers each ping that it reads.
    ("server: pings answered", |f| count(f.totals.map(|totals| totals.pings))),
    ("flooder: pings sent", |f| f.flooded.pings.to_string()),
    ("flooder: pings got through", |f| f.taken.to_string()),
    ("guard: pings seen", |f| count(f.guard.map(|guard| guard.pings))),
    ("guard: pings defused", |f| count(f.guard.map(|guard| guard.defused))),
    ("guard: time to throttle", |f| f.time_to_throttle.map_or_else(none, millis)),
    ("round lasted", |f| seconds(f.flooded.time)),
    ("stopped", |f| f.stopped_at.map_or_else(none, |at| format!("after {}", seconds(at)))),
];

pub fn render(rounds: &[Figures; 3], library: Library) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([library.name(), "NO FLOOD", "FLOOD", "FLOOD, WS-GUARD"]);
    for (name, figure) in ROWS {
        let figures = rounds.iter().map(figure);
        table.add_row(std::iter::once(name.to_owned()).chain(figures));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Return one line that states the difference.
pub fn verdict([calm, without, with]: &[Figures; 3]) -> String {
    format!(
        "the honest client's p99 was {} ({} without a flood, {} without ws-guard), the server's CPU {} \
         ({}, {}), and its memory grew by {} ({} without ws-guard).",
        millis(with.served.p99),
        millis(calm.served.p99),
        millis(without.served.p99),
        percent(with.cpu),
        percent(calm.cpu),
        percent(without.cpu),
        megabytes(with.growth),
        growth(without),
    )
}

pub fn p50_ms(figures: &Figures) -> f64 {
    figures.served.p50.as_secs_f64() * 1e3
}

pub fn p99_ms(figures: &Figures) -> f64 {
    figures.served.p99.as_secs_f64() * 1e3
}

fn growth(figures: &Figures) -> String {
    megabytes(figures.growth)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(none, |number| number.to_string())
}

fn none() -> String {
    "-".to_owned()
}
