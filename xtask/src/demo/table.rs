//! The two rounds beside each other.
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use ws_guard_testkit::servers::Library;

use super::round::Figures;

/// A figure of the table, by its name.
type Row = (&'static str, fn(&Figures) -> String);

const ROWS: [Row; 13] = [
    ("server: memory growth", growth),
    ("server: CPU time", |f| seconds(f.cpu)),
    ("honest client: messages", |f| f.served.messages.to_string()),
    ("honest client: lost", |f| f.served.lost.to_string()),
    ("honest client: p50", |f| millis(f.served.p50)),
    ("honest client: p99", |f| millis(f.served.p99)),
    ("honest client: pongs / pings", |f| format!("{} / {}", f.served.pongs, f.served.pings)),
    ("flooder: pings sent", |f| f.flooded.pings.to_string()),
    // Each ping that its library reads, it answers.
    ("server: pongs sent or queued", |f| count(f.totals.map(|totals| totals.pings))),
    ("guard: pings seen", |f| count(f.guard.map(|guard| guard.pings))),
    ("guard: pings defused", |f| count(f.guard.map(|guard| guard.defused))),
    ("guard: time to throttle", |f| f.time_to_throttle.map_or_else(none, millis)),
    ("flood lasted", |f| seconds(f.flooded.time)),
];

pub fn render(without: &Figures, with: &Figures, library: Library) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([library.name(), "WITHOUT WS-GUARD", "WITH WS-GUARD"]);
    for (name, figure) in ROWS {
        table.add_row([name, &figure(without), &figure(with)]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// One line that says what the difference was.
pub fn verdict(without: &Figures, with: &Figures) -> String {
    format!(
        "the server grew by {} instead of {}, and the honest client's p99 was {} instead of {}.",
        megabytes(with.growth),
        growth(without),
        millis(with.served.p99),
        millis(without.served.p99)
    )
}

fn growth(figures: &Figures) -> String {
    let stopped = figures.stopped_at.map(|after| format!(", stopped after {}", seconds(after)));
    megabytes(figures.growth) + &stopped.unwrap_or_default()
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(none, |number| number.to_string())
}

fn none() -> String {
    "-".to_owned()
}
