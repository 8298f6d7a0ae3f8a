//! The story of a finding: what its client logged around that time.

use std::{collections::VecDeque, path::PathBuf};

use anyhow::Result;

use super::Found;
use crate::log::{self, Event, Line};

/// Microseconds before and after.
const AROUND: u64 = 5_000_000;
/// Lines at most.
const LINES: usize = 60;

/// A story for each finding, in their order.
pub fn tell(logs: &[PathBuf], found: &[Found]) -> Result<Vec<Vec<String>>> {
    let mut stories = vec![VecDeque::new(); found.len()];
    if found.is_empty() {
        return Ok(Vec::new());
    }
    for path in logs {
        log::read(path, |line| {
            for (finding, story) in found.iter().zip(&mut stories) {
                // After the time too much is not of interest: the beginning is kept.
                if concerns(finding, &line) && (line.at <= finding.at || story.len() < LINES) {
                    story.push_back((line.at, shown(finding, &line)));
                    if story.len() > LINES {
                        story.pop_front();
                    }
                }
            }
        })?;
    }
    Ok(stories
        .into_iter()
        .map(|story| {
            let mut story: Vec<(u64, String)> = story.into();
            story.sort();
            story.into_iter().map(|(_, text)| text).collect()
        })
        .collect())
}

/// Whether it is the client's, or of the publication that is spoken of.
fn concerns(finding: &Found, line: &Line) -> bool {
    let near = line.at.abs_diff(finding.at) <= AROUND;
    let of_publication = match &line.event {
        Event::Publish { id, .. } | Event::Published { id, .. } | Event::Refused { id, .. } => {
            let mut words = finding.text.split([' ', ',']);
            words.any(|word| word == id)
        }
        _ => false,
    };
    near && (line.who == finding.who || of_publication)
}

fn shown(finding: &Found, line: &Line) -> String {
    let ms = (line.at as f64 - finding.at as f64) / 1000.0;
    let event = serde_json::to_string(&line.event).unwrap_or_default();
    format!("{ms:+.1} ms {} {event}", line.who)
}
