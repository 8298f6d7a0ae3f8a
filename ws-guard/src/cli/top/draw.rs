//! Drawing of the whole screen.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::Style,
    text::{Line, Span},
    widgets::{Block, Borders, Clear, Paragraph, Sparkline},
};

use super::{
    clients,
    columns::{milliseconds, rate},
    details,
    input::KEYS,
    model::{Action, Live, Model, Prompt, Request},
    sample::Rates,
    theme::Theme,
};
use crate::{
    cli::output::{plural, printable, span},
    domain::event::EventView,
};

/// Screen width from which on a curve of all pings appears next to the figures.
const WIDE: u16 = 120;
/// Lines of figures.
const FIGURES: u16 = 4;

/// Draw the whole screen; the model learns how many rows are visible.
pub fn draw(frame: &mut Frame, model: &mut Model, theme: Theme) {
    let [top, body, foot] =
        Layout::vertical([Constraint::Length(FIGURES), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    figures(frame, top, model, theme);
    if model.details && model.selected().is_some() {
        details::draw(frame, body, model, theme);
    } else {
        let lines = (body.height / 4).clamp(3, 20);
        let [table, below] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(lines + 1)]).areas(body);
        clients::draw(frame, table, model, theme);
        events(frame, below, model.shown(), |_| true, theme);
    }
    frame.render_widget(footer(model, theme), foot);
    if model.prompt == Prompt::Help {
        help(frame, body, theme);
    }
}

fn figures(frame: &mut Frame, area: Rect, model: &Model, theme: Theme) {
    let live = model.shown();
    let lines = match &live.rates {
        None => vec![Line::from("reading…")],
        Some(rates) => vec![
            title(rates, model, theme),
            counts(rates, theme),
            verdicts(rates, theme),
            heartbeats(rates, theme),
        ],
    };
    let mut left = area;
    if area.width >= WIDE {
        let [text, curve] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(area.width / 3)])
                .areas(area);
        left = text;
        curve_of_all(frame, curve, live, theme);
    }
    frame.render_widget(Paragraph::new(lines), left);
}

fn curve_of_all(frame: &mut Frame, area: Rect, live: &Live, theme: Theme) {
    let skip = live.overall.len().saturating_sub(area.width.into());
    let data: Vec<u64> = live.overall.iter().skip(skip).map(|rate| rate.round() as u64).collect();
    let block = Block::new().title("pings/s of all").title_style(theme.label());
    frame.render_widget(Sparkline::default().block(block).data(data).style(theme.curve()), area);
}

fn title(rates: &Rates, model: &Model, theme: Theme) -> Line<'static> {
    let status = &rates.status;
    let from = match (status.pid, status.uptime_seconds) {
        (Some(pid), Some(up)) => {
            format!("daemon {pid}, up {}", span(std::time::Duration::from_secs(up)))
        }
        (Some(pid), None) => format!("daemon {pid}"),
        (None, _) => "no daemon: read-only, from the pins".into(),
    };
    let interfaces: Vec<&str> = status.interfaces.iter().map(|one| one.name.as_str()).collect();
    let time = rates.time.to_string();
    // The time of day of RFC 3339.
    let clock = time.get(11..19).unwrap_or(&time).to_owned();
    let mut spans = vec![
        Span::styled("ws-guard top", theme.title()),
        Span::raw(format!("  {clock} UTC  ")),
        Span::styled(from, if status.pid.is_some() { Style::new() } else { theme.warning() }),
    ];
    if !interfaces.is_empty() {
        spans.push(Span::raw(format!("  {}", printable(&interfaces.join(", ")))));
    }
    if model.is_paused() {
        spans.push(Span::styled("  PAUSED", theme.warning()));
    }
    Line::from(spans)
}

fn counts(rates: &Rates, theme: Theme) -> Line<'static> {
    let (status, states) = (&rates.status, rates.status.flow_states);
    let throttled = format!("{} throttled", status.throttled);
    let style = if status.throttled > 0 { theme.bad() } else { Style::new() };
    Line::from(vec![
        Span::styled("clients      ", theme.label()),
        Span::raw(format!("{}, ", status.sources)),
        Span::styled(throttled, style),
        Span::raw(format!("; {}, ", plural(status.flows as usize, "connection", "connections"))),
        Span::raw(format!("{} paced", states.paced)),
    ])
}

