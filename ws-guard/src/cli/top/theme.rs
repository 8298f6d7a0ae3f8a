//! Colours, and their monochrome substitutes.

use ratatui::style::{Color, Modifier, Style};

use crate::domain::source::SourceState;

/// Theme of the view: with colours, or with text attributes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    pub color: bool,
}

impl Theme {
    /// Use colours, unless `NO_COLOR` is set and not empty (no-color.org).
    pub fn of_environment() -> Theme {
        Theme { color: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn with(self, color: Color, otherwise: Modifier) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new().add_modifier(otherwise) }
    }

    pub fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub fn label(self) -> Style {
        self.with(Color::DarkGray, Modifier::DIM)
    }

    /// Style of column headings.
    pub fn heading(self) -> Style {
        self.with(Color::Cyan, Modifier::UNDERLINED).add_modifier(Modifier::BOLD)
    }

    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn curve(self) -> Style {
        self.with(Color::Green, Modifier::empty())
    }

    pub fn key(self) -> Style {
        self.with(Color::Cyan, Modifier::BOLD)
    }

    pub fn bad(self) -> Style {
        self.with(Color::Red, Modifier::BOLD)
    }

    pub fn warning(self) -> Style {
        self.with(Color::Yellow, Modifier::BOLD)
    }

    pub fn state(self, state: SourceState) -> Style {
        match state {
            SourceState::Ok => Style::new(),
            SourceState::Throttled => self.bad(),
            SourceState::Allowed => self.with(Color::Blue, Modifier::DIM),
        }
    }

    pub fn event(self, kind: &str) -> Style {
        match kind {
            "throttled" | "banned" | "config_error" => self.bad(),
            "violation" | "unsynced" | "table_full" | "proxy_suspected" | "missed" | "paced" => {
                self.warning()
            }
            "flow_opened" | "flow_closed" => self.label(),
            _ => Style::new(),
        }
    }
}
