//! The access log: a line of JSON for each connection that opened, closed or was refused.

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
    /// The client's address, where a trusted proxy says that it is another; the peer's end point,
    /// where what it says cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Caller>,
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

impl<'a> Line<'a> {
    /// A line with nothing in it yet; its time is set when it is written.
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
    /// What the kernel said of its TCP last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpView>,
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
            tcp: ended.tcp.map(|tcp| tcp.view()),
        }
    }
}

/// Where lines go. Never waits.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: Option<(NonBlocking, ErrorCounter)>,
    target: Option<Arc<Target>>,
}

/// Writes out what waits when it is dropped.
pub struct Flush {
    _worker: Option<WorkerGuard>,
}

impl AccessLog {
    /// No log.
    pub fn none() -> AccessLog {
        AccessLog { writer: None, target: None }
    }

    /// Append to a file, or write to standard output where `path` is `-`.
    pub fn open(path: &Path) -> io::Result<(AccessLog, Flush)> {
        Target::open(path).map(AccessLog::with)
    }

    /// Write to what [`open`] opened by this name.
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

    /// Write to anything, on a thread of its own.
    pub fn to(writer: impl Write + Send + 'static) -> (AccessLog, Flush) {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING);
        let (writer, worker) = builder.thread_name("access-log").finish(writer);
        let lost = writer.error_counter();
        (AccessLog { writer: Some((writer, lost)), target: None }, Flush { _worker: Some(worker) })
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

    /// Open the file again on each SIGHUP, as whoever renames full logs expects; for ever.
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

    /// Show in `registry` how many lines were lost.
    ///
    /// # Errors
    /// Where the registry has that metric already.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let waiting = self.writer.as_ref().map(|(_, lost)| lost.clone());
        let target = self.target.clone();
        registry.register(Box::new(Lost { counter: lost_counter()?, waiting, target }))
    }
}

/// What was lost, counted by the log's writer and read with each scrape.
struct Lost {
    counter: IntCounter,
    /// Those that found too many others waiting.
    waiting: Option<ErrorCounter>,
    /// Those that could not be written.
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
        // One of its own, so that two scrapes at once do not add up.
        let Ok(counter) = lost_counter() else { return Vec::new() };
        counter.inc_by(self.waiting.as_ref().map_or(0, |lines| lines.dropped_lines() as u64));
        counter.inc_by(self.target.as_ref().map_or(0, |target| target.lost()));
        counter.collect()
    }
}

/// Now, as the log has it.
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A disk that takes nothing until the other end of the channel goes.
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
        // One or none is with the writer already.
        assert!((99.0..=100.0).contains(&lost()), "{}", lost());
        drop(go);
    }
}