fn verdicts(rates: &Rates, theme: Theme) -> Line<'static> {
    let did = rates.verdicts;
    let acted = |rate: f64| if rate > 0.0 { theme.warning() } else { Style::new() };
    Line::from(vec![
        Span::styled("a second     ", theme.label()),
        Span::raw(format!("{} pings, ", rate(did.pings))),
        Span::styled(format!("{} defused", rate(did.defused)), acted(did.defused)),
        Span::raw("; packets: "),
        Span::raw(format!("{} seen, {} tracked, ", rate(did.seen), rate(did.tracked))),
        Span::styled(format!("{} dropped", rate(did.dropped)), acted(did.dropped)),
    ])
}

fn heartbeats(rates: &Rates, theme: Theme) -> Line<'static> {
    let beats = rates.heartbeats;
    let text = match beats.median_us {
        None => "none measured".into(),
        Some(_) => format!(
            "median {}, p99 {}, slowest {} ({})",
            milliseconds(beats.median_us),
            milliseconds(beats.p99_us),
            milliseconds(beats.slowest_us),
            plural(beats.connections, "connection", "connections")
        ),
    };
    Line::from(vec![Span::styled("heartbeats   ", theme.label()), Span::raw(text)])
}

/// Draw the latest events that are `wanted`, the newest at the bottom.
pub fn events(
    frame: &mut Frame,
    area: Rect,
    live: &Live,
    wanted: impl Fn(&EventView) -> bool,
    theme: Theme,
) {
    let block = Block::new().borders(Borders::TOP).border_style(theme.label()).title(" events ");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let latest = live.events.iter().rev().filter(|event| wanted(event));
    let mut lines: Vec<Line> =
        latest.take(inner.height.into()).map(|event| event_line(event, theme)).collect();
    lines.reverse();
    if lines.is_empty() {
        let why = if live.has_daemon() { "none yet" } else { "none: only a daemon keeps them" };
        lines.push(Line::styled(why, theme.label()));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

fn event_line(event: &EventView, theme: Theme) -> Line<'static> {
    let time = event.time.to_string();
    Line::from(vec![
        Span::styled(time.get(11..19).unwrap_or(&time).to_owned(), theme.label()),
        Span::styled(format!(" {:<12} ", event.kind), theme.event(&event.kind)),
        Span::raw(printable(&told(event)).into_owned()),
    ])
}

/// Describe an event; the reason precedes the connection, as the line may be cut.
fn told(event: &EventView) -> String {
    match (&event.source, &event.why) {
        (Some(source), Some(why)) => format!("{source} · {why}"),
        _ => event.to_string(),
    }
}

/// Show the question, the filter, the error, or else the keys.
fn footer(model: &Model, theme: Theme) -> Line<'static> {
    match &model.prompt {
        Prompt::Confirm(request) => {
            return Line::from(vec![
                Span::styled(question(request), theme.warning()),
                Span::raw("  y: yes, any other key: no"),
            ]);
        }
        Prompt::Filter(_) => {
            return Line::from(vec![
                Span::styled("filter: ", theme.key()),
                Span::raw(printable(&model.filter).into_owned()),
                Span::styled(" ", theme.selected()),
                Span::styled("  address, network or state; Enter, Esc", theme.label()),
            ]);
        }
        Prompt::None | Prompt::Help => {}
    }
    if let Some(notice) = &model.notice {
        let style = if notice.error { theme.bad() } else { theme.title() };
        return Line::styled(printable(&notice.text).into_owned(), style);
    }
    if let Some(why) = &model.shown().failed {
        return Line::styled(format!("not read: {}", printable(why)), theme.bad());
    }
    let mut spans = Vec::new();
    for (key, what, short) in KEYS {
        if let Some(short) = short {
            spans.push(Span::styled(key, theme.key()));
            spans.push(Span::raw(format!(" {}  ", if short.is_empty() { what } else { short })));
        }
    }
    Line::from(spans)
}

/// Ask for confirmation of a request.
fn question(request: &Request) -> String {
    let source = printable(&request.source);
    match request.action {
        Action::Throttle => format!("Throttle {source} for 15 minutes?"),
        Action::Release => format!("Release {source}, and forget its pings?"),
        Action::Allow => format!("Allow {source}: count it, never act on it?"),
    }
}

fn help(frame: &mut Frame, area: Rect, theme: Theme) {
    let lines: Vec<Line> = KEYS
        .iter()
        .map(|(key, what, _)| {
            Line::from(vec![Span::styled(format!(" {key:<14}"), theme.key()), Span::raw(*what)])
        })
        .collect();
    let (width, height) = (56.min(area.width), (lines.len() as u16 + 2).min(area.height));
    let place = Rect { height, width, x: area.x + (area.width - width) / 2, y: area.y };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(" keys ").title_alignment(Alignment::Center);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}
