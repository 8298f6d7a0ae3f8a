//! Merging of several nodes' tables into one, with a column NODE.
//!
//! Columns are separated where no line has text in two adjacent character positions: cells may be
//! empty, and may contain single spaces.
use std::fmt::Write as _;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Spaces between two columns.
const GAP: usize = 2;

/// Header, rows and total line: `2 sources, 1 throttled`, as numbers and words.
struct Table {
    header: Vec<String>,
    /// `true` for each right-aligned column.
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
    counts: Vec<(usize, String)>,
}

/// Merge the tables into one; `None` if one of the texts is not a table.
pub fn merge(said: &[(&str, &str)]) -> Option<String> {
    let tables: Vec<(&str, Table)> =
        said.iter().map(|(node, text)| Some((*node, parse(text)?))).collect::<Option<_>>()?;
    let mut text = String::new();
    let filled = || tables.iter().filter(|(_, table)| !table.rows.is_empty());
    if let Some((_, first)) = filled().next() {
        // A different header is that of another version.
        if filled().any(|(_, table)| table.header != first.header) {
            return None;
        }
        let mut rows = vec![cells("NODE", &first.header)];
        rows.extend(
            filled().flat_map(|(node, table)| table.rows.iter().map(|row| cells(node, row))),
        );
        let right: Vec<bool> = std::iter::once(false).chain(first.right.iter().copied()).collect();
        text = aligned(&rows, &right);
    }
    let nodes = if said.len() == 1 { "1 node".into() } else { format!("{} nodes", said.len()) };
    writeln!(text, "{} on {nodes}", sums(tables.iter().map(|(_, table)| &table.counts))).ok()?;
    Some(text)
}

/// Add up the total lines of several tables, count by count.
fn sums<'a>(all: impl Iterator<Item = &'a Vec<(usize, String)>>) -> String {
    let mut sums: Vec<(usize, &str)> = Vec::new();
    for counts in all {
        for (at, (number, words)) in counts.iter().enumerate() {
            match sums.get_mut(at) {
                None => sums.push((*number, words)),
                Some((sum, chosen)) => {
                    // "1 source" and "2 sources": the longer word is the plural.
                    let plural = if words.len() > chosen.len() { words } else { *chosen };
                    let singular = if *number == 1 { words } else { *chosen };
                    *sum += number;
                    *chosen = if *sum == 1 { singular } else { plural };
                }
            }
        }
    }
    let parts: Vec<String> = sums.iter().map(|(sum, words)| format!("{sum} {words}")).collect();
    parts.join(", ")
}

fn cells(node: &str, row: &[String]) -> Vec<String> {
    std::iter::once(node.to_owned()).chain(row.iter().cloned()).collect()
}

fn parse(text: &str) -> Option<Table> {
    let mut lines: Vec<&str> = text.lines().collect();
    let count = |part: &str| {
        let (number, words) = part.split_once(' ')?;
        Some((number.parse().ok()?, words.to_owned()))
    };
    let counts = lines.pop()?.split(", ").map(count).collect::<Option<Vec<(usize, String)>>>()?;
    let header = lines.first().copied().unwrap_or_default();
    // Titles are in capitals; text that ends with a count is not a table for that reason.
    if lines.len() == 1 || header.chars().any(char::is_lowercase) {
        return None;
    }
    let grids: Vec<Vec<char>> = lines.iter().map(|line| grid(line)).collect();
    let columns = columns(&grids);
    let cut = |grid: &Vec<char>| -> Vec<String> {
        columns.iter().map(|(from, to)| cell(grid, *from, *to)).collect()
    };
    // In a right-aligned column, some cell begins late, and none ends early.
    let right = |(from, to): &(usize, usize)| {
        let blank = |grid: &&Vec<char>, at: usize| grid.get(at).is_none_or(|c| *c == ' ');
        let mut filled = grids.iter().filter(|grid| !cell(grid, *from, *to).is_empty());
        filled.clone().any(|grid| blank(&grid, *from)) && !filled.any(|grid| blank(&grid, *to - 1))
    };
    let right = columns.iter().map(right).collect();
    let mut rows = grids.iter().map(cut);
    let header = rows.next().unwrap_or_default();
    let rows = rows.collect();
    Some(Table { header, right, rows, counts })
}

