//! Terminal in raw mode, and its restoration.

use std::io;

use ratatui::{DefaultTerminal, Frame};

/// Alternate screen in raw mode.
/// It is left on drop, and after a panic before its message is printed.
pub struct Screen(DefaultTerminal);

impl Screen {
    pub fn enter() -> io::Result<Screen> {
        ratatui::try_init().map(Screen)
    }

    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.0.draw(draw).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoration.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

#[cfg(test)]
mod tests {
    use ws_guard_testkit::tmux::Tmux;

    use super::*;

    /// Variable that is set inside the terminal of the second test.
    const INSIDE: &str = "WS_GUARD_TEST_PANICS";

    /// Panic inside that terminal; elsewhere do nothing.
    #[test]
    fn panic_on_the_screen() {
        if std::env::var_os(INSIDE).is_none() {
            return;
        }
        let mut screen = Screen::enter().unwrap();
        screen.draw(|frame| frame.render_widget("drawn", frame.area())).unwrap();
        panic!("in the middle of a screen");
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        if let Some(reason) = Tmux::missing() {
            println!("skipped: {reason}");
            return;
        }
        let test = std::env::current_exe().unwrap();
        let name = "cli::top::screen::tests::panic_on_the_screen";
        let words = ["--exact", name, "--nocapture", "--test-threads", "1"];
        // A backtrace would push the message off the screen.
        let inside = format!("{INSIDE}=1");
        let quiet = ["env", "RUST_BACKTRACE=0", &inside, test.to_str().unwrap()];
        let tmux = Tmux::start(80, 24).unwrap();
        tmux.run(&[&quiet[..], &words].concat()).unwrap();
        let screen = tmux.wait_for("test result: FAILED").unwrap();
        assert!(screen.contains("in the middle of a screen"), "{screen}");
        tmux.ensure_given_back().unwrap();
    }
}
