//! View of one client.

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row as Cells, Sparkline, Table},
};

use super::{
    columns::{milliseconds, rate},
    draw::events,
    model::{HISTORY, Model},
    sample::Row,
    theme::Theme,
};
use crate::{
    cli::output::{absolute, ago, ahead, plural, printable, span},
    domain::flow::FlowView,
};

/// Lines about the client itself.
const FACTS: u16 = 6;
/// Screen width from which on all columns of the connections are shown.
const WIDE: u16 = 110;
/// Lines of the curve, with its heading.
const CURVE: u16 = 4;

pub fn draw(frame: &mut Frame, area: Rect, model: &Model, theme: Theme) {
    let Some(row) = model.selected() else { return };
    let lines = (area.height / 5).clamp(2, 12);
    let [facts, curve, flows, below] = Layout::vertical([
        Constraint::Length(FACTS),
        Constraint::Length(CURVE),
        Constraint::Fill(1),
        Constraint::Length(lines + 1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(facts_of(row, theme)), facts);
    draw_curve(frame, curve, row, model, theme);
    draw_flows(frame, flows, row, model, theme);
    let about = |event: &crate::domain::event::EventView| {
        event.source.as_deref() == Some(row.view.source.as_str())
    };
    events(frame, below, model.shown(), about, theme);
}

fn facts_of(row: &Row, theme: Theme) -> Vec<Line<'static>> {
    let view = &row.view;
    let line = |label: &'static str, text: String| {
        Line::from(vec![Span::styled(format!("{label:<13}"), theme.label()), Span::raw(text)])
    };
    let port = view.port.map_or(String::new(), |port| format!(", on port {port}"));
    let state = Line::from(vec![
        Span::styled(format!("{}  ", printable(&view.source)), theme.title()),
        Span::styled(view.state.name(), theme.state(view.state)),
        Span::raw(port),
    ]);
    vec![
        state,
        line("throttled", throttled(row)),
        line(
            "pings",
            format!(
                "{} in all, {} in the window, {} a second, the last {} ago",
                view.pings_total,
                view.pings_in_window,
                rate(row.pings_per_second),
                ago(view.last_ping)
            ),
        ),
        line(
            "defused",
            format!("{} in all, {} a second", view.defused_total, rate(row.defused_per_second)),
        ),
        line(
            "dropped",
            format!("{} in all, {} a second", view.dropped_total, rate(row.dropped_per_second)),
        ),
        line(
            "connections",
            format!(
                "{} open, {} paced, slowest heartbeat {}",
                view.connections,
                view.paced,
                milliseconds(row.heartbeat_rtt_us)
            ),
        ),
    ]
}

fn throttled(row: &Row) -> String {
    let view = &row.view;
    if !row.is_throttled() {
        return "no".into();
    }
    let by = if view.manual { "by an operator" } else { "by its pings" };
    let how = match (view.banned, view.escalated) {
        (true, _) => ", banned",
        (false, true) => ", escalated",
        (false, false) => "",
    };
    let end = match view.throttled_until {
        None => "until it is released".into(),
        until => format!("free in {}", ahead(until)),
    };
    format!("{by}{how}, since {}, {end}", absolute(view.throttled_since))
}

fn draw_curve(frame: &mut Frame, area: Rect, row: &Row, model: &Model, theme: Theme) {
    let history = model.shown().history(&row.key());
    let highest = history.iter().copied().fold(0.0, f64::max);
    let skip = history.len().saturating_sub(area.width.into());
    let data: Vec<u64> = history[skip..].iter().map(|rate| rate.round() as u64).collect();
    let title = format!(" pings/s, at most {} of the latest {HISTORY} readings ", rate(highest));
    let block = Block::new().borders(Borders::TOP).border_style(theme.label()).title(title);
    frame.render_widget(Sparkline::default().block(block).data(data).style(theme.curve()), area);
}

fn draw_flows(frame: &mut Frame, area: Rect, row: &Row, model: &Model, theme: Theme) {
    let all = model.shown().rates.iter().flat_map(|rates| &rates.flows);
    let mut flows: Vec<&FlowView> =
        all.filter(|flow| flow.source.as_deref() == Some(row.view.source.as_str())).collect();
    flows.sort_by(|a, b| b.pings_in.cmp(&a.pings_in).then_with(|| a.client.cmp(&b.client)));
    let room = usize::from(area.height.saturating_sub(2));
    let hidden = flows.len().saturating_sub(room);
    let more = if hidden > 0 { format!(", {hidden} more not shown") } else { String::new() };
    let title = format!(" {}{more} ", plural(flows.len(), "connection", "connections"));
    let block = Block::new().borders(Borders::TOP).border_style(theme.label()).title(title);
    let heading = ["CLIENT", "SERVER", "STATE", "PINGS", "PONGS", "HEARTBEAT", "IDLE", "OVER"];
    // End points have to be readable in full: a narrow screen has no room for pongs.
    let pongs = if area.width < WIDE { 0 } else { 8 };
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(pongs),
        Constraint::Length(9),
        Constraint::Length(4),
        Constraint::Length(5),
    ];
    let table = Table::new(flows.into_iter().take(room).map(cells), widths)
        .header(Cells::new(heading).style(theme.heading()))
        .block(block);
    frame.render_widget(table, area);
}

fn cells(flow: &FlowView) -> Cells<'static> {
    let over = match (flow.over_limit, flow.paced) {
        (_, true) => "paced",
        (true, false) => "yes",
        (false, false) => "-",
    };
    let idle = flow.idle_ms.map_or("-".into(), |ms| span(Duration::from_millis(ms)));
    Cells::new([
        Cell::from(flow.client.clone()),
        Cell::from(flow.server.clone()),
        Cell::from(flow.state.to_string()),
        Cell::from(flow.pings_in.to_string()),
        Cell::from(flow.pongs_out.to_string()),
        Cell::from(milliseconds(flow.heartbeat_rtt_us)),
        Cell::from(idle),
        Cell::from(over),
    ])
}
