//! Results of the measurement as a table for readers.

use comfy_table::{CellAlignment, Table, presets};

use super::{echo, idle};

fn verdict(met: Option<bool>) -> &'static str {
    match met {
        None => "",
        Some(true) => "ok",
        Some(false) => "SHORT",
    }
}

pub fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2).take(N - 3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

pub fn echo(results: &[echo::Figures]) -> String {
    let header = ["ECHO", "SERVER", "MSG/S", "CPU S/M", "SPEED", "ECONOMY", "LIMIT", "VERDICT"];
    let text = table(
        header,
        results.iter().map(|figures| {
            let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |r| format!("{r:.2}"));
            let [speed, economy, limit] = [figures.speed, figures.economy, figures.limit];
            let met = limit.map(|limit| speed >= Some(limit) && economy >= Some(limit));
            [
                format!("{} B, window {}", figures.payload, figures.window),
                figures.who.name().into(),
                format!("{:.0}", figures.messages_per_second),
                format!("{:.2}", figures.cpu_seconds_per_million),
                times(speed),
                times(economy),
                times(limit),
                verdict(met).into(),
            ]
        }),
    );
    let cases = results.iter().filter_map(|f| Some((f.limit?, f.speed?.min(f.economy?))));
    let (count, short) = cases.fold((0, 0), |(count, short), (limit, ratio)| {
        (count + 1, short + usize::from(ratio < limit))
    });
    format!("{text}\n\n{count} cases, {short} fall short")
}

pub fn idle(results: &[idle::Figures]) -> String {
    let header = ["IDLE", "SERVER", "CONNECTIONS", "KIB EACH", "LIMIT", "VERDICT"];
    let text = table(
        header,
        results.iter().map(|figures| {
            let limit = figures.limit.map(|limit| format!("{limit:.1}"));
            [
                figures.kind.name().into(),
                figures.who.name().into(),
                figures.connections.to_string(),
                format!("{:.2}", figures.kib_each),
                limit.unwrap_or_default(),
                verdict(figures.limit.map(|limit| figures.kib_each <= limit)).into(),
            ]
        }),
    );
    let short = results.iter().filter(|f| f.limit.is_some_and(|limit| f.kib_each > limit)).count();
    format!("{text}\n\n{} rows, {short} over their limit", results.len())
}
