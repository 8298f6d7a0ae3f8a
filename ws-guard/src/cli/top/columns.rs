//! Columns of the clients, shared by the live view and `--once`.

use super::{model::Sort, sample::Row};
use crate::cli::output::{ago, ahead};

/// Column of the table.
pub struct Column {
    pub title: &'static str,
    /// Width on the screen.
    pub width: u16,
    /// Narrowest screen that shows the column.
    pub from: u16,
    pub number: bool,
    /// Sort order that belongs to the column.
    pub sort: Option<Sort>,
    pub cell: fn(&Row) -> String,
}

const fn number(
    title: &'static str,
    width: u16,
    from: u16,
    sort: Option<Sort>,
    cell: fn(&Row) -> String,
) -> Column {
    Column { title, width, from, number: true, sort, cell }
}

const fn text(title: &'static str, width: u16, from: u16, cell: fn(&Row) -> String) -> Column {
    Column { title, width, from, number: false, sort: None, cell }
}

/// Columns from left to right; the curve is drawn to the right of the rate.
pub const COLUMNS: [Column; 14] = [
    Column { sort: Some(Sort::Source), ..text("SOURCE", 24, 0, |row| row.view.source.clone()) },
    text("STATE", 9, 0, |row| row.view.state.name().into()),
    number("PINGS/S", 8, 0, Some(Sort::Rate), |row| rate(row.pings_per_second)),
    number("WINDOW", 7, 0, Some(Sort::Window), |row| row.view.pings_in_window.to_string()),
    number("CONNS", 6, 0, Some(Sort::Connections), |row| row.view.connections.to_string()),
    number("DEFUSED/S", 10, 0, Some(Sort::Defused), |row| rate(row.defused_per_second)),
    number("DROPPED/S", 10, 100, Some(Sort::Dropped), |row| rate(row.dropped_per_second)),
    number("HEARTBEAT", 10, 110, Some(Sort::Heartbeat), |row| milliseconds(row.heartbeat_rtt_us)),
    number("PACED", 5, 140, None, |row| row.view.paced.to_string()),
    number("PINGS", 10, 150, Some(Sort::Pings), |row| row.view.pings_total.to_string()),
    number("LAST-PING", 9, 150, None, |row| ago(row.view.last_ping)),
    number("FREE-IN", 10, 160, None, free_in),
    number("PORT", 5, 170, None, |row| row.view.port.map_or("-".into(), |port| port.to_string())),
    text("BY", 8, 180, by),
];

fn free_in(row: &Row) -> String {
    if row.is_throttled() && row.view.throttled_until.is_none() {
        return "on release".into();
    }
    ahead(row.view.throttled_until)
}

fn by(row: &Row) -> String {
    match (row.is_throttled(), row.view.manual) {
        (false, _) => "-",
        (true, true) => "operator",
        (true, false) => "pings",
    }
    .into()
}

/// Format a rate in few digits: `0`, `0.5`, `12`, `9400`, `12.3k`.
pub fn rate(rate: f64) -> String {
    match rate {
        0.0 => "0".into(),
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 9_999.5 => format!("{r:.0}"),
        r if r < 999_950.0 => format!("{:.1}k", r / 1e3),
        r => format!("{:.1}M", r / 1e6),
    }
}

/// Format as `1.2 ms`, or `-` without a measurement.
pub fn milliseconds(us: Option<u32>) -> String {
    us.map_or("-".into(), |us| format!("{:.1} ms", f64::from(us) / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short() {
        let texts = [0.0, 0.04, 9.94, 9.96, 9_999.0, 12_345.0, 999_949.0, 2_500_000.0].map(rate);
        assert_eq!(texts, ["0", "0.0", "9.9", "10", "9999", "12.3k", "999.9k", "2.5M"]);
        assert_eq!(milliseconds(Some(1_250)), "1.2 ms");
    }
}
