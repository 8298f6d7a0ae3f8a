//! Values with their places, and their problems.

use std::{fmt, path::PathBuf};

/// Place of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Flag(String),
    Variable(String),
    /// `line` counts from 1; 0 means the file as a whole.
    File {
        path: PathBuf,
        line: usize,
        key: String,
    },
    /// Required, but given nowhere.
    Missing(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Flag(name) => write!(f, "--{name}"),
            Place::Variable(name) => f.write_str(name),
            Place::Missing(name) => f.write_str(name),
            Place::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            Place::File { path, line, key } if key.is_empty() => {
                write!(f, "{}:{line}", path.display())
            }
            Place::File { path, line, key } => write!(f, "{}:{line}: {key}", path.display()),
        }
    }
}

/// Text and its place.
#[derive(Clone, Debug)]
pub struct Given {
    pub text: String,
    pub place: Place,
}

/// Problem of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// Message with the value and the remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// All problems of a configuration.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ConfigError(pub Vec<Problem>);

impl ConfigError {
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(Problem::to_string).collect()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has an error, nothing was changed:")?,
            n => write!(f, "the configuration has {n} errors, nothing was changed:")?,
        }
        self.lines().iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}
