//! The configuration file: TOML whose keys are the flags without their dashes. A table stands for
//! what has settings of its own: `[[port]]` and `[[cidr]]` hold a key of the same name, one value or
//! several, and the settings.

use std::{
    fs::File,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    layers::{Given, Place, Problem},
    server::SECTION,
};
use crate::domain::setting::closest;

/// A file larger than this is none of ours.
const LARGEST: u64 = 1 << 20;

/// The values of a file, each with its place.
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
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(problem(format!(
            "cannot be read ({error}): check --config and the file's permissions"
        ))),
        Ok(length) if length as u64 > LARGEST => {
            Err(problem("is larger than 1 MiB: name a configuration file".into()))
        }
        Ok(_) => Ok(text),
    }
}

/// Take a file's text apart. `known` are the keys that may be in it, beside the companion server's
/// section, which is passed over.
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
        match lines.values(name, value) {
            Ok(values) => layer.values.push((name.to_string(), values)),
            Err(problem) => layer.problems.push(problem),
        }
    }
    layer
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    let respelt = name.replace('_', "-");
    let known = [known, &[SECTION]].concat();
    match closest(&respelt, &known) {
        Some(key) => format!("unknown key: did you mean {key}?"),
        None => format!("unknown key: give one of {}", known.join(", ")),
    }
}

/// The line of a place in a text, from 1.
pub fn line(text: &str, place: usize) -> usize {
    let before = text.as_bytes().get(..place).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Settings whose values may be tables.
const TABLES: [&str; 2] = ["port", "cidr"];

/// Turns places in a text into lines.
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

    /// The texts of a value: one, or those of an array.
    fn values(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Given>, Problem> {
        let mut texts = Vec::new();
        match value.get_ref() {
            DeValue::Array(items) => {
                for item in items {
                    texts.extend(self.one(key, item)?);
                }
            }
            _ => texts = self.one(key, value)?,
        }
        Ok(texts)
    }

    fn one(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Given>, Problem> {
        match value.get_ref() {
            DeValue::Table(table) if TABLES.contains(&key) => self.table(key, value, table),
            _ => Ok(vec![self.scalar(key, value)?]),
        }
    }

    /// A table as the text that a flag would have: each target with all of the settings.
    fn table(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        table: &DeTable<'_>,
    ) -> Result<Vec<Given>, Problem> {
        let mut targets = Vec::new();
        let mut settings = String::new();
        for (name, item) in table {
            if name.get_ref() == key {
                targets = match item.get_ref() {
                    DeValue::Array(items) => {
                        items.iter().map(|item| self.scalar(key, item)).collect::<Result<_, _>>()?
                    }
                    _ => vec![self.scalar(key, item)?],
                };
            } else {
                settings += &format!(" {}={}", name.get_ref(), self.scalar(key, item)?.text);
            }
        }
        if targets.is_empty() {
            let message = format!("the table does not say which {key}: add {key} = …");
            return Err(self.problem(value.span(), key, message));
        }
        for target in &mut targets {
            target.text.push_str(&settings);
        }
        Ok(targets)
    }

    fn scalar(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Given, Problem> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(switch) => switch.to_string(),
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) => {
                self.text.get(value.span()).unwrap_or_default().replace('_', "")
            }
            DeValue::Array(_) | DeValue::Table(_) => {
                let kind = value.get_ref().type_str();
                let message = format!("a value is wanted here, not a nested {kind}");
                return Err(self.problem(value.span(), key, message));
            }
        };
        Ok(Given { text, place: self.place(value.span(), key) })
    }
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
            ["/etc/g.toml:1: port: the table does not say which port: add port = …"]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart(text in "([a-z-]{1,14} ?= ?[0-9a-z\"\\[\\],.]{0,8}\n|.{0,20}\n){0,6}") {
            parsed(&text);
        }
    }
}
