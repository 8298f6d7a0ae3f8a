//! What was measured, as a table and as JSON.
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::rows::{Hook, Limit, Row};

/// A row's figures.
#[derive(Debug, Serialize)]
pub struct Figures {
    hook: Hook,
    row: &'static str,
    /// Median over the rounds, nanoseconds a packet.
    ns: f64,
    /// Each round's mean.
    rounds_ns: Vec<u64>,
    /// For rows with several frames: nanoseconds for each but the first.
    ns_each_further: Option<f64>,
    reference: &'static str,
    /// `ns`, or `ns_each_further` where there is one, over the reference's `ns`.
    ratio: f64,
    limit: Option<f64>,
    over: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    kernel: String,
    repeats: u32,
    results: &'a [Figures],
}

/// The middle one, or the mean of the two in the middle.
fn median(times: &[u64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let middle = times.len() / 2;
    match (times.len() % 2, times.get(middle)) {
        (1, Some(time)) => *time as f64,
        (_, Some(time)) => (times[middle - 1] + time) as f64 / 2.0,
        _ => f64::NAN,
    }
}

pub fn results(rows: &[Row], times: Vec<Vec<u64>>) -> Result<Vec<Figures>> {
    let medians: Vec<f64> = times.iter().map(|times| median(times)).collect();
    let find = |hook: Hook, name: &str| {
        // The baselines of TC are the same on its two sides.
        let baseline = name.starts_with("baseline") && hook == Hook::TcIngress;
        let hook = if baseline { Hook::TcEgress } else { hook };
        let at = rows.iter().position(|row| row.hook == hook && row.name == name);
        at.map(|at| medians[at]).with_context(|| format!("no row {name:?} for {}", hook.name()))
    };
    let mut results = Vec::new();
    for ((row, rounds_ns), ns) in rows.iter().zip(times).zip(&medians) {
        let reference = find(row.hook, row.reference)?;
        let (ns_each_further, limit) = match row.limit {
            Limit::Shown => (None, None),
            Limit::Times(times) => (None, Some(times)),
            Limit::EachFurther { first, frames, times } => {
                let first = find(row.hook, first)?;
                (Some((ns - first) / f64::from(frames - 1)), Some(times))
            }
        };
        let ratio = ns_each_further.unwrap_or(*ns) / reference;
        results.push(Figures {
            hook: row.hook,
            row: row.name,
            ns: *ns,
            rounds_ns,
            ns_each_further,
            reference: row.reference,
            ratio,
            limit,
            over: limit.is_some_and(|limit| ratio > limit),
        });
    }
    Ok(results)
}

pub fn render(results: &[Figures]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["HOOK", "PACKET", "NS", "NS/FRAME", "RATIO", "LIMIT", "VERDICT", "AGAINST"]);
    for figures in results {
        let verdict = match (figures.limit, figures.over) {
            (None, _) => "",
            (_, true) => "OVER",
            _ => "ok",
        };
        let each = figures.ns_each_further.map(|ns| format!("{ns:.1}"));
        let limit = figures.limit.map(|limit| format!("{limit:.2}"));
        table.add_row([
            figures.hook.name(),
            figures.row,
            &format!("{:.1}", figures.ns),
            &each.unwrap_or_default(),
            &format!("{:.2}", figures.ratio),
            &limit.unwrap_or_default(),
            verdict,
            figures.reference,
        ]);
    }
    for column in table.column_iter_mut().skip(2).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let over = results.iter().filter(|figures| figures.over).count();
    let table = table.trim_fmt();
    format!("{table}\n\n{} rows, {over} over their limit", results.len())
}

pub fn json(repeats: &u32, results: &[Figures]) -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let report = Report { kernel: kernel.trim().to_owned(), repeats: *repeats, results };
    serde_json::to_string_pretty(&report).context("writing JSON")
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[9, 1, 5]), 5.0);
        assert_eq!(median(&[9, 1, 5, 6]), 5.5);
    }
}
