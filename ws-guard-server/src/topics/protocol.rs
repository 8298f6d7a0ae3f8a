//! What clients and server say to each other: JSON in text messages. `docs/messaging.md` has all of it.
//!
//! A request may carry a number as `id`, and its answer carries the same.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    bus::{BusError, Stored},
    exchange::Placed,
    log::Position,
};

/// Longest name of a topic, in bytes.
const LONGEST: usize = 128;

/// The name of a topic: 1 to 128 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Check a name.
    pub fn new(name: &str) -> Result<Topic, Problem> {
        let bad = name.is_empty() || name.len() > LONGEST || name.chars().any(char::is_control);
        if bad {
            let remedy = "a name has 1 to 128 bytes, and no control characters";
            return Err(Problem::new(400, "this is no name of a topic", remedy));
        }
        Ok(Topic(name.into()))
    }

    pub fn name(&self) -> Arc<str> {
        self.0.clone()
    }
}

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub error: String,
    pub remedy: &'static str,
    /// As of HTTP.
    pub status: u16,
    pub retry_after: Option<Duration>,
}

impl Problem {
    pub fn new(status: u16, error: impl Into<String>, remedy: &'static str) -> Problem {
        Problem { error: error.into(), remedy, status, retry_after: None }
    }
}

impl From<BusError> for Problem {
    fn from(error: BusError) -> Problem {
        let problem = Problem::new(503, error.to_string(), "try again later");
        Problem { retry_after: Some(BusError::RETRY_AFTER), ..problem }
    }
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Subscribe,
    Unsubscribe,
    Publish,
    Ack,
    Heartbeat,
}

/// A position as a client says it.
#[derive(Debug, Deserialize)]
pub struct Since<'a> {
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    offset: u64,
}

impl Since<'_> {
    /// The position that it names; one that was never any where the epoch is none.
    pub fn position(&self) -> Position {
        parse_epoch(&self.epoch, self.offset).unwrap_or_default()
    }
}

/// A request of a client.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request<'a> {
    #[serde(rename = "type")]
    pub verb: Verb,
    /// Empty for a heartbeat.
    #[serde(borrow, default)]
    pub topic: Cow<'a, str>,
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub since: Option<Since<'a>>,
    #[serde(borrow, default)]
    pub key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub entry: Option<Cow<'a, str>>,
    #[serde(default)]
    pub resume: bool,
    #[serde(default)]
    pub id: Option<u64>,
}

/// Longest key of a publication, in bytes.
const LONGEST_KEY: usize = 64;

impl<'a> Request<'a> {
    /// Read a text message.
    pub fn parse(text: &'a [u8]) -> Result<Request<'a>, Problem> {
        let unreadable = |error: String| {
            Problem::new(
                400,
                format!("this is no request: {error}"),
                "send {\"type\":\"subscribe\"|\"unsubscribe\"|\"publish\",\"topic\":…,\"data\":…}",
            )
        };
        let request: Request<'a> =
            serde_json::from_slice(text).map_err(|error| unreadable(error.to_string()))?;
        if request.topic.is_empty() && request.verb != Verb::Heartbeat {
            return Err(Problem::new(
                400,
                "this is no request: it names no topic",
                "a name has 1 to 128 bytes, and no control characters",
            ));
        }
        if request.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > LONGEST_KEY) {
            return Err(Problem::new(400, "this is no key", "a key has 1 to 64 bytes"));
        }
        Ok(request)
    }
}

fn epoch(position: Position) -> String {
    format!("{:x}", position.epoch)
}

fn parse_epoch(epoch: &str, offset: u64) -> Option<Position> {
    Some(Position { epoch: u64::from_str_radix(epoch, 16).ok()?, offset })
}

/// An entry of a queue topic, as clients are told it.
pub fn entry(position: Position) -> String {
    format!("{:x}-{}", position.epoch, position.offset)
}

/// The position of an entry that a client names.
pub fn parse_entry(text: &str) -> Option<Position> {
    let (epoch, offset) = text.split_once('-')?;
    parse_epoch(epoch, offset.parse().ok()?)
}

/// An answer, or something the server says by itself.
#[derive(Default, Serialize)]
struct Said<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscribers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topics: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// With a heartbeat that asks for a token: the token, or null.
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

impl<'a> Said<'a> {
    fn of(r#type: &'static str, topic: &'a str) -> Said<'a> {
        Said { r#type, topic: Some(topic), ..Said::default() }
    }

    fn at(self, position: Option<Position>) -> Said<'a> {
        let offset = position.map(|position| position.offset);
        Said { epoch: position.map(epoch), offset, ..self }
    }

