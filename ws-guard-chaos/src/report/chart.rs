//! One figure over all runs, as an SVG picture.

use std::fmt::Write;

use super::escape;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 200.0;
/// Room for the numbers at the left, and around.
const LEFT: f64 = 70.0;
const EDGE: f64 = 16.0;
/// Room for the first and the last run's names.
const BOTTOM: f64 = 34.0;
/// The scale reaches so many times as far as the target, from what is perfect; a run that failed altogether
/// would hide all others.
const FAR: f64 = 5.0;

/// The figure of one run.
pub struct Point {
    pub value: f64,
    pub good: bool,
    pub label: String,
}

pub struct Chart {
    pub title: &'static str,
    pub unit: &'static str,
    pub target: f64,
    /// The target is the least that may be, and not the most.
    pub at_least: bool,
    pub decimals: usize,
    pub points: Vec<Point>,
}

impl Chart {
    pub fn draw(&self) -> String {
        let (low, high) = self.range();
        // What is off the scale is at its edge.
        let y = |value: f64| {
            let part = (value.clamp(low, high) - low) / (high - low);
            HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - EDGE)
        };
        let steps = self.points.len().saturating_sub(1).max(1) as f64;
        let x = |number: usize| LEFT + number as f64 / steps * (WIDTH - LEFT - EDGE);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            self.title
        );
        let Chart { unit, target, decimals, .. } = self;
        for value in [low, high] {
            // A String takes all that is written to it.
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--line)\"/>\
                 <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{value:.decimals$}</text>",
                WIDTH - EDGE,
                LEFT - 6.0,
                y(value) + 4.0,
                at = y(value)
            );
        }
        let side = if self.at_least { 14.0 } else { -5.0 };
        let _ = writeln!(
            svg,
            "<line class=\"target\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" \
             stroke=\"var(--bad)\" stroke-dasharray=\"6 4\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">target {target} {unit}</text>",
            WIDTH - EDGE,
            WIDTH - EDGE,
            y(*target) + side,
            at = y(*target)
        );
        let places: Vec<(f64, f64)> =
            self.points.iter().enumerate().map(|(n, point)| (x(n), y(point.value))).collect();
        let line: String = places.iter().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"var(--mark)\" stroke-width=\"1.5\"/>"
        );
        for (point, (x, y)) in self.points.iter().zip(places) {
            let colour = if point.good { "--good" } else { "--bad" };
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"var({colour})\"><title>{}: \
                 {:.decimals$} {unit}</title></circle>",
                escape(&point.label),
                point.value
            );
        }
        self.name_ends(&mut svg);
        svg + "</svg>\n"
    }

    /// The first and the last run.
    fn name_ends(&self, svg: &mut String) {
        let (first, last) =
            (self.points.first(), self.points.last().filter(|_| self.points.len() > 1));
        for (point, x, anchor) in [(first, LEFT, "start"), (last, WIDTH - EDGE, "end")] {
            let Some(point) = point else { continue };
            // A String takes all that is written to it.
            let _ = writeln!(
                svg,
                "<text x=\"{x}\" y=\"{:.0}\" text-anchor=\"{anchor}\">{}</text>",
                HEIGHT - 8.0,
                escape(&point.label)
            );
        }
    }

    /// From the lowest to the highest value, the target among them, and some more.
    fn range(&self) -> (f64, f64) {
        let values = self.points.iter().map(|point| point.value).chain([self.target]);
        let (low, high) = values
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if self.at_least {
            // No percentage is above 100.
            let allowed = 100.0 - self.target;
            return ((low - allowed / 2.0).max(100.0 - FAR * allowed), 100.0);
        }
        let more = (high - low).max(self.target * 0.05) * 0.15;
        ((low - more).max(0.0), (high + more).min(FAR * self.target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_target_are_to_scale() {
        let point = |value| Point { value, good: true, label: String::new() };
        let chart = Chart {
            title: "",
            unit: "ms",
            target: 800.0,
            at_least: false,
            decimals: 0,
            points: vec![point(400.0), point(600.0), point(800.0)],
        };
        let svg = chart.draw();
        let circles = svg.lines().filter_map(|line| line.split("cy=\"").nth(1)?.split('"').next());
        let circles: Vec<f64> = circles.map(|y| y.parse().unwrap()).collect();
        assert!((circles[0] - 2.0 * circles[1] + circles[2]).abs() < 0.2, "{circles:?}");
        assert!(circles[0] > circles[2]);
        let target =
            format!("y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"var(--bad)\"", circles[2], circles[2]);
        assert!(svg.contains(&target), "{svg}");
        // One that failed altogether does not hide the others.
        let off = Chart { points: vec![point(500.0), point(90_000.0)], ..chart };
        assert_eq!(off.range().1, 4000.0);
        let (first, last) = (off.draw(), "cy=\"16.0\"");
        assert!(first.contains(last), "{first}");
    }
}
