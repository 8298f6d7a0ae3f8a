//! Access log: a JSON line for each connection that opened, closed or was refused.

mod sink;

use std::{
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus::{
    IntCounter, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use serde::Serialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use tokio::signal::unix::{SignalKind, signal};

pub use self::sink::open;
use self::sink::{Sink, Target};
use super::{
    proxies::Caller,
    record::{Ended, Totals},
};
use crate::view::TcpView;

/// Maximum number of lines that wait to be written; more are lost and counted.
const WAITING: usize = 8192;

/// Event of a line.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Open,
    /// Error that ended a connection; its `Close` follows.
    Error,
    Close,
    Refused,
}

/// Line of the log; inapplicable fields are omitted.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// RFC 3339 time in UTC.
    pub time: String,
    pub event: What,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<u64>,
    /// Other end of the TCP connection.
    pub peer: SocketAddr,
    /// Client's address, where a trusted proxy states a different one.
    /// Where its statement cannot be used, this is the peer's end point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Caller>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<&'a str>,
    /// Name in the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<&'a str>,
    /// Agreed subprotocol, as in `X-WS-Protocol-Version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_duration_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_interval_ms: Option<u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed<'a>>,
    /// Reason of a refused handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

impl<'a> Line<'a> {
    /// Create an empty line; its time is set when it is written.
    pub fn new(event: What, peer: SocketAddr) -> Line<'a> {
        Line {
            time: String::new(),
            event,
            connection_id: None,
            peer,
            client: None,
            user_id: None,
            region: None,
            certificate: None,
            protocol_version: None,
            handshake_duration_ms: None,
            ping_interval_ms: None,
            closed: None,
            refused: None,
            status: None,
        }
    }
}

/// End of a connection.
#[derive(Debug, Serialize)]
pub struct Closed<'a> {
    /// Cause, as in the metric `wsguard_server_closed_total`.
    pub cause: &'static str,
    /// Status code that ended it; 1005 or 1006 without one (RFC 6455, 7.1.5).
    /// 1005: the close frame had no code; 1006: no close frame came.
    pub code: u16,
    pub reason: &'a str,
    pub duration_ms: f64,
    #[serde(flatten)]
    pub totals: Totals,
    /// Number of bytes left unwritten.
    pub message_queue_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_rtt_ms: Option<f64>,
    /// Last TCP state reported by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpView>,
}

impl<'a> Closed<'a> {
    /// Create the fields of a connection that lasted `duration`, handshake included.
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
            tcp: ended.tcp.map(|tcp| tcp.view()),
        }
    }
}

/// Destination of log lines; writing never waits.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: Option<(NonBlocking, ErrorCounter)>,
    target: Option<Arc<Target>>,
}

/// Guard that writes out waiting lines when dropped.
pub struct Flush {
    _worker: Option<WorkerGuard>,
}

impl AccessLog {
    /// Create a log that is off.
    pub fn none() -> AccessLog {
        AccessLog { writer: None, target: None }
    }

    /// Append to a file, or write to standard output where `path` is `-`.
    pub fn open(path: &Path) -> io::Result<(AccessLog, Flush)> {
        Target::open(path).map(AccessLog::with)
    }

    /// Write to a file that [`open`] has opened by this name.
    pub fn on(file: File, path: &Path) -> (AccessLog, Flush) {
        AccessLog::with(Target::on(file, path))
    }

    fn with((target, sink): (Arc<Target>, Sink)) -> (AccessLog, Flush) {
        let (log, flush) = AccessLog::to(sink);
        (AccessLog { target: Some(target), ..log }, flush)
    }

    /// Write to another file from the next line on.
    pub fn replace(&self, file: File) {
        if let Some(target) = &self.target {
            target.replace(file);
        }
    }

    /// Write to any writer, on a thread of its own.
    pub fn to(writer: impl Write + Send + 'static) -> (AccessLog, Flush) {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING);
        let (writer, worker) = builder.thread_name("access-log").finish(writer);
        let lost = writer.error_counter();
        (AccessLog { writer: Some((writer, lost)), target: None }, Flush { _worker: Some(worker) })
    }

    /// Check whether lines are written anywhere.
    pub fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    /// Write a line.
    pub fn write(&self, line: &Line<'_>) {
        let Some((writer, _)) = &self.writer else { return };
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        // It takes everything, or counts what it could not write.
        let _ = writer.clone().write_all(&text);
    }

    /// Reopen the file on each SIGHUP, as log rotation expects; for ever.
    pub async fn reopen_on_hangup(&self) {
        let (Some(target), Ok(mut hangup)) = (&self.target, signal(SignalKind::hangup())) else {
            return std::future::pending().await;
        };
        while hangup.recv().await.is_some() {
            let name = target.name();
            match target.reopen() {
                Ok(()) => tracing::info!("opened the access log {name} again"),
                Err(error) => {
                    tracing::warn!(
                        "cannot open the access log {name} again, the old file stays in use: {error}"
                    );
                }
            }
        }
    }

    /// Register the number of lost lines in `registry`.
    ///
    /// # Errors
    /// If the registry has that metric already.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let waiting = self.writer.as_ref().map(|(_, lost)| lost.clone());
        let target = self.target.clone();
        registry.register(Box::new(Lost { counter: lost_counter()?, waiting, target }))
    }
}

/// Number of lost lines, counted by the log's writer and read with each scrape.
struct Lost {
    counter: IntCounter,
    /// Lines lost because too many others were waiting.
    waiting: Option<ErrorCounter>,
    /// Lines lost because they could not be written.
    target: Option<Arc<Target>>,
}

fn lost_counter() -> prometheus::Result<IntCounter> {
    IntCounter::with_opts(Opts::new(
        "wsguard_server_access_log_lost_total",
        "Lines of the access log that were lost: what takes them was too slow, or could not.",
    ))
}

impl Collector for Lost {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // A counter of its own, so that two concurrent scrapes do not add up.
        let Ok(counter) = lost_counter() else { return Vec::new() };
        counter.inc_by(self.waiting.as_ref().map_or(0, |lines| lines.dropped_lines() as u64));
        counter.inc_by(self.target.as_ref().map_or(0, |target| target.lost()));
        counter.collect()
    }
}

/// Return the current time in the log's format.
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Disk that accepts nothing until the other end of the channel is dropped.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lost_lines_are_counted_without_waiting() {
        let (go, stuck) = channel();
        let (log, _flush) = AccessLog::to(Stuck(stuck));
        let registry = Registry::new();
        log.register(&registry).unwrap();
        let lost = || registry.gather()[0].get_metric()[0].get_counter().get_value();
        assert_eq!(lost(), 0.0);
        let peer = SocketAddr::from(([10, 0, 0, 1], 1));
        let line = Line::new(What::Refused, peer);
        for _ in 0..WAITING + 100 {
            log.write(&line);
        }
        // One or none has reached the writer already.
        assert!((99.0..=100.0).contains(&lost()), "{}", lost());
        drop(go);
    }
}
