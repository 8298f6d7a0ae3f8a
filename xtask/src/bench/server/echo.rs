//! Messages a second, and the CPU time of a million of them.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use ws_guard_testkit::usage::Usage;

use super::{
    super::table::median,
    processes::{Kind, Server, load},
};

/// Sizes of messages in bytes, and how much of the best a server has to reach with each.
const SIZES: [(u32, f64); 3] = [(16, 1.0), (1024, 1.3), (64 * 1024, 1.0)];
/// Messages of a connection that are under way.
const WINDOWS: [u32; 2] = [1, 16];

/// How to measure.
pub struct Load {
    pub time: Duration,
    pub connections: u32,
    pub rounds: u32,
}

/// A server under one load.
#[derive(Debug, Serialize)]
pub struct Figures {
    server: Kind,
    bytes: u32,
    window: u32,
    /// Medians over the rounds.
    messages_per_second: f64,
    cpu_seconds_per_million: f64,
    rounds: Vec<Sample>,
    /// Of ws-guard: messages per CPU second beside those of the best other, and what that has to be.
    ratio: Option<f64>,
    goal: Option<f64>,
}

/// One round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    messages_per_second: f64,
    cpu_seconds_per_million: f64,
}

/// What the load says.
#[derive(Deserialize)]
struct Said {
    messages: u64,
    seconds: f64,
}

/// Measure every server with every load. In a round all servers take their turn at a load, because a
/// busy machine is slower in one minute than in the next.
pub fn measure(load: &Load, kinds: &[Kind]) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    for (bytes, goal) in SIZES {
        for window in WINDOWS {
            let mut samples = vec![Vec::new(); kinds.len()];
            for round in 1..=load.rounds {
                eprintln!("  {bytes} bytes, window {window}, round {round} of {}", load.rounds);
                for (kind, samples) in kinds.iter().zip(&mut samples) {
                    samples.push(sample(*kind, bytes, window, load)?);
                }
            }
            all.extend(compare(kinds, samples, bytes, window, goal));
        }
    }
    Ok(all)
}

fn sample(kind: Kind, bytes: u32, window: u32, with: &Load) -> Result<Sample> {
    let server = Server::start(kind)?;
    let mut arguments = vec!["echo".to_owned(), server.address.to_string()];
    arguments.extend([bytes, window, with.connections].map(|number| number.to_string()));
    arguments.push(with.time.as_secs_f64().to_string());
    let load = load(&arguments)?;
    let patience = Duration::from_secs(20) + with.time * 2;
    let failed = || format!("{} with messages of {bytes} bytes", kind.name());
    load.wait_for(patience, |line| (line == "measuring").then_some(())).with_context(failed)?;
    let before = Usage::of(server.process.pid())?.cpu;
    let said: Said =
        load.wait_for(patience, |line| serde_json::from_str(line).ok()).with_context(failed)?;
    let cpu = Usage::of(server.process.pid())?.cpu.saturating_sub(before);
    ensure!(said.messages > 0, "{}: nothing came back", failed());
    Ok(Sample {
        messages_per_second: said.messages as f64 / said.seconds,
        cpu_seconds_per_million: cpu.as_secs_f64() * 1e6 / said.messages as f64,
    })
}

fn compare(
    kinds: &[Kind],
    samples: Vec<Vec<Sample>>,
    bytes: u32,
    window: u32,
    goal: f64,
) -> Vec<Figures> {
    let mut figures: Vec<Figures> = kinds
        .iter()
        .zip(samples)
        .map(|(kind, rounds)| Figures {
            server: *kind,
            bytes,
            window,
            messages_per_second: median(rounds.iter().map(|round| round.messages_per_second)),
            cpu_seconds_per_million: median(
                rounds.iter().map(|round| round.cpu_seconds_per_million),
            ),
            rounds,
            ratio: None,
            goal: None,
        })
        .collect();
    let others = figures.iter().filter(|figures| figures.server != Kind::WsGuard);
    let best = others.map(|figures| figures.cpu_seconds_per_million).min_by(f64::total_cmp);
    for ours in figures.iter_mut().filter(|figures| figures.server == Kind::WsGuard) {
        ours.ratio = best.map(|best| best / ours.cpu_seconds_per_million);
        ours.goal = Some(goal);
    }
    figures
}

/// A table, a line a server and load.
pub fn render(results: &[Figures]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "BYTES",
        "WINDOW",
        "SERVER",
        "MESSAGES/S",
        "CPU S/MILLION",
        "BY BEST OTHER",
        "GOAL",
    ]);
    for figures in results {
        let ratio = figures.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let goal = figures.goal.zip(figures.ratio).map_or(String::new(), |(goal, ratio)| {
            format!("{goal:.1}{}", if ratio < goal { ", short of it" } else { "" })
        });
        table.add_row([
            figures.bytes.to_string(),
            figures.window.to_string(),
            figures.server.name().to_owned(),
            format!("{:.0}", figures.messages_per_second),
            format!("{:.2}", figures.cpu_seconds_per_million),
            ratio,
            goal,
        ]);
    }
    for number in [0, 1, 3, 4, 5] {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(cpu_seconds_per_million: f64) -> Sample {
        Sample { messages_per_second: 1.0, cpu_seconds_per_million }
    }

    #[test]
    fn ours_is_compared_with_the_best_of_the_others() {
        let samples = vec![
            vec![sample(3.0), sample(2.0), sample(9.0)],
            vec![sample(8.0); 3],
            vec![sample(6.0); 3],
        ];
        let figures = compare(&Kind::ALL[..3], samples, 1024, 16, 1.3);
        assert_eq!((figures[0].ratio, figures[1].ratio), (Some(2.0), None));
        assert!(!render(&figures).contains("short of it"));
        let samples = vec![vec![sample(6.0)], vec![sample(6.0)]];
        let figures = compare(&Kind::ALL[..2], samples, 1024, 16, 1.3);
        assert!(render(&figures).contains("1.00  1.3, short of it"), "{}", render(&figures));
    }
}
