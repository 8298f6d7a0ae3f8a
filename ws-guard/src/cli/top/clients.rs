//! Table of clients.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::Style,
    symbols::bar,
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    columns::{COLUMNS, Column},
    model::{Model, Sort},
    sample::Row,
    theme::Theme,
};
use crate::cli::output::{plural, printable};

/// Minimum and maximum width of a curve.
const CURVE: (u16, u16) = (10, 60);
/// Column to the left of the curve.
const BEFORE_CURVE: Sort = Sort::Rate;

/// Columns and their positions.
struct Places {
    columns: Vec<(&'static Column, u16, u16)>,
    /// Start and width of the curve.
    curve: (u16, u16),
}

impl Places {
    fn on(width: u16) -> Places {
        let shown: Vec<&Column> = COLUMNS.iter().filter(|column| width >= column.from).collect();
        let used: u16 = shown.iter().map(|column| column.width + 1).sum();
        let curve = width.saturating_sub(used).clamp(CURVE.0, CURVE.1);
        // The rest of the width is for the sources: IPv6 prefixes are long.
        let spare = width.saturating_sub(used + curve).min(20);
        let mut places = Places { columns: Vec::new(), curve: (0, curve) };
        let mut x = 0;
        for (i, column) in shown.into_iter().enumerate() {
            let wide = column.width + if i == 0 { spare } else { 0 };
            places.columns.push((column, x, wide));
            x += wide + 1;
            if column.sort == Some(BEFORE_CURVE) {
                places.curve.0 = x;
                x += curve + 1;
            }
        }
        places
    }
}

pub fn draw(frame: &mut Frame, area: Rect, model: &mut Model, theme: Theme) {
    let [heading, rows, count] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(area);
    let places = Places::on(area.width);
    for (column, x, width) in &places.columns {
        put(frame, heading, *x, *width, column, &titled(column, model), theme.heading());
    }
    scroll(model, rows.height.into());
    let shown = model.clients().skip(model.top).take(rows.height.into());
    let selected = model.position();
    for (line, row) in shown.enumerate() {
        let area = Rect { y: rows.y + line as u16, height: 1, ..rows };
        let base = if selected == Some(model.top + line) { theme.selected() } else { Style::new() };
        frame.buffer_mut().set_style(area, base);
        draw_row(frame, area, &places, row, model, base, theme);
    }
    frame.render_widget(Paragraph::new(summary(model, theme)), count);
}

/// Keep the selected row on the screen.
fn scroll(model: &mut Model, height: usize) {
    let at = model.position().unwrap_or(0);
    let last = (model.clients().len()).saturating_sub(height);
    model.top = model.top.clamp((at + 1).saturating_sub(height.max(1)), at).min(last);
}

fn titled(column: &Column, model: &Model) -> String {
    let mark = match (column.sort == Some(model.sort), model.reversed) {
        (false, _) => "",
        // Names are in ascending order.
        (true, reversed) => {
            if reversed == (model.sort == Sort::Source) {
                "▼"
            } else {
                "▲"
            }
        }
    };
    format!("{}{mark}", column.title)
}

fn draw_row(
    frame: &mut Frame,
    area: Rect,
    places: &Places,
    row: &Row,
    model: &Model,
    base: Style,
    theme: Theme,
) {
    for (column, x, width) in &places.columns {
        let style = match column.title {
            "STATE" => base.patch(theme.state(row.view.state)),
            "SOURCE" if row.is_throttled() => base.patch(theme.bad()),
            _ => base,
        };
        put(frame, area, *x, *width, column, &printable(&(column.cell)(row)), style);
    }
    let (x, width) = places.curve;
    let place = part(area, x, width);
    let text = curve(&model.shown().history(&row.key()), width.into());
    frame.render_widget(Span::styled(text, base.patch(theme.curve())), place);
}

fn put(
    frame: &mut Frame,
    area: Rect,
    x: u16,
    width: u16,
    column: &Column,
    text: &str,
    style: Style,
) {
    let alignment = if column.number { Alignment::Right } else { Alignment::Left };
    let line = Line::styled(text.to_owned(), style).alignment(alignment);
    frame.render_widget(line, part(area, x, width));
}

/// Return a part of a line, clipped to the screen.
fn part(line: Rect, x: u16, width: u16) -> Rect {
    Rect { x: line.x + x, width, ..line }.intersection(line)
}

/// Draw the latest rates as blocks; the highest has full height.
pub fn curve(rates: &[f64], width: usize) -> String {
    const LEVELS: [&str; 9] = [
        " ",
        bar::ONE_EIGHTH,
        bar::ONE_QUARTER,
        bar::THREE_EIGHTHS,
        bar::HALF,
        bar::FIVE_EIGHTHS,
        bar::THREE_QUARTERS,
        bar::SEVEN_EIGHTHS,
        bar::FULL,
    ];
    let latest = &rates[rates.len().saturating_sub(width)..];
    let highest = latest.iter().copied().fold(0.0, f64::max);
    let level = |rate: &f64| match (*rate > 0.0, highest > 0.0) {
        // Even the smallest rate above zero is visible.
        (true, true) => LEVELS[((rate / highest * 8.0).round() as usize).clamp(1, 8)],
        _ => LEVELS[0],
    };
    let blocks: String = latest.iter().map(level).collect();
    " ".repeat(width - latest.len()) + &blocks
}

fn summary(model: &Model, theme: Theme) -> Line<'static> {
    let shown = model.clients().len();
    let throttled = model.clients().filter(|row| row.is_throttled()).count();
    let mut spans =
        vec![Span::raw(format!("{}, {throttled} throttled", plural(shown, "client", "clients")))];
    if !model.filter.is_empty() {
        let filter = printable(&model.filter);
        spans.push(Span::styled(format!("  filter: {filter} (Esc: all)"), theme.warning()));
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_ends_with_the_latest_and_fills_its_width() {
        assert_eq!(curve(&[1.0, 4.0, 8.0, 0.0, 0.01], 7), "  ▁▄█ ▁");
        assert_eq!(curve(&[9.0, 1.0, 2.0], 2), "▄█");
        assert_eq!(curve(&[], 3), "   ");
        assert_eq!(curve(&[0.0], 1), " ");
    }

    #[test]
    fn every_column_has_its_place_on_the_screen() {
        for width in 80..=220 {
            let places = Places::on(width);
            let mut spans: Vec<(u16, u16)> =
                places.columns.iter().map(|(_, x, width)| (*x, *width)).collect();
            spans.push(places.curve);
            spans.sort_unstable();
            assert!(
                spans.windows(2).all(|two| two[0].0 + two[0].1 < two[1].0),
                "{width} {spans:?}"
            );
            let (x, wide) = spans[spans.len() - 1];
            assert!(x + wide <= width, "{width}: {spans:?}");
        }
    }
}
