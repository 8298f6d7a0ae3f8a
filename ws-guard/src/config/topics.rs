//! Rows `[[server.topic]]` of the file: topics with a history, and queues.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use ws_guard_server::topics::rules::{History, Kind, Pattern, Queueing, Rule};

/// Row as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Written {
    r#match: String,
    #[serde(default)]
    kind: Word,
    history: Option<usize>,
    history_bytes: Option<usize>,
    ttl: Option<String>,
    #[serde(default)]
    restricted: bool,
    entries: Option<usize>,
    prefetch: Option<usize>,
    ack_timeout: Option<String>,
    max_deliveries: Option<u32>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    #[default]
    Broadcast,
    Queue,
}

/// Limit of the publications in a topic's history.
const MOST: usize = 100_000;
/// Default limit of their bytes.
const BYTES: usize = 16 << 20;
const TTL: Duration = Duration::from_secs(300);
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// Check a row and return its rule; the error describes the problem.
pub(super) fn check(written: &Written) -> Result<Arc<Rule>, String> {
    let kind = match written.kind {
        Word::Queue => Kind::Queue(queueing(written)?),
        Word::Broadcast => broadcast(written)?,
    };
    let pattern = Pattern::new(&written.r#match)?;
    Ok(Arc::new(Rule { pattern, kind, restricted: written.restricted }))
}

fn broadcast(written: &Written) -> Result<Kind, String> {
    for (name, given) in [
        ("entries", written.entries.is_some()),
        ("prefetch", written.prefetch.is_some()),
        ("ack-timeout", written.ack_timeout.is_some()),
        ("max-deliveries", written.max_deliveries.is_some()),
    ] {
        if given {
            return Err(format!("{name} is for queues: add kind = \"queue\", or remove it"));
        }
    }
    let messages = written.history.unwrap_or(0);
    if messages == 0 {
        if written.ttl.is_some() || written.history_bytes.is_some() {
            return Err("ttl and history-bytes are of a history: add history".into());
        }
        return Ok(Kind::Live);
    }
    let messages = within("history", messages, MOST)?;
    let bytes = within("history-bytes", written.history_bytes.unwrap_or(BYTES), usize::MAX)?;
    Ok(Kind::History(History { messages, bytes, age: time("ttl", written.ttl.as_deref(), TTL)? }))
}

fn queueing(written: &Written) -> Result<Queueing, String> {
    if written.history.is_some() || written.history_bytes.is_some() || written.ttl.is_some() {
        return Err("a queue has no history: remove history, history-bytes and ttl".into());
    }
    let ack = written.ack_timeout.as_deref();
    let deliveries = written.max_deliveries.unwrap_or(5);
    Ok(Queueing {
        entries: within("entries", written.entries.unwrap_or(10_000), 10_000_000)?,
        prefetch: within("prefetch", written.prefetch.unwrap_or(16), 1024)?,
        ack_timeout: time("ack-timeout", ack, Duration::from_secs(30))?,
        max_deliveries: within("max-deliveries", deliveries as usize, 1000)? as u32,
    })
}

fn within(name: &str, value: usize, most: usize) -> Result<usize, String> {
    if value == 0 || value > most {
        return Err(format!("{name}: {value} is not from 1 to {most}: correct it"));
    }
    Ok(value)
}

fn time(name: &str, text: Option<&str>, default: Duration) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(default) };
    let time = humantime::parse_duration(text).map_err(|error| format!("{name}: {error}"))?;
    if time < Duration::from_millis(100) || time > LONGEST {
        return Err(format!("{name}: {text} is not from 100ms to 7d: correct it"));
    }
    Ok(time)
}
