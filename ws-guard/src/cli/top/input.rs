//! Handling of keys.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Action, Model, Prompt, Request};

/// Rows per page until the height is known.
const PAGE: isize = 10;

/// Keys, effects, texts in the footer. No text: not shown; empty: the same words.
pub const KEYS: [(&str, &str, Option<&str>); 11] = [
    ("↑↓", "select; also j, k, PageUp, PageDown, Home, End", None),
    ("⏎", "details of the client, and back", Some("open")),
    ("s", "order by the next column; S: by the one before", Some("sort")),
    ("o", "turn the order around", None),
    ("/", "filter by address, network or state; Esc: all", Some("find")),
    ("p", "pause, and go on", Some("pause")),
    ("t", "throttle the client for 15 minutes", Some("throttle")),
    ("r", "release it", Some("release")),
    ("a", "put it on the allowlist", Some("allow")),
    ("?", "these keys", Some("keys")),
    ("q", "quit", Some("")),
];

/// Commands outside the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Quit,
    Do(Request),
}

/// Handle a key press.
pub fn press(model: &mut Model, key: KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Command::Quit);
    }
    model.notice = None;
    match model.prompt.clone() {
        Prompt::None => browse(model, key.code),
        Prompt::Filter(before) => {
            write_filter(model, key.code, before);
            None
        }
        Prompt::Confirm(request) => {
            model.prompt = Prompt::None;
            if matches!(key.code, KeyCode::Char('y' | 'Y')) {
                return Some(Command::Do(request));
            }
            model.say("nothing was changed", false);
            None
        }
        Prompt::Help => {
            model.prompt = Prompt::None;
            None
        }
    }
}

fn browse(model: &mut Model, code: KeyCode) -> Option<Command> {
    match code {
        KeyCode::Char('q') => return Some(Command::Quit),
        KeyCode::Up | KeyCode::Char('k') => model.move_by(-1),
        KeyCode::Down | KeyCode::Char('j') => model.move_by(1),
        KeyCode::PageUp => model.move_by(-PAGE),
        KeyCode::PageDown => model.move_by(PAGE),
        KeyCode::Home | KeyCode::Char('g') => model.move_by(isize::MIN),
        KeyCode::End | KeyCode::Char('G') => model.move_by(isize::MAX),
        KeyCode::Char('s') => sort(model, true),
        KeyCode::Char('S') => sort(model, false),
        KeyCode::Char('o') => {
            model.reversed = !model.reversed;
            model.arrange();
        }
        KeyCode::Char('/') => model.prompt = Prompt::Filter(model.filter.clone()),
        KeyCode::Char('p' | ' ') => model.pause(),
        KeyCode::Enter => {
            // Fix the selection: another client that becomes first does not replace it.
            model.move_by(0);
            model.details = model.selected().is_some() && !model.details;
        }
        KeyCode::Esc if model.details => model.details = false,
        KeyCode::Esc => {
            model.filter.clear();
            model.arrange();
        }
        KeyCode::Char('?' | 'h') => model.prompt = Prompt::Help,
        KeyCode::Char('t') => ask(model, Action::Throttle),
        KeyCode::Char('r') => ask(model, Action::Release),
        KeyCode::Char('a') => ask(model, Action::Allow),
        _ => {}
    }
    None
}

fn sort(model: &mut Model, forward: bool) {
    model.sort = model.sort.step(forward);
    model.arrange();
}

/// Ask for confirmation of a change to the selected client, if it is possible.
fn ask(model: &mut Model, action: Action) {
    let Some(source) = model.selected().map(|row| row.view.source.clone()) else {
        model.say("no client is selected", true);
        return;
    };
    if model.is_paused() {
        model.say("paused: what is shown may be over; go on with p first", true);
    } else if !model.shown().has_daemon() {
        model.say("read-only: no daemon runs, start one with `ws-guard run`", true);
    } else {
        model.prompt = Prompt::Confirm(Request { action, source });
    }
}

