//! Log of all events.
//! Its output is lines of JSON, on standard output or in a rotated file, or log records for a
//! collector.

use std::{
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use file_rotate::{ContentLimit, FileRotate, compression::Compression, suffix::AppendCount};
use serde_json::Value;
use tokio::sync::mpsc;
use ws_guard_server::telemetry::logs::{Logs, Record};

use crate::{
    domain::{
        event::EventView,
        event_filter::{EventFilter, MISSED, kinds},
    },
    state::{State, events},
};

/// Size in bytes at which a file is rotated.
const SIZE: usize = 64 << 20;
/// Older files kept: `PATH.1` is the newest of them.
const OLDER: usize = 4;
/// Lines pending for the disk; more remain in the log of the latest events.
const WAITING: usize = 64;

/// Value of the setting that selects a collector.
const COLLECTOR: &str = "otlp";

/// Check whether events go to a collector.
pub fn is_collector(path: &Path) -> bool {
    path == Path::new(COLLECTOR)
}

/// Destination of events.
pub enum EventLog {
    Lines(Box<dyn Write + Send>),
    Collector(Arc<Logs>),
}

impl EventLog {
    /// Open the destination; `-` is standard output.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(path: &Path) -> anyhow::Result<EventLog> {
        if path == Path::new("-") {
            return Ok(EventLog::Lines(Box::new(io::stdout())));
        }
        EventLog::rotated(path, SIZE)
    }

    fn rotated(path: &Path, size: usize) -> anyhow::Result<EventLog> {
        // Checked first: the rotating writer opens the file without reporting errors.
        std::fs::OpenOptions::new().create(true).append(true).open(path).with_context(|| {
            format!("cannot write events to {}: choose another --event-log", path.display())
        })?;
        let (suffix, limit) = (AppendCount::new(OLDER), ContentLimit::BytesSurpassed(size));
        let rotated = FileRotate::new(path, suffix, limit, Compression::None, None);
        Ok(EventLog::Lines(Box::new(rotated)))
    }

    fn write(&mut self, event: &EventView) -> io::Result<()> {
        match self {
            EventLog::Lines(lines) => {
                let mut line = serde_json::to_vec(event)?;
                line.push(b'\n');
                lines.write_all(&line)?;
                lines.flush()
            }
            EventLog::Collector(logs) => {
                logs.emit(record(event)?);
                Ok(())
            }
        }
    }
}

/// Create a record with the fields of a line, except those every record has.
fn record(event: &EventView) -> io::Result<Record> {
    let Value::Object(mut fields) = serde_json::to_value(event)? else {
        return Err(io::Error::other("an event is no object"));
    };
    fields.remove("time");
    let name = kinds().find(|kind| *kind == event.kind).unwrap_or(MISSED);
    let (level, time, text) = (events::level(event), event.time.0, event.to_string());
    Ok(Record { name, level, time, text, fields })
}

/// Write events until dropped.
/// A slow destination delays nothing: the loss is reported by an event of kind `missed`.
pub async fn run(state: State, mut log: EventLog) {
    let (old, mut follower) = state.events.follow(0, EventFilter::default());
    let (sender, mut lines) = mpsc::channel::<Arc<EventView>>(WAITING);
    // Not a thread of the runtime: its end would wait for a reader that never comes.
    std::thread::spawn(move || {
        let mut failed = None;
        while let Some(event) = lines.blocking_recv() {
            let error = log.write(&event).err().map(|error| error.to_string());
            if let Some(error) = error.as_ref().filter(|_| failed != error) {
                tracing::warn!("events cannot be written to --event-log: {error}");
            }
            failed = error;
        }
    });
    for event in old {
        let _ = sender.send(event).await;
    }
    while let Some(event) = follower.next().await {
        let _ = sender.send(event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_and_what_cannot_be_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        for message in ["one", "two"] {
            let mut log = EventLog::open(&path).unwrap();
            log.write(&EventView::message("policy", message)).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<EventView> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].message.as_deref(), Some("two"));
        let error = EventLog::open(&folder.path().join("none/events")).err().unwrap();
        assert!(error.to_string().contains("choose another --event-log"), "{error}");
    }

    #[test]
    fn old_files_are_few() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut log = EventLog::rotated(&path, 1000).unwrap();
        let large = EventView::message("policy", "x".repeat(1000));
        for _ in 0..OLDER * 3 {
            log.write(&large).unwrap();
        }
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let older = (1..=OLDER).map(|n| format!("events.jsonl.{n}"));
        assert_eq!(names, std::iter::once("events.jsonl".into()).chain(older).collect::<Vec<_>>());
    }
}
