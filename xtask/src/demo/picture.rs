//! The three rounds as a picture, drawn from the run's own figures.
use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};
use ws_guard_testkit::servers::Library;

use super::{
    round::Figures,
    table::{p50_ms, p99_ms},
};

/// Pixels: left end and maximum length of the bars, and the step between them.
const LEFT: f64 = 200.0;
const LONGEST: f64 = 380.0;
const BAR: f64 = 20.0;
const STEP: f64 = 26.0;
/// Distance between two figures, with room for a heading.
const GROUP: f64 = 3.0 * STEP + 40.0;
const TOP: f64 = 56.0;

const ROUNDS: [(&str, &str); 3] =
    [("no flood", "#7f8c8d"), ("flood", "#c0392b"), ("flood, with ws-guard", "#27ae60")];

/// A figure: its name, its unit, and its accessor.
type Shown = (&'static str, &'static str, fn(&Figures) -> f64);

const FIGURES: [Shown; 3] = [
    ("Honest client: p50 from message to echo", "ms", p50_ms),
    ("Honest client: p99", "ms", p99_ms),
    ("Server: CPU", "%", |figures| figures.cpu * 100.0),
];

/// Write the picture to `path`.
pub fn write(path: &Path, rounds: &[Figures; 3], library: Library) -> Result<()> {
    let values = FIGURES.map(|(_, _, of)| [0, 1, 2].map(|round| of(&rounds[round])));
    fs::write(path, draw(values, library.name()))
        .with_context(|| format!("writing {}", path.display()))
}

/// Draw the values by figure and round.
fn draw(values: [[f64; 3]; 3], server: &str) -> String {
    let height = TOP + 3.0 * GROUP + 24.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" width=\"720\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"14\" role=\"img\" \
         aria-labelledby=\"title\">\n  <title id=\"title\">{}</title>\n  \
         <rect width=\"720\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        title(values, server)
    );
    text(
        &mut svg,
        20.0,
        28.0,
        " font-weight=\"bold\"",
        "What one client that floods with pings does",
    );
    for (group, ((name, unit, _), values)) in FIGURES.iter().zip(values).enumerate() {
        let top = TOP + group as f64 * GROUP;
        text(&mut svg, 20.0, top + 8.0, " font-weight=\"bold\" font-size=\"13\"", name);
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        for (round, ((label, colour), value)) in ROUNDS.iter().zip(values).enumerate() {
            let y = top + 20.0 + round as f64 * STEP;
            let width = (value / most * LONGEST).max(1.0);
            text(&mut svg, 20.0, y + 15.0, "", label);
            // Writing to a String does not fail.
            let _ = writeln!(
                svg,
                "  <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.0}\" height=\"{BAR}\" fill=\"{colour}\"/>"
            );
            text(&mut svg, LEFT + width + 8.0, y + 15.0, "", &format!("{value:.1} {unit}"));
        }
    }
    let note = format!("{server}, cargo xtask demo. Bars of one figure to one scale.");
    text(&mut svg, 20.0, height - 14.0, " font-size=\"12\"", &note);
    svg + "</svg>\n"
}

fn title(values: [[f64; 3]; 3], server: &str) -> String {
    let figures = FIGURES.iter().zip(values).map(|((name, unit, _), [calm, flood, guarded])| {
        format!("{name}: {calm:.1} {unit} without a flood, {flood:.1} with one, {guarded:.1} with ws-guard")
    });
    format!("{server} under a flood of pings. {}", figures.collect::<Vec<_>>().join(". "))
}

fn text(svg: &mut String, x: f64, y: f64, style: &str, text: &str) {
    let _ =
        writeln!(svg, "  <text x=\"{x:.0}\" y=\"{y:.0}\"{style} fill=\"#222222\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn bars_are_to_scale_within_their_figure() {
        let svg = draw([[0.5, 20.0, 0.5], [1.0, 40.0, 4.0], [1.0, 100.0, 1.0]], "a server");
        let widths = svg.lines().filter(|line| line.contains("height=\"20\""));
        let widths: Vec<u32> = widths
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths, [10, 380, 10, 10, 380, 38, 4, 380, 4]);
    }
}
