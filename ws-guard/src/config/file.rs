//! Configuration file: TOML whose keys are the flags without their dashes.
//! The tables `[[port]]` and `[[cidr]]` hold their own settings: a key of the same name, with one
//! or more values, and the settings.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use ws_guard_server::regular;

use super::problem::{Given, Place, Problem};
use crate::domain::{overrides::Overrides, setting::closest};

/// Name of the companion server's section.
pub const SECTION: &str = "server";

/// Values of a file with their places.
#[derive(Default)]
pub struct FileLayer {
    pub values: Vec<(String, Vec<Given>)>,
    pub problems: Vec<Problem>,
}

/// Read the text of a configuration file.
pub fn read(path: &Path) -> Result<String, Problem> {
    let problem = |what: String| Problem {
        place: Place::File { path: path.to_owned(), line: 0, key: String::new() },
        message: what,
    };
    let text = regular::read(path).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))
    });
    text.map_err(|error| {
        problem(format!("cannot be read ({error}): check --config and the file's permissions"))
    })
}

/// Parse a file's text.
/// `known` lists the permitted keys, besides the companion server's section, which is skipped.
pub fn parse(path: &Path, text: &str, known: &[&str]) -> FileLayer {
    let lines = Lines { path: path.to_owned(), text };
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut layer = FileLayer::default();
    for error in errors {
        let message = format!("{}: correct the TOML", error.message().trim_end());
        layer.problems.push(lines.problem(error.span().unwrap_or(0..0), "", message));
    }
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        if name == SECTION {
            continue;
        }
        if !known.contains(&name) {
            layer.problems.push(lines.problem(key.span(), name, unknown_key(name, known)));
            continue;
        }
        let values = lines.values(name, value, &mut layer.problems);
        layer.values.push((name.to_string(), values));
    }
    in_order(&mut layer.problems);
    layer
}

/// Sort a file's problems by line; parsed tables are ordered by key.
pub fn in_order(problems: &mut [Problem]) {
    problems.sort_by_key(|problem| match problem.place {
        Place::File { line, .. } => line,
        _ => 0,
    });
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    let respelt = name.replace('_', "-");
    let known = [known, &[SECTION]].concat();
    match closest(&respelt, &known) {
        Some(key) => format!("unknown key: did you mean {key}?"),
        None => format!("unknown key: give one of {}", known.join(", ")),
    }
}

/// Return the line of a byte offset, from 1.
pub fn line(text: &str, place: usize) -> usize {
    let before = text.as_bytes().get(..place).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Settings whose values may be tables.
const TABLES: [&str; 2] = ["port", "cidr"];

/// Mapping of byte offsets to lines.
struct Lines<'a> {
    path: PathBuf,
    text: &'a str,
}

impl Lines<'_> {
    fn place(&self, span: Range<usize>, key: &str) -> Place {
        let line = line(self.text, span.start);
        Place::File { path: self.path.clone(), line, key: key.to_string() }
    }

    fn problem(&self, span: Range<usize>, key: &str, message: String) -> Problem {
        Problem { place: self.place(span, key), message }
    }

    /// Return the texts of a value or array; add all problems to `problems`.
    fn values(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        problems: &mut Vec<Problem>,
    ) -> Vec<Given> {
        match value.get_ref() {
            DeValue::Array(items) => {
                items.iter().flat_map(|item| self.one(key, item, problems)).collect()
            }
            _ => self.one(key, value, problems),
        }
    }

    fn one(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        problems: &mut Vec<Problem>,
    ) -> Vec<Given> {
        match value.get_ref() {
            DeValue::Table(table) if TABLES.contains(&key) => {
                self.table(key, value, table, problems)
            }
            _ => taken(self.scalar(key, value), problems).into_iter().collect(),
        }
    }

    /// Convert a table into the text of a flag: each target with all of the settings.
    /// They are checked here, where their lines are known.
    fn table(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        table: &DeTable<'_>,
        problems: &mut Vec<Problem>,
    ) -> Vec<Given> {
        let mut targets = Vec::new();
        let (mut named, before) = (false, problems.len());
        let mut settings = String::new();
        for (name, item) in table {
            let name = name.get_ref().as_ref();
            if name == key {
                named = true;
                let all = match item.get_ref() {
                    DeValue::Array(items) => items.iter().collect(),
                    _ => vec![item],
                };
                let all = all.into_iter().map(|item| self.scalar(key, item));
                targets.extend(all.filter_map(|target| taken(target, problems)));
                continue;
            }
            let own = format!("{key}.{name}");
            let Some(given) = taken(self.scalar(&own, item), problems) else { continue };
            match Overrides::default().set(name, &given.text, key == "cidr") {
                Ok(()) => settings += &format!(" {name}={}", given.text),
                Err(message) => problems.push(self.problem(item.span(), key, message)),
            }
        }
        if !named {
            let message = format!("missing {key}: add {key} = …");
            problems.push(self.problem(value.span(), key, message));
        }
        if problems.len() > before && key == "cidr" {
            // A network without settings is an error of its own; the network is checked as well.
            settings = " action=observe".into();
        }
        for target in &mut targets {
            target.text.push_str(&settings);
        }
        targets
    }

    fn scalar(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Given, Problem> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(switch) => switch.to_string(),
            // Use the number, however it is written: 0x1F90 is 8080.
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |number| number.to_string()),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(_) | DeValue::Table(_) => {
                let kind = value.get_ref().type_str();
                let message = format!("a value is required here, not a nested {kind}");
                return Err(self.problem(value.span(), key, message));
            }
        };
        Ok(Given { text, place: self.place(value.span(), key) })
    }
}

