//! What clients and publishers log, and what the checker reads: a line of JSON for each event.
//!
//! The browser client's script, `node/clients.mjs`, writes the same lines.

use std::{
    cell::RefCell,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// An event of one client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since 1970.
    pub at: u64,
    pub who: String,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The client is there, and will follow this topic.
    Began {
        topic: String,
    },
    /// The topic is followed from after this offset: the first subscription.
    Subscribed {
        topic: String,
        offset: u64,
    },
    /// The connection has ended, and the client begins to come back.
    Closed {
        why: String,
    },
    /// An attempt to connect, or to go on where the client was, has failed.
    Failed {
        why: String,
    },
    /// The server asked to wait before the next attempt.
    Wait {
        ms: u64,
    },
    /// The session is back: connected, and following all it followed before.
    Open {
        recovered: bool,
    },
    Publish {
        topic: String,
        id: String,
    },
    /// Acknowledged.
    Published {
        topic: String,
        id: String,
        offset: u64,
        repeated: bool,
    },
    /// Not acknowledged; it will be sent again if `again`.
    Refused {
        id: String,
        status: u64,
        again: bool,
    },
    /// Delivered to the application.
    Message {
        topic: String,
        offset: u64,
        id: String,
    },
    /// The application was told that messages after `from`, up to `to`, may be missing.
    Gap {
        topic: String,
        from: u64,
        to: u64,
    },
    /// One connection of a client that floods with pings.
    Flooded {
        ms: u64,
        sent: u64,
        answered: u64,
    },
    /// The client ends by itself.
    Done,
}

/// The log of the clients in one process.
#[derive(Clone)]
pub struct Log(Rc<RefCell<BufWriter<File>>>);

impl Log {
    pub fn create(path: &Path) -> Result<Log> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Log(Rc::new(RefCell::new(BufWriter::with_capacity(1 << 16, file)))))
    }

    /// # Errors
    /// A full disk: a run whose log has holes proves nothing.
    pub fn write(&self, who: &str, event: Event) -> Result<()> {
        let line = Line { at: now(), who: who.to_owned(), event };
        let mut file = self.0.borrow_mut();
        serde_json::to_writer(&mut *file, &line).context("writing the log of the clients")?;
        file.write_all(b"\n").context("writing the log of the clients")
    }

    pub fn flush(&self) -> Result<()> {
        self.0.borrow_mut().flush().context("writing the log of the clients")
    }
}

/// Microseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

/// Give each line of a log to `each`, in order.
///
/// # Errors
/// A line that is none: a log with holes proves nothing.
pub fn read(path: &Path, mut each: impl FnMut(Line)) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("reading {}", path.display()))?;
        let line = serde_json::from_str(&line).with_context(|| {
            format!("{}, line {}: not an event of a client", path.display(), number + 1)
        })?;
        each(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_the_script_writes_too() {
        let text = r#"{"at":7,"who":"node-1","event":"message","topic":"t","offset":3,"id":"x"}"#;
        let event = Event::Message { topic: "t".into(), offset: 3, id: "x".into() };
        let line = Line { at: 7, who: "node-1".into(), event };
        assert_eq!(serde_json::from_str::<Line>(text).unwrap(), line);
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
    }
}
