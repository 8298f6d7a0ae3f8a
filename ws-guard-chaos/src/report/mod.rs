//! The page of all stored runs: three figures over time, thresholds, faults and differences.

mod chart;

use std::{fmt::Write, fs, path::PathBuf};

use anyhow::{Context, Result};

use self::chart::{Chart, Point};
use crate::{
    store::{Database, Run, Store},
    verdict::Targets,
};

/// Runs on the page.
const RUNS: u32 = 90;

#[derive(clap::Args)]
pub struct Args {
    /// Where to write the page
    #[arg(long, value_name = "FILE", default_value = "chaos.html")]
    output: PathBuf,
    #[command(flatten)]
    targets: Targets,
    #[command(flatten)]
    database: Database,
}

pub async fn run(args: &Args) -> Result<()> {
    let runs = Store::open(&args.database).await?.runs(RUNS).await?;
    let page = page(&runs, &args.targets);
    fs::write(&args.output, page).with_context(|| format!("writing {}", args.output.display()))?;
    println!("{} runs: {}", runs.len(), args.output.display());
    Ok(())
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c0392b; --mark: #2563eb; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 11px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: .35rem .5rem; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } small { opacity: .75; }
.passed { color: var(--good); } .failed { color: var(--bad); } .scroll { overflow-x: auto; }
";

/// The whole page; runs in the order of time.
fn page(runs: &[Run], targets: &Targets) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>ws-guard: chaos runs</title>\n<style>{STYLE}</style>\n<h1>Chaos runs</h1>\n{}",
        summary(runs)
    );
    let figure = |of: fn(&Run) -> f64| -> Vec<Point> {
        let points = runs.iter().map(|run| Point {
            value: of(run),
            good: run.passed,
            label: run.name.clone(),
        });
        points.collect()
    };
    let charts = [
        Chart {
            title: "Reconnects that succeeded",
            unit: "%",
            target: targets.reconnects,
            at_least: true,
            decimals: 3,
            points: figure(|run| run.success),
        },
        Chart {
            title: "Messages lost",
            unit: "%",
            target: targets.loss,
            at_least: false,
            decimals: 4,
            points: figure(|run| run.loss),
        },
        Chart {
            title: "From the end of a connection to the recovered session, P99",
            unit: "ms",
            target: targets.p99,
            at_least: false,
            decimals: 0,
            points: figure(|run| run.p99_ms),
        },
    ];
    // A String takes all that is written to it.
    for chart in &charts {
        let _ = write!(page, "<h2>{}</h2>\n{}", chart.title, chart.draw());
    }
    page + &table(runs)
}

fn summary(runs: &[Run]) -> String {
    let Some(last) = runs.last() else { return "<p>No run is stored.</p>\n".to_owned() };
    let passed = runs.iter().filter(|run| run.passed).count();
    format!(
        "<p>{passed} of {} runs passed. The last one, {}, <b class=\"{result}\">{result}</b>.</p>\n",
        runs.len(),
        escape(&last.name),
        result = result(last)
    )
}

fn result(run: &Run) -> &'static str {
    if run.passed { "passed" } else { "failed" }
}

/// A row for each run, the last one first, with the differences to the one before.
fn table(runs: &[Run]) -> String {
    let mut text = "<h2>Runs</h2>\n<div class=\"scroll\"><table>\n<tr><th>Run</th><th></th>\
                    <th class=\"n\">Reconnects</th><th class=\"n\">Succeeded</th>\
                    <th class=\"n\">Messages</th><th class=\"n\">Lost</th><th class=\"n\">P50</th>\
                    <th class=\"n\">P99</th><th>Faults</th></tr>\n"
        .to_owned();
    for (number, run) in runs.iter().enumerate().rev() {
        let before = number.checked_sub(1).and_then(|before| runs.get(before));
        let change = |of: fn(&Run) -> f64, decimals: usize| {
            before.map_or(String::new(), |before| {
                format!("<br><small>{:+.decimals$}</small>", of(run) - of(before))
            })
        };
        let faults: Vec<String> = run
            .faults
            .iter()
            .map(|(fault, count)| format!("{}&nbsp;×{count}", escape(fault)))
            .collect();
        let failures: String = run
            .failures
            .iter()
            .map(|why| format!("<br><span class=\"failed\">{}</span>", escape(why)))
            .collect();
        let _ = writeln!(
            text,
            "<tr><td>{}<br><small>seed {}, {} min, {}</small></td><td class=\"{result}\">{result}</td>\
             <td class=\"n\">{}{}</td><td class=\"n\">{:.3} %{}</td><td class=\"n\">{}{}</td>\
             <td class=\"n\">{:.4} %{}</td><td class=\"n\">{:.0} ms{}</td><td class=\"n\">{:.0} ms{}</td>\
             <td>{}{failures}</td></tr>",
            escape(&run.name),
            run.seed,
            run.minutes,
            escape(&run.version),
            run.tried,
            change(|run| run.tried as f64, 0),
            run.success,
            change(|run| run.success, 3),
            run.expected,
            change(|run| run.expected as f64, 0),
            run.loss,
            change(|run| run.loss, 4),
            run.p50_ms,
            change(|run| run.p50_ms, 0),
            run.p99_ms,
            change(|run| run.p99_ms, 0),
            faults.join(", "),
            result = result(run)
        );
    }
    text + "</table></div>\n</html>\n"
}

/// Text as HTML shows it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::stored;

    #[test]
    fn the_page_has_charts_thresholds_faults_and_differences() {
        let page = page(&[stored(true), stored(false)], &Targets::default());
        assert_eq!(page.matches("<svg").count(), 3);
        assert_eq!(page.matches("class=\"target\"").count(), 3);
        for part in
            ["kill&nbsp;×6", "+110</small>", "target 800 ms", "&lt;v1&gt;", "back after 900"]
        {
            assert!(page.contains(part), "{part} in {page}");
        }
        // Nothing is fetched from anywhere.
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("src="));
        assert!(super::page(&[], &Targets::default()).contains("No run is stored"));
    }
}