/// Return a value, or add its problem to `problems`.
fn taken<T>(value: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    value.map_err(|problem| problems.push(problem)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 3] = ["interface", "port", "max-ping-rate"];

    fn parsed(text: &str) -> FileLayer {
        parse(Path::new("/etc/g.toml"), text, &KNOWN)
    }

    fn problems(text: &str) -> Vec<String> {
        parsed(text).problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn values_know_their_lines() {
        let layer = parsed("# x\nport = [80,\n 9_001]\ninterface = \"eth0\"\n");
        assert!(layer.problems.is_empty());
        let port = &layer.values.iter().find(|(key, _)| key == "port").unwrap().1;
        assert_eq!((port[0].text.as_str(), port[1].text.as_str()), ("80", "9001"));
        assert_eq!(port[1].place.to_string(), "/etc/g.toml:3: port");
    }

    #[test]
    fn unknown_keys_are_guessed() {
        assert_eq!(
            problems("max_ping_rate = 3\n[nested]\nx = 1\n"),
            [
                "/etc/g.toml:1: max_ping_rate: unknown key: did you mean max-ping-rate?",
                "/etc/g.toml:2: nested: unknown key: give one of interface, port, max-ping-rate, server",
            ]
        );
    }

    #[test]
    fn broken_toml_names_its_line() {
        let found = problems("port = 80\ninterface = \n");
        assert!(found[0].starts_with("/etc/g.toml:2: "), "{found:?}");
        assert!(problems("interface = {a = 1}")[0].contains("not a nested"), "nested");
    }

    #[test]
    fn tables_become_texts() {
        let layer = parsed(
            "[[port]]\nport = 80\n[[port]]\nport = [443, 8443]\nmax-ping-rate = 5\naction = \"drop\"\n",
        );
        assert!(layer.problems.is_empty());
        let texts: Vec<&str> = layer.values[0].1.iter().map(|given| given.text.as_str()).collect();
        assert_eq!(
            texts,
            ["80", "443 action=drop max-ping-rate=5", "8443 action=drop max-ping-rate=5"]
        );
        assert_eq!(layer.values[0].1[1].place.to_string(), "/etc/g.toml:4: port");
        assert_eq!(
            problems("[[port]]\nmax-ping-rate = 5\n"),
            ["/etc/g.toml:1: port: missing port: add port = …"]
        );
    }

    #[test]
    fn numbers_are_what_they_mean() {
        for (written, meant) in [
            ("0x1F90", "8080"),
            ("0o17_570", "8056"),
            ("0b1010", "10"),
            ("+8_080", "8080"),
            ("-1", "-1"),
            ("1.5", "1.5"),
            ("\"0x1F90\"", "0x1F90"),
        ] {
            let layer = parsed(&format!("port = {written}\n"));
            assert_eq!(layer.values[0].1[0].text, meant, "{written}");
        }
    }

    #[test]
    fn all_errors_of_a_table_have_their_own_lines() {
        let text = "[[port]]\nport = [80, [81]]\nmax-ping-rate = -5\naction = \"dorp\"\n\
            window-second = 0x10\n[[port]]\nport = 82\nmax-ping-rate = [1]\n";
        let found = problems(text);
        let places: Vec<&str> = found
            .iter()
            .map(|line| line.strip_prefix("/etc/g.toml:").unwrap().split(": ").next().unwrap())
            .collect();
        assert_eq!(places, ["2", "3", "4", "5", "8"], "{found:#?}");
        for (line, expected) in found.iter().zip([
            "port: a value is required",
            "port: max-ping-rate: \"-5\"",
            "port: action: \"dorp\"",
            "window-seconds",
            "port.max-ping-rate: a value is required",
        ]) {
            assert!(line.contains(expected), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart(text in "([a-z-]{1,14} ?= ?[0-9a-z\"\\[\\],.]{0,8}\n|.{0,20}\n){0,6}") {
            parsed(&text);
        }
    }
}