    fn text(&self) -> Bytes {
        // Strings and numbers: nothing that JSON cannot hold.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// A subscription began, at a position where the topic has any.
pub fn subscribed(topic: &str, placed: Option<Placed>, id: Option<u64>) -> Bytes {
    let said = Said::of("subscribed", topic).at(placed.map(|placed| placed.position));
    Said { recovered: placed.and_then(|placed| placed.recovered), id, ..said }.text()
}

/// The same where a position was asked for and the topic has none.
pub fn subscribed_live(topic: &str, since: bool, id: Option<u64>) -> Bytes {
    let recovered = since.then_some(false);
    Said { recovered, id, ..Said::of("subscribed", topic) }.text()
}

/// A subscription ended.
pub fn unsubscribed(topic: &str, id: Option<u64>) -> Bytes {
    Said { id, ..Said::of("unsubscribed", topic) }.text()
}

/// The answer to a publication.
pub fn published(topic: &str, stored: Result<Stored, BusError>, id: Option<u64>) -> Bytes {
    match stored {
        Ok(stored) => {
            let said = Said::of("published", topic).at(stored.position);
            let repeated = stored.repeated.then_some(true);
            Said { subscribers: stored.reached, repeated, id, ..said }.text()
        }
        Err(error) => failed(&error.into(), id),
    }
}

/// The answer to an acknowledgement.
pub fn acked(topic: &str, entry: &str, done: Result<bool, BusError>, id: Option<u64>) -> Bytes {
    match done {
        Ok(true) => Said { entry: Some(entry), id, ..Said::of("acked", topic) }.text(),
        Ok(false) => {
            let remedy = "it was delivered to another, or acknowledged before: do nothing";
            failed(&Problem::new(409, "this entry is not this connection's", remedy), id)
        }
        Err(error) => failed(&error.into(), id),
    }
}

/// The answer to a heartbeat; `resume` where a token was asked for, and could be made.
pub fn heartbeat(resume: Option<Option<&str>>, expires_in: Duration, id: Option<u64>) -> Bytes {
    let expires_in = resume.flatten().map(|_| expires_in.as_secs());
    Said { r#type: "heartbeat", resume, expires_in, id, ..Said::default() }.text()
}

/// What became of a resume token: its topics, or what is wrong with it.
pub fn resumed(topics: Result<usize, &str>) -> Bytes {
    let (ok, error) = (Some(topics.is_ok()), topics.err());
    Said { r#type: "resumed", ok, topics: topics.ok(), error, ..Said::default() }.text()
}

/// The answer to a request that was not done.
pub fn failed(problem: &Problem, id: Option<u64>) -> Bytes {
    let (error, remedy) = (Some(&*problem.error), Some(problem.remedy));
    let retry_after_ms = problem.retry_after.map(|after| after.as_millis() as u64);
    let status = Some(problem.status);
    Said { r#type: "error", error, remedy, status, retry_after_ms, id, ..Said::default() }.text()
}

/// JSON that was checked when it came.
fn raw(data: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(data).ok()
}

/// A publication, as its subscribers get it.
pub fn message(topic: &str, position: Option<Position>, data: &[u8]) -> Bytes {
    Said { data: raw(data), ..Said::of("message", topic).at(position) }.text()
}

/// An entry of a queue topic, as its subscriber gets it.
pub fn queued(topic: &str, position: Position, deliveries: u64, data: &[u8]) -> Bytes {
    let (name, deliveries) = (entry(position), Some(deliveries));
    Said { data: raw(data), entry: Some(&name), deliveries, ..Said::of("message", topic) }.text()
}

/// Publications are lost here.
pub fn missed(count: u64) -> Bytes {
    Said { r#type: "missed", count: Some(count), ..Said::default() }.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_through_as_it_came() {
        let text = r#"{"type":"publish","topic":"caf\u00e9","data": {"n": 1.50, "b":[ ]},"id":7}"#;
        let request = Request::parse(text.as_bytes()).unwrap();
        assert_eq!((request.verb, &*request.topic, request.id), (Verb::Publish, "café", Some(7)));
        let topic = Topic::new(&request.topic).unwrap();
        let data = request.data.unwrap().get().as_bytes();
        let message = message(&topic.name(), None, data);
        assert_eq!(message, r#"{"type":"message","topic":"café","data":{"n": 1.50, "b":[ ]}}"#);
    }

    #[test]
    fn positions_are_said_and_read_alike() {
        let position = Position { epoch: 0xab, offset: 7 };
        assert_eq!(
            message("t", Some(position), b"[1]"),
            r#"{"type":"message","topic":"t","epoch":"ab","offset":7,"data":[1]}"#
        );
        let text = r#"{"type":"subscribe","topic":"t","since":{"epoch":"ab","offset":7}}"#;
        let since = Request::parse(text.as_bytes()).unwrap().since.unwrap();
        assert_eq!(since.position(), position);
        assert_eq!(parse_entry(&entry(position)), Some(position));
        assert_eq!((parse_entry("ab"), parse_entry("x-1")), (None, None));
    }

    #[test]
    fn what_is_no_request_is_said_so() {
        for text in [
            "",
            "7",
            r#"{"type":"subscribe"}"#,
            r#"{"type":"shout","topic":"a"}"#,
            r#"{"type":"subscribe","topic":"a","more":1}"#,
            r#"{"type":"subscribe","topic":7}"#,
        ] {
            let problem = Request::parse(text.as_bytes()).unwrap_err();
            let answer = failed(&problem, None);
            assert!(answer.starts_with(b"{\"type\":\"error\",\"error\":\"this is no request"));
        }
        for name in ["", "a\nb", &"x".repeat(129)] {
            assert!(Topic::new(name).is_err(), "{name:?}");
        }
    }
}
