//! The faults of a run, as its log has them.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Fault {
    pub fault: String,
    pub server: Option<i32>,
    /// Seconds from the beginning.
    pub at: f64,
    pub lasts: f64,
}

/// None where there is no such file.
pub fn read(path: &Path) -> Result<Vec<Fault>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    let faults = text.lines().enumerate().map(|(number, line)| {
        serde_json::from_str(line)
            .with_context(|| format!("{}, line {}: no fault", path.display(), number + 1))
    });
    faults.collect()
}
