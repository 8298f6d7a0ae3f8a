//! Results of the measurement, as a table and as JSON.
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    median,
    rows::{Hook, Limit, Row},
};

/// Results of one round for a row: mean nanoseconds a packet.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Time of the reference, right before.
    pub reference_ns: u64,
    /// Time of the row with one frame, for rows with several; otherwise 0.
    pub first_ns: u64,
    /// For a row of many flows, the same row on one, right before.
    pub on_one: Option<OnOne>,
    pub ns: u64,
}

/// Times of a row of one flow: its reference's, and its own.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OnOne {
    pub reference_ns: u64,
    pub ns: u64,
}

/// A row's figures.
#[derive(Debug, Serialize)]
pub struct Figures {
    hook: Hook,
    row: &'static str,
    /// Median over the rounds, nanoseconds a packet.
    ns: f64,
    rounds: Vec<Sample>,
    /// Nanoseconds for each frame except the first, for rows with several.
    ns_each_further: Option<f64>,
    reference: &'static str,
    /// Median over the rounds of the ratio to the reference.
    /// Of `ns`, or `ns_each_further` where there is one, in the same round.
    ratio: f64,
    /// The same of the row on one flow, for a row of many.
    ratio_on_one: Option<f64>,
    limit: Option<f64>,
    over: bool,
}

impl Sample {
    /// Return nanoseconds for each frame except the first, of `frames`.
    fn each_further(&self, frames: u32) -> f64 {
        (self.ns as f64 - self.first_ns as f64) / f64::from(frames - 1)
    }
}

/// Return the figures of each row, from its samples.
pub fn results(rows: &[&Row], samples: &[Vec<Sample>]) -> Vec<Figures> {
    rows.iter().zip(samples).map(|(row, samples)| figures(row, samples)).collect()
}

fn figures(row: &Row, samples: &[Sample]) -> Figures {
    let frames = match row.limit {
        Limit::EachFurther { frames, .. } => Some(frames),
        _ => None,
    };
    let on_one: Option<Vec<OnOne>> = samples.iter().map(|sample| sample.on_one).collect();
    let ratio_on_one = on_one.map(|times| {
        median(times.iter().map(|OnOne { reference_ns, ns }| *ns as f64 / *reference_ns as f64))
    });
    let limit = match row.limit {
        Limit::Shown => None,
        Limit::Times(times) | Limit::EachFurther { times, .. } => Some(times),
        Limit::AsOnOne { times, .. } => ratio_on_one.map(|ratio| times * ratio),
    };
    let ratio = median(samples.iter().map(|sample| {
        let ns = frames.map_or(sample.ns as f64, |frames| sample.each_further(frames));
        ns / sample.reference_ns as f64
    }));
    Figures {
        hook: row.hook,
        row: row.name,
        ns: median(samples.iter().map(|sample| sample.ns as f64)),
        rounds: samples.to_vec(),
        ns_each_further: frames
            .map(|frames| median(samples.iter().map(|sample| sample.each_further(frames)))),
        reference: row.reference,
        ratio,
        ratio_on_one,
        limit,
        over: limit.is_some_and(|limit| ratio > limit),
    }
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