/// Lay out a line by screen column; a wide character is followed by a filler.
fn grid(line: &str) -> Vec<char> {
    let fill = |c: char| std::iter::once(c).chain((1..c.width().unwrap_or(1)).map(|_| '\0'));
    line.chars().flat_map(fill).collect()
}

fn cell(grid: &[char], from: usize, to: usize) -> String {
    let part = grid.iter().skip(from).take(to - from).filter(|c| **c != '\0');
    part.collect::<String>().trim().to_owned()
}

/// Return the start and end of each column of a table.
fn columns(grids: &[Vec<char>]) -> Vec<(usize, usize)> {
    let width = grids.iter().map(Vec::len).max().unwrap_or(0);
    let blank = |at: usize| grids.iter().all(|grid| grid.get(at).is_none_or(|c| *c == ' '));
    let (mut columns, mut start, mut gap) = (Vec::new(), None, 0);
    for at in 0..=width + GAP {
        if !blank(at) {
            start.get_or_insert(at);
            gap = 0;
            continue;
        }
        gap += 1;
        if gap == GAP
            && let Some(from) = start.take()
        {
            columns.push((from, at + 1 - GAP));
        }
    }
    columns
}

fn aligned(rows: &[Vec<String>], right: &[bool]) -> String {
    let mut widths = vec![0; right.len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(right) {
            let pad = " ".repeat(width - cell.width());
            let (before, after) = if *right { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.extend([before, cell, after, "  "]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "\
SOURCE      STATE      PINGS  LAST PING
10.77.0.1   throttled   1234  3s ago
10.77.0.12  ok             5
2 sources
";
    const SECOND: &str = "\
SOURCE     STATE  PINGS  LAST PING
fd77::/64  ok         1  just now
1 source
";

    #[test]
    fn rows_get_their_node_and_the_count_is_the_sum() {
        let merged = merge(&[("n1", FIRST), ("node2", SECOND)]).expect("two tables");
        let expected = "\
NODE   SOURCE      STATE      PINGS  LAST PING
n1     10.77.0.1   throttled   1234  3s ago
n1     10.77.0.12  ok             5
node2  fd77::/64   ok             1  just now
3 sources on 2 nodes
";
        assert_eq!(merged, expected);
    }

    #[test]
    fn nodes_without_rows_are_counted() {
        let merged = merge(&[("n1", "0 sources\n"), ("n2", SECOND)]).expect("tables");
        assert!(merged.contains("n2    fd77::/64"), "{merged}");
        assert!(merged.ends_with("1 source on 2 nodes\n"), "{merged}");
        assert_eq!(merge(&[("n1", "0 sources\n")]).expect("none"), "0 sources on 1 node\n");
    }

    #[test]
    fn each_part_of_the_count_is_added_up() {
        let first = FIRST.replace("2 sources", "2 sources, 1 throttled");
        let second = SECOND.replace("1 source", "1 source, 0 throttled");
        let merged = merge(&[("n1", &first), ("n2", &second)]).expect("two tables");
        assert!(merged.ends_with("\n3 sources, 1 throttled on 2 nodes\n"), "{merged}");
    }

    #[test]
    fn tables_with_other_columns_are_not_mixed() {
        let other = "SOURCE  BYTES\na           1\n1 source\n";
        assert_eq!(merge(&[("n1", FIRST), ("n2", other)]), None);
    }

    #[test]
    fn other_texts_are_no_tables() {
        assert!(parse("done\n").is_none());
        assert!(parse("version  0.1.0\nflows    3 open\n3 flows\n").is_none());
    }

    #[test]
    fn wide_characters_do_not_move_columns() {
        let text = "USER  STATE\n東京  open\n1 connection\n";
        let table = parse(text).expect("a table");
        assert_eq!(table.rows, [["東京", "open"]]);
    }
}
