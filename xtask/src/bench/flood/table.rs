//! Results for readers, and the goals.
use comfy_table::{CellAlignment, Table, presets};

use super::{
    Case, Figures,
    case::{Flood, Mode},
    run::{Plan, Sample},
};
use crate::bench::median;

/// Maximum factor over the run without a flood.
const P50: f64 = 1.1;
const P99: f64 = 1.5;
/// Maximum factor with a flooder that ignores the window.
const P99_BEYOND: f64 = 2.0;
const CPU: f64 = 1.2;
/// Maximum growth of the server in bytes.
const GROWTH: f64 = (1 << 20) as f64;

const HEADER: [&str; 18] = [
    "SERVER",
    "FLOOD",
    "CONNS",
    "MODE",
    "P50 MS",
    "P99 MS",
    "LOST",
    "CPU",
    "GROWTH MB",
    "THROUGH KB",
    "FRAMES",
    "OWN BACK",
    "BROKEN",
    "AGAIN C",
    "AGAIN S",
    "IN FLOOD",
    "BEYOND",
    "POLICED",
];

impl Figures {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    fn sum(&self, of: impl Fn(&Sample) -> u64) -> u64 {
        self.rounds.iter().map(of).sum()
    }
}

/// Format a run in a line, while others go on.
pub fn line(plan: Plan, sample: &Sample) -> String {
    let Case { server, flood, connections } = plan.case;
    let stopped = sample.stopped_after.map(|after| format!(" in {after:.1} s"));
    format!(
        "{} {} x{connections}, {}: p50 {:.2} ms, p99 {:.2} ms, {} lost, CPU {:.0} %, {:.1} MB{}, \
         {} KB through, own {}/{}",
        server.name(),
        flood.name(),
        plan.mode.name(),
        sample.p50_ms,
        sample.p99_ms,
        sample.lost,
        sample.cpu * 100.0,
        sample.growth as f64 / 1e6,
        stopped.unwrap_or_default(),
        sample.flooded.bytes / 1000,
        sample.flooded.echoed,
        sample.flooded.own,
    )
}

/// Format the table, and verdicts.
/// A case has one if it was measured with `defuse` and without a flood.
pub fn render(results: &[Figures]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEADER);
    results.iter().for_each(|figures| {
        table.add_row(row(figures));
    });
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let verdicts: Vec<String> = results.iter().filter_map(|f| verdict(f, results)).collect();
    let short = verdicts.iter().filter(|line| line.contains("SHORT")).count();
    let text = table.trim_fmt();
    if verdicts.is_empty() {
        return text;
    }
    format!("{text}\n\n{}\n\n{} cases, {short} fall short", verdicts.join("\n"), verdicts.len())
}

fn row(figures: &Figures) -> [String; 18] {
    let of = |field: fn(&Sample) -> f64| figures.median(field);
    [
        figures.case.server.name().into(),
        figures.case.flood.name().into(),
        figures.case.connections.to_string(),
        figures.mode.name().into(),
        format!("{:.2}", of(|s| s.p50_ms)),
        format!("{:.2}", of(|s| s.p99_ms)),
        figures.sum(|s| s.lost).to_string(),
        format!("{:.1} %", of(|s| s.cpu * 100.0)),
        format!("{:.1}", of(|s| s.growth as f64 / 1e6)),
        format!("{:.0}", of(|s| s.flooded.bytes as f64 / 1e3)),
        format!("{:.0}", of(|s| s.flooded.frames as f64)),
        format!("{}/{}", figures.sum(|s| s.flooded.echoed), figures.sum(|s| s.flooded.own)),
        figures.sum(|s| s.flooded.broken).to_string(),
        figures.sum(|s| s.again_client).to_string(),
        figures.sum(|s| s.again_server).to_string(),
        figures.sum(|s| s.again_in_flood).to_string(),
        figures.sum(|s| s.beyond_edge).to_string(),
        figures.sum(|s| s.policed).to_string(),
    ]
}

/// Return the shortfall of `defuse` against the same rounds without a flood.
fn verdict(defuse: &Figures, results: &[Figures]) -> Option<String> {
    if defuse.mode != Mode::Defuse {
        return None;
    }
    let calm = results.iter().find(|f| f.case == defuse.case && f.mode == Mode::NoFlood)?;
    let times = |of: fn(&Sample) -> f64| {
        let pairs = defuse.rounds.iter().zip(&calm.rounds);
        median(pairs.map(|(sample, calm)| of(sample) / of(calm)))
    };
    // Also without a flood a garbage-collected heap grows.
    let grown = defuse.median(|s| s.growth as f64) - calm.median(|s| s.growth as f64);
    let beyond = defuse.case.flood == Flood::BeyondWindow;
    // After the flood the flooder's connections all send what they have left, and the interface's
    // own queue overflows; what the pace dropped before that counts nevertheless.
    let again = defuse.sum(|s| s.again_in_flood.max(s.beyond_edge + s.policed));
    let before = calm.sum(|s| s.again_in_flood);
    // Limits of the server itself, such as 4,096 fragments of a message, end the connections as
    // well.
    let mut unguarded =
        results.iter().filter(|f| f.case == defuse.case && f.mode == Mode::Unguarded);
    let server_ends = unguarded.any(|figures| figures.sum(|s| s.flooded.broken) > 0);
    let missing = |s: &Sample| if server_ends { 0 } else { s.flooded.own - s.flooded.echoed };
    let goals = [
        ("p50, times", times(|s| s.p50_ms), P50),
        ("p99, times", times(|s| s.p99_ms), if beyond { P99_BEYOND } else { P99 }),
        ("CPU, times", times(|s| s.cpu), CPU),
        ("growth, MiB", grown / GROWTH, 1.0),
        ("lost", defuse.sum(|s| s.lost) as f64, 0.0),
        ("sent again", again.saturating_sub(before) as f64, 0.0),
        ("own missing", defuse.sum(missing) as f64, 0.0),
        ("taken beyond the window", defuse.sum(|s| s.flooded.beyond) as f64, 0.0),
    ];
    let shown = goals.map(|(what, is, goal)| {
        let short = if is > goal { " SHORT" } else { "" };
        format!("{what} {is:.2} of {goal:.1}{short}")
    });
    let Case { server, flood, connections } = defuse.case;
    Some(format!("{} {} x{connections}: {}", server.name(), flood.name(), shown.join(", ")))
}
