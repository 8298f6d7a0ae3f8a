//! Pictures of the dashboards for the documentation:
//! real data from Prometheus, drawn by this small renderer, which says so. Grafana draws the same
//! panels with more care.
//!
//! `DASHBOARD_PICTURES=FOLDER` makes the test of the expressions write them.
use std::{env, fmt::Write as _, fs, path::Path, thread, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    dashboard::{self, Board},
    prometheus::{Prometheus, Series},
};

const FOLDER: &str = "DASHBOARD_PICTURES";
/// Size of a cell of Grafana's grid.
const CELL: (f64, f64) = (50.0, 26.0);
const HEAD: f64 = 46.0;
const COLORS: [&str; 8] =
    ["#3b78c4", "#d1792b", "#3f9c52", "#c2453f", "#7f62b5", "#8a6a52", "#c867a5", "#6f7680"];
/// Number of entries in a legend, and of letters in an entry.
const LEGEND: usize = 4;
const LETTERS: usize = 22;

struct Place {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

impl Place {
    fn of(panel: &Value) -> Place {
        let number = |field: &str| panel["gridPos"][field].as_f64().unwrap_or(0.0);
        Place {
            x: number("x") * CELL.0 + 4.0,
            y: HEAD + number("y") * CELL.1 + 4.0,
            w: number("w") * CELL.0 - 8.0,
            h: number("h") * CELL.1 - 8.0,
        }
    }
}

/// Write a picture of each dashboard where the variable says.
/// It waits until there is a minute of data.
pub fn write_if_wanted(prometheus: &Prometheus<'_>) -> Result<()> {
    let Some(folder) = env::var_os(FOLDER) else { return Ok(()) };
    thread::sleep(Duration::from_secs(60));
    write(prometheus, Path::new(&folder))
}

fn write(prometheus: &Prometheus<'_>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for board in dashboard::boards()? {
        let name = format!("dashboard-{}.svg", board.uid.trim_start_matches("ws-guard-"));
        fs::write(folder.join(name), picture(prometheus, &board)?)?;
    }
    Ok(())
}

fn picture(prometheus: &Prometheus<'_>, board: &Board) -> Result<String> {
    let mut body = String::new();
    let mut bottom = HEAD;
    for panel in board.panels() {
        let place = Place::of(panel);
        bottom = f64::max(bottom, place.y + place.h);
        draw(&mut body, prometheus, panel, &place)?;
    }
    let (width, height) = (24.0 * CELL.0, bottom + 8.0);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\"><rect width=\"{width}\" height=\"{height}\" \
         fill=\"#f4f5f5\"/><text x=\"8\" y=\"20\" font-size=\"15\">{}</text><text x=\"8\" y=\"37\" \
         fill=\"#666\">A minute of the tests' traffic, drawn by the tests' own renderer, not by \
         Grafana.</text>\n{body}</svg>\n",
        escaped(board.heading())
    ))
}

fn draw(
    body: &mut String,
    prometheus: &Prometheus<'_>,
    panel: &Value,
    place: &Place,
) -> Result<()> {
    let Place { x, y, w, h } = place;
    // Writing to a string does not fail.
    let _ = writeln!(
        body,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"#fff\" stroke=\"#ddd\"/>\
         <text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        x + 6.0,
        y + 15.0,
        escaped(panel["title"].as_str().unwrap_or_default())
    );
    let mut all = Vec::new();
    for target in dashboard::targets(panel) {
        let legend = target["legendFormat"].as_str().unwrap_or_default();
        for series in prometheus.range(&dashboard::sent(target)?)? {
            all.push((legend_of(legend, &series), series));
        }
    }
    match panel["type"].as_str().context("a panel without a type")? {
        "stat" => number(body, place, panel, &all),
        "table" => rows(body, place, &all),
        _ => lines(body, place, panel, &all),
    }
    Ok(())
}

fn legend_of(format: &str, series: &Series) -> String {
    let Some(labels) = series.labels.as_object() else { return format.to_owned() };
    let named = labels.iter().fold(format.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{{{name}}}}}"), value.as_str().unwrap_or_default())
    });
    named.chars().take(LETTERS).collect()
}

