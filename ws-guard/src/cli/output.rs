//! Tables, JSON, and repeated output.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table as Grid, presets};
use serde::Serialize;

use crate::domain::clock::Timestamp;

/// Form of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// What fits a terminal
    #[default]
    Table,
    /// All columns
    Wide,
    /// For scripts; with --watch a document a line
    Json,
}

/// Options of every listing.
#[derive(Args, Clone, Copy, Debug)]
pub struct Listing {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Look again each second until interrupted
    #[arg(short, long)]
    pub watch: bool,
}

/// Rows with a header, and a line with their count.
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<String>>,
    pub count: String,
}

/// Column; wide ones are left out of a plain table.
#[derive(Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    pub number: bool,
    pub wide: bool,
}

impl Column {
    pub const fn text(title: &'static str) -> Column {
        Column { title, number: false, wide: false }
    }

    pub const fn number(title: &'static str) -> Column {
        Column { title, number: true, wide: false }
    }

    pub const fn wide(self) -> Column {
        Column { wide: true, ..self }
    }
}

impl Table {
    pub fn render(&self, wide: bool) -> String {
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|i| wide || !self.columns[*i].wide).collect();
        let mut grid = Grid::new();
        grid.load_preset(presets::NOTHING);
        grid.set_header(shown.iter().map(|i| self.columns[*i].title));
        for row in &self.rows {
            let cell = |i: &usize| row.get(*i).map_or(Cow::Borrowed(""), |cell| printable(cell));
            grid.add_row(shown.iter().map(cell));
        }
        for (column, i) in grid.column_iter_mut().zip(&shown) {
            column.set_padding((0, 2));
            if self.columns[*i].number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = String::new();
        if !self.rows.is_empty() {
            for line in grid.to_string().lines() {
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text.push_str(&self.count);
        text.push('\n');
        text
    }
}

/// Print the result of `read`, once or again each second.
pub async fn show<T: Serialize>(
    listing: &Listing,
    read: impl AsyncFn() -> anyhow::Result<T>,
    text: impl Fn(&T, bool) -> String,
) -> anyhow::Result<()> {
    loop {
        let value = read().await?;
        let mut out = match listing.output {
            Format::Json if listing.watch => serde_json::to_string(&value)? + "\n",
            Format::Json => serde_json::to_string_pretty(&value)? + "\n",
            format => text(&value, format == Format::Wide),
        };
        if !listing.watch {
            return print(&out);
        }
        if listing.output != Format::Json {
            // Home, then clear: a screen in a terminal, a blank line between two in a file.
            let clear = io::stdout().is_terminal();
            out = if clear { format!("\x1b[H\x1b[2J{out}") } else { out + "\n" };
        }
        print(&out)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Print to standard output; a reader that has left is an error, not a panic.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Escape text for a terminal: it must not move the cursor or reverse the line.
pub fn printable(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if plain(c) { String::from(c) } else { c.escape_debug().to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// Format a count: `1 source`, `2 sources`.
pub fn plural(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// Format the time since then in its largest useful unit; `-` for never.
pub fn ago(time: Option<Timestamp>) -> String {
    let Some(Timestamp(time)) = time else { return "-".into() };
    SystemTime::now().duration_since(time).map_or("0s".into(), span)
}

/// Format the time until then; `-` for no end.
pub fn ahead(time: Option<Timestamp>) -> String {
    let Some(Timestamp(time)) = time else { return "-".into() };
    time.duration_since(SystemTime::now()).map_or("0s".into(), span)
}

/// Format as kubectl prints ages: `7s`, `5m`, `3h`, `2d`.
pub fn span(span: Duration) -> String {
    match span.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// Format a time for a wide table.
pub fn absolute(time: Option<Timestamp>) -> String {
    time.map_or("-".into(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> Table {
        Table {
            columns: vec![Column::text("NAME"), Column::number("N"), Column::text("MORE").wide()],
            rows: rows.iter().map(|row| row.map(String::from).to_vec()).collect(),
            count: plural(rows.len(), "row", "rows"),
        }
    }

    #[test]
    fn columns_are_aligned_and_counted() {
        let table = table(&[["a", "1", "x"], ["long name", "1000", "y"]]);
        assert_eq!(
            table.render(false),
            "NAME          N\na             1\nlong name  1000\n2 rows\n"
        );
        assert!(table.render(true).contains("long name  1000  y"));
    }

    #[test]
    fn what_would_not_show_is_escaped() {
        let shown = table(&[["a\u{1b}[2J\n\u{202e}b", "1", "J\u{fc}rgen's \"x\""]]).render(true);
        assert!(shown.contains(r"a\u{1b}[2J\n\u{202e}b"), "{shown}");
        assert!(shown.contains("J\u{fc}rgen's \"x\""), "{shown}");
    }

    #[test]
    fn an_empty_table_is_its_count() {
        assert_eq!(table(&[]).render(true), "0 rows\n");
    }

    #[test]
    fn spans_are_short() {
        let text = |secs| span(Duration::from_secs(secs));
        assert_eq!(
            [text(0), text(119), text(120), text(7_200), text(200_000)],
            ["0s", "119s", "2m", "2h", "2d"]
        );
        assert_eq!(ago(None), "-");
    }
}
