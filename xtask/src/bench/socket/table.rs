//! The figures, for people.
use comfy_table::{CellAlignment, Table, presets};

use super::{Figures, Lossy, SIZES, loss::Traffic, measure::Attached};
use crate::bench::median;

fn table(header: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

pub fn behaviour(rows: &[[String; 4]]) -> String {
    let mut table = table(&["WHAT A SERVER SEES", "PLAIN", "IN A MAP", "WITH A PARSER"], 4);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// A figure of each round as a ratio to nothing attached in the same round, and the median of these.
fn ratio<T>(of: &[T], reference: &[T], figure: impl Fn(&T) -> f64) -> String {
    let ratios = of.iter().zip(reference).map(|(one, other)| figure(one) / figure(other));
    format!("{:.2}", median(ratios))
}

fn middle<T>(of: &[T], figure: impl Fn(&T) -> f64) -> String {
    format!("{:.1}", median(of.iter().map(figure)))
}

pub fn cost(results: &[Figures]) -> String {
    let Some(nothing) = results.iter().find(|figures| figures.attached == Attached::Nothing) else {
        return String::new();
    };
    let header = ["ATTACHED", "P50 US", "TO NOTHING", "P99 US", "TO NOTHING"];
    let header = [&header[..], &["SERVER CPU US", "TO NOTHING", "CPU US", "TO NOTHING"]].concat();
    let mut echoes = table(&header, 1);
    for Figures { attached, echoes: of, .. } in results {
        let mut row = vec![attached.name().to_owned()];
        let figures: [fn(&super::Echoes) -> f64; 4] =
            [|e| e.p50, |e| e.p99, |e| e.server_cpu, |e| e.cpu];
        for figure in figures {
            row.extend([middle(of, figure), ratio(of, &nothing.echoes, figure)]);
        }
        echoes.add_row(row);
    }
    let header = ["UPLOAD", "ATTACHED", "MB/S", "TO NOTHING", "CPU US/FRAME", "TO NOTHING"];
    let mut uploads = table(&header, 2);
    for (n, size) in SIZES.into_iter().enumerate() {
        for figures in results {
            let (of, reference) = (&figures.uploads[n], &nothing.uploads[n]);
            let mut row = vec![format!("frames of {size}"), figures.attached.name().to_owned()];
            row.extend([
                middle(of, |upload| upload.megabytes_per_second),
                ratio(of, reference, |upload| upload.megabytes_per_second),
                format!("{:.2}", median(of.iter().map(|upload| upload.cpu))),
                ratio(of, reference, |upload| upload.cpu),
            ]);
            uploads.add_row(row);
        }
    }
    format!("{}\n\n{}", echoes.trim_fmt(), uploads.trim_fmt())
}

pub fn loss(results: &[Lossy]) -> String {
    let mut table = table(&["TRAFFIC", "PATH", "ATTACHED", "SECONDS", "P50 MS", "P99 MS"], 3);
    for lossy in results {
        let of = &lossy.samples;
        let traffic = match lossy.traffic {
            Traffic::Upload(size) => format!("upload, frames of {size}"),
            Traffic::Messages => "messages, 20 a second".to_owned(),
        };
        let mut row = vec![traffic, lossy.path.to_owned(), lossy.attached.name().to_owned()];
        row.extend(match lossy.traffic {
            Traffic::Upload(_) => {
                let seconds = of.iter().map(|sample| sample.seconds.unwrap_or(f64::INFINITY));
                [format!("{:.2}", median(seconds)), String::new(), String::new()]
            }
            Traffic::Messages => {
                [String::new(), middle(of, |sample| sample.p50), middle(of, |sample| sample.p99)]
            }
        });
        table.add_row(row);
    }
    table.trim_fmt()
}