fn number(body: &mut String, place: &Place, panel: &Value, all: &[(String, Series)]) {
    let last = all.first().and_then(|(_, series)| series.points.last());
    let text = last.map_or("–".into(), |(_, value)| shown(*value, panel));
    let (x, y) = (place.x + place.w / 2.0, place.y + place.h * 0.65);
    let _ = writeln!(
        body,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"26\" text-anchor=\"middle\">{text}</text>"
    );
}

fn rows(body: &mut String, place: &Place, all: &[(String, Series)]) {
    const LINE: f64 = 14.0;
    let room = ((place.h - 24.0) / LINE) as usize;
    for (n, (_, series)) in all.iter().take(room).enumerate() {
        let labels = series.labels.as_object().into_iter().flatten();
        let labels = labels.filter(|(name, _)| !["__name__", "job"].contains(&name.as_str()));
        let text: Vec<&str> = labels.filter_map(|(_, value)| value.as_str()).collect();
        let (x, y) = (place.x + 8.0, place.y + 32.0 + n as f64 * LINE);
        let _ = writeln!(body, "<text x=\"{x}\" y=\"{y}\">{}</text>", escaped(&text.join("  ")));
    }
}

fn lines(body: &mut String, place: &Place, panel: &Value, all: &[(String, Series)]) {
    let points = || all.iter().flat_map(|(_, series)| &series.points);
    let most = points().map(|(_, value)| *value).fold(0.0, f64::max);
    let (from, to) =
        points().fold((f64::MAX, f64::MIN), |(from, to), (at, _)| (from.min(*at), to.max(*at)));
    let top = if most > 0.0 { most } else { 1.0 };
    let (left, right) = (place.x + 52.0, place.x + place.w - 8.0);
    let (high, low) = (place.y + 24.0, place.y + place.h - 22.0);
    for (value, y) in [(top, high), (0.0, low)] {
        let _ = writeln!(
            body,
            "<path d=\"M{left} {y}H{right}\" stroke=\"#e4e4e4\"/><text x=\"{}\" y=\"{}\" \
             text-anchor=\"end\" fill=\"#666\">{}</text>",
            left - 4.0,
            y + 4.0,
            shown(value, panel)
        );
    }
    let mut at = left;
    for (n, (name, series)) in all.iter().enumerate() {
        let color = COLORS[n % COLORS.len()];
        let point = |(time, value): &(f64, f64)| {
            let part = if to > from { (time - from) / (to - from) } else { 1.0 };
            let (x, y) = (left + part * (right - left), low - value / top * (low - high));
            format!("{x:.1},{y:.1}")
        };
        let path: Vec<String> = series.points.iter().map(point).collect();
        let _ = writeln!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>",
            path.join(" ")
        );
        let width = 18.0 + name.chars().count() as f64 * 6.2;
        if n < LEGEND && at + width < right {
            let y = place.y + place.h - 6.0;
            let _ = writeln!(
                body,
                "<rect x=\"{at}\" y=\"{}\" width=\"8\" height=\"3\" fill=\"{color}\"/>\
                 <text x=\"{}\" y=\"{y}\">{}</text>",
                y - 5.0,
                at + 11.0,
                escaped(name)
            );
            at += width;
        }
    }
}

/// Format a value as short as it is readable.
fn shown(value: f64, panel: &Value) -> String {
    let (value, unit) = match panel["fieldConfig"]["defaults"]["unit"].as_str() {
        Some("s") if value < 1.0 && value > 0.0 => (value * 1e3, " ms"),
        Some("s") => (value, " s"),
        Some("percentunit") => (value * 100.0, " %"),
        Some("cps") => (value, "/s"),
        Some("bytes" | "Bps") if value >= 1e4 => (value / 1e3, " kB"),
        _ => (value, ""),
    };
    let digits = if value == value.trunc() || value >= 100.0 { 0 } else { 2 };
    format!("{value:.digits$}{unit}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
