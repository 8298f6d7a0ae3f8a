//! The access log: a line of JSON for each connection that opened, closed or was refused.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::record::{Ended, Totals};

/// Lines that may wait for the disk or the terminal; more are lost and counted.
const WAITING: usize = 8192;

/// What happened.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Open,
    /// What ended a connection was an error; its `Close` follows.
    Error,
    Close,
    Refused,
}

/// One line. Fields that do not apply are left out.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// RFC 3339, in UTC.
    pub time: String,
    pub event: What,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<u64>,
    /// The other end of the TCP connection.
    pub peer: SocketAddr,
    /// The client's address, where a trusted proxy says that it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<&'a str>,
    /// Whose certificate the client showed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<&'a str>,
    /// The subprotocol that was agreed, as `X-WS-Protocol-Version` has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_duration_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_interval_ms: Option<u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed<'a>>,
    /// Of a refused handshake: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// How a connection ended.
#[derive(Debug, Serialize)]
pub struct Closed<'a> {
    /// As in the metric `wsguard_server_closed_total`.
    pub cause: &'static str,
    /// The status code that ended it; 1005 and 1006 as RFC 6455, 7.1.5 has them: none came, and no
    /// close frame came at all.
    pub code: u16,
    pub reason: &'a str,
    pub duration_ms: f64,
    #[serde(flatten)]
    pub totals: Totals,
    /// Bytes that were not written any more.
    pub message_queue_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_rtt_ms: Option<f64>,
}

impl<'a> Closed<'a> {
    /// What the log says of a connection that lasted for `duration`, its handshake included.
    pub fn new(ended: &'a Ended, duration: Duration) -> Closed<'a> {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Closed {
            cause: ended.cause.name(),
            code: ended.code(),
            reason: ended.reason(),
            duration_ms: milliseconds(duration),
            totals: ended.totals,
            message_queue_size: ended.queued,
            heartbeat_rtt_ms: ended.round_trip.map(milliseconds),
        }
    }
}

/// Where lines go. Never waits.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: Option<(NonBlocking, ErrorCounter)>,
}

/// Writes out what waits when it is dropped.
pub struct Flush {
    _worker: Option<WorkerGuard>,
}

impl AccessLog {
    /// No log.
    pub fn none() -> AccessLog {
        AccessLog { writer: None }
    }

    /// Append to a file, or write to standard output where `path` is `-`.
    pub fn open(path: &Path) -> io::Result<(AccessLog, Flush)> {
        if path == Path::new("-") {
            return Ok(AccessLog::to(io::stdout()));
        }
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
        Ok(AccessLog::to(file))
    }

    /// Write to anything, on a thread of its own.
    pub fn to(writer: impl Write + Send + 'static) -> (AccessLog, Flush) {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING);
        let (writer, worker) = builder.thread_name("access-log").finish(writer);
        let lost = writer.error_counter();
        (AccessLog { writer: Some((writer, lost)) }, Flush { _worker: Some(worker) })
    }

    /// Whether lines go anywhere.
    pub fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    /// Write a line.
    pub fn write(&self, line: &Line<'_>) {
        let Some((writer, _)) = &self.writer else { return };
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        // It takes everything, or counts what it could not.
        let _ = writer.clone().write_all(&text);
    }

    /// Lines that were lost so far.
    pub fn lost(&self) -> usize {
        self.writer.as_ref().map_or(0, |(_, lost)| lost.dropped_lines())
    }
}

/// Now, as the log has it.
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