fn write_filter(model: &mut Model, code: KeyCode, before: String) {
    match code {
        KeyCode::Enter => model.prompt = Prompt::None,
        KeyCode::Esc => {
            model.filter = before;
            model.prompt = Prompt::None;
        }
        KeyCode::Backspace => {
            model.filter.pop();
        }
        KeyCode::Char(c) => model.filter.push(c),
        _ => {}
    }
    model.arrange();
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, sample, source};
    use super::*;

    fn code(model: &mut Model, code: KeyCode) -> Option<Command> {
        press(model, KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn type_in(model: &mut Model, text: &str) -> Option<Command> {
        text.chars().filter_map(|c| code(model, KeyCode::Char(c))).last()
    }

    #[test]
    fn a_change_needs_a_yes() {
        let mut model = model();
        model.move_by(isize::MIN);
        let selected = model.selected().unwrap().view.source.clone();
        for (key, action) in [("t", Action::Throttle), ("r", Action::Release), ("a", Action::Allow)]
        {
            assert_eq!(type_in(&mut model, key), None);
            assert_eq!(type_in(&mut model, "n"), None);
            assert!(model.notice.as_ref().unwrap().text.contains("nothing was changed"));
            let request = Request { action, source: selected.clone() };
            assert_eq!(type_in(&mut model, &format!("{key}y")), Some(Command::Do(request)));
            assert_eq!(model.prompt, Prompt::None);
        }
    }

    #[test]
    fn the_change_is_of_the_client_that_was_asked_about() {
        let mut model = model();
        type_in(&mut model, "t");
        let Prompt::Confirm(asked) = model.prompt.clone() else { panic!("{:?}", model.prompt) };
        model.take(sample(vec![source("192.0.2.1", 1)]));
        assert_eq!(type_in(&mut model, "y"), Some(Command::Do(asked)));
    }

    #[test]
    fn without_a_daemon_and_without_a_client_actions_say_so() {
        let mut model = model();
        let mut pins = sample(vec![source("10.77.0.1", 1)]);
        pins.status.pid = None;
        model.take(pins);
        assert_eq!(type_in(&mut model, "ty"), None);
        type_in(&mut model, "a");
        assert!(model.notice.as_ref().unwrap().text.starts_with("read-only"));
        model.take(sample(vec![]));
        type_in(&mut model, "r");
        assert!(model.notice.as_ref().unwrap().text.contains("no client"));
    }

    #[test]
    fn a_filter_is_written_kept_and_given_up() {
        let mut model = model();
        type_in(&mut model, "/fd7x");
        code(&mut model, KeyCode::Backspace);
        assert_eq!((model.filter.as_str(), model.clients().len()), ("fd7", 1));
        code(&mut model, KeyCode::Enter);
        assert_eq!(model.prompt, Prompt::None);
        type_in(&mut model, "/q");
        assert_eq!(model.clients().len(), 0);
        code(&mut model, KeyCode::Esc);
        assert_eq!((model.filter.as_str(), model.clients().len()), ("fd7", 1));
        code(&mut model, KeyCode::Esc);
        assert_eq!((model.filter.as_str(), model.clients().len()), ("", 3));
    }

    #[test]
    fn keys_end_it_pause_it_and_open_a_client() {
        let mut model = model();
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(type_in(&mut model, "q"), Some(Command::Quit));
        type_in(&mut model, "/");
        assert_eq!(press(&mut model, ctrl_c), Some(Command::Quit));
        code(&mut model, KeyCode::Esc);
        type_in(&mut model, "p");
        assert!(model.is_paused());
        assert_eq!(type_in(&mut model, "ty"), None);
        type_in(&mut model, "p");
        code(&mut model, KeyCode::Enter);
        assert!(model.details && !model.is_paused());
        code(&mut model, KeyCode::Esc);
        assert!(!model.details);
        type_in(&mut model, "?");
        assert_eq!(model.prompt, Prompt::Help);
        type_in(&mut model, "q");
        assert_eq!(model.prompt, Prompt::None);
    }
}
