//! Tests of the screen, on an in-memory terminal.

use std::time::Duration;

use ratatui::{Terminal, backend::TestBackend, buffer::Buffer, style::Color};

use super::{
    draw::draw,
    model::{Action, Model, Prompt, Request},
    testing::{flow, model, sample, source},
    theme::Theme,
};
use crate::domain::{
    event::EventView,
    source::{SourceState, SourceView},
};

/// Supported sizes.
const SIZES: [(u16, u16); 2] = [(80, 24), (200, 60)];

fn screen(model: &mut Model, (width, height): (u16, u16), color: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model, Theme { color })).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let line = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect();
    buffer.content.chunks(width).map(line).collect()
}

fn text(model: &mut Model, size: (u16, u16)) -> String {
    lines(&screen(model, size, true)).join("\n")
}

/// Model of a flood: 2,000 pings a second from one client, and events about it.
fn flood() -> Model {
    let mut model = model();
    let mut flooded = SourceView {
        state: SourceState::Throttled,
        defused_total: 3_900,
        connections: 2,
        paced: 1,
        ..source("10.77.0.2", 4_009)
    };
    flooded.pings_in_window = 64;
    let mut next = sample(vec![source("10.77.0.1", 12), flooded, source("fd77::/64", 8)]);
    next.at += Duration::from_secs(2);
    next.status.packets.defused = 3_900;
    next.flows = vec![flow("10.77.0.2", 4711, Some(1_250)), flow("10.77.0.2", 4712, Some(300))];
    model.take(next);
    let about = |kind, source: &str| EventView {
        source: Some(source.into()),
        ..EventView::message(kind, "\u{1b}[2J hostile")
    };
    model.take_event(about("flow_opened", "10.77.0.1"));
    model.take_event(about("throttled", "10.77.0.2"));
    model
}

#[test]
fn both_sizes_show_everything_an_operator_needs() {
    for size in SIZES {
        let text = text(&mut flood(), size);
        for wanted in [
            "daemon 4711, up 60s",
            "3, 1 throttled; 3 connections",
            "defused",
            "median 0.3 ms, p99 1.2 ms, slowest 1.2 ms (2 connections)",
            "SOURCE",
            "PINGS/S▼",
            "10.77.0.2",
            "throttled",
            "2000",
            "1950",
            "█",
            "3 clients, 1 throttled",
            "events",
            "flow_opened",
            "q quit",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is missing at {size:?}:\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    let wide = text(&mut flood(), SIZES[1]);
    for wanted in ["DROPPED/S", "HEARTBEAT", "FREE-IN", "BY", "pings/s of all"] {
        assert!(wide.contains(wanted), "{wanted:?} is missing:\n{wide}");
    }
}

#[test]
fn the_fastest_client_is_first_and_selected() {
    let shown = lines(&screen(&mut flood(), SIZES[0], true));
    assert!(shown[5].starts_with("10.77.0.2"), "{shown:#?}");
    assert!(shown[6].starts_with("10.77.0.1"), "{shown:#?}");
}

#[test]
fn the_longest_source_of_ipv6_is_shown_whole() {
    let longest = "2001:1db8:1234:5678::/64";
    let mut model = Model::default();
    model.take(sample(vec![source(longest, 1)]));
    for size in SIZES {
        let text = text(&mut model, size);
        assert!(
            text.contains(&format!("{longest} ok")) || text.contains(&format!("{longest}  ")),
            "{text}"
        );
    }
}

#[test]
fn without_colour_nothing_is_coloured_and_nothing_is_missing() {
    for size in SIZES {
        let (plain, coloured) =
            (screen(&mut flood(), size, false), screen(&mut flood(), size, true));
        let colours = |buffer: &Buffer| {
            let is = |color| color != Color::Reset;
            buffer.content.iter().filter(|cell| is(cell.fg) || is(cell.bg)).count()
        };
        assert_eq!(colours(&plain), 0);
        assert!(colours(&coloured) > 0);
        assert_eq!(lines(&plain), lines(&coloured));
    }
}

#[test]
fn one_client_alone_shows_its_connections_and_only_its_events() {
    for size in SIZES {
        let mut model = flood();
        model.details = true;
        let text = text(&mut model, size);
        for wanted in [
            "by its pings",
            "4009 in all",
            "2 connections",
            "10.77.0.1:4711",
            "1.2 ms",
            "throttled",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is missing at {size:?}:\n{text}");
        }
        assert!(!text.contains("flow_opened"), "{text}");
    }
}

#[test]
fn questions_notices_help_and_failures_have_their_place() {
    let mut model = flood();
    let request = Request { action: Action::Throttle, source: "10.77.0.2".into() };
    model.prompt = Prompt::Confirm(request);
    let shown = text(&mut model, SIZES[0]);
    assert!(shown.contains("Throttle 10.77.0.2 for 15 minutes?  y: yes"), "{shown}");
    model.prompt = Prompt::Filter(String::new());
    model.filter = "fd77".into();
    model.arrange();
    let shown = text(&mut model, SIZES[0]);
    assert!(shown.contains("filter: fd77") && shown.contains("1 client, 0 throttled"), "{shown}");
    model.prompt = Prompt::Help;
    assert!(text(&mut model, SIZES[0]).contains("put it on the allowlist"));
    model.prompt = Prompt::None;
    model.say("10.77.0.2 is free", false);
    assert!(text(&mut model, SIZES[0]).contains("10.77.0.2 is free"));
    model.notice = None;
    model.fail("no daemon listens".into());
    assert!(text(&mut model, SIZES[0]).contains("not read: no daemon listens"));
    model.pause();
    assert!(text(&mut model, SIZES[0]).contains("PAUSED"));
}

#[test]
fn from_the_pins_it_says_that_it_is_read_only() {
    let mut model = Model::default();
    let mut pins = sample(vec![]);
    pins.status.pid = None;
    model.take(pins);
    let shown = text(&mut model, SIZES[0]);
    assert!(shown.contains("read-only, from the pins"), "{shown}");
    assert!(shown.contains("only a daemon keeps them"), "{shown}");
    assert!(shown.contains("0 clients"), "{shown}");
}

#[test]
fn the_selection_is_always_on_the_screen() {
    let mut model = Model::default();
    let names: Vec<String> = (0..200).map(|n| format!("10.77.{n}.1")).collect();
    model.take(sample(names.iter().map(|name| source(name, 1)).collect()));
    for step in [1, 30, 60, 500, -3, -40, -500] {
        model.move_by(step);
        let selected = model.selected().unwrap().view.source.clone();
        let shown = text(&mut model, SIZES[0]);
        assert!(shown.contains(&format!("{selected} ")), "{selected} after {step}:\n{shown}");
    }
}

#[test]
fn no_size_is_too_small_to_draw() {
    for width in (1..90).step_by(8) {
        for height in (1..30).step_by(3) {
            let mut model = flood();
            model.details = (width + height) % 2 == 0;
            model.prompt = if width % 3 == 0 { Prompt::Help } else { Prompt::None };
            screen(&mut model, (width, height), true);
        }
    }
}
