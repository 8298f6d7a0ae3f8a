//! What clients and server say to each other: JSON in text messages.
//!
//! | client | server answers |
//! |---|---|
//! | `{"type":"subscribe","topic":T}` | `{"type":"subscribed","topic":T}` |
//! | `{"type":"unsubscribe","topic":T}` | `{"type":"unsubscribed","topic":T}` |
//! | `{"type":"publish","topic":T,"data":any JSON but null}` | `{"type":"published","topic":T,"subscribers":N}` |
//! | anything else | `{"type":"error","error":…,"remedy":…}` |
//!
//! A request may carry a number as `id`, and its answer carries the same. By itself the server sends
//! `{"type":"message","topic":T,"data":…}`, and `{"type":"missed","count":N}` where publications were
//! lost because the client read too slowly.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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
            let error = "this is no name of a topic".into();
            let remedy = "a name has 1 to 128 bytes, and no control characters";
            return Err(Problem { error, remedy });
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
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Subscribe,
    Unsubscribe,
    Publish,
}

impl Verb {
    /// What the answer calls it.
    const fn done(self) -> &'static str {
        match self {
            Verb::Subscribe => "subscribed",
            Verb::Unsubscribe => "unsubscribed",
            Verb::Publish => "published",
        }
    }
}

/// A request of a client.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request<'a> {
    #[serde(rename = "type")]
    pub verb: Verb,
    #[serde(borrow)]
    pub topic: Cow<'a, str>,
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
    #[serde(default)]
    pub id: Option<u64>,
}

impl<'a> Request<'a> {
    /// Read a text message.
    pub fn parse(text: &'a [u8]) -> Result<Request<'a>, Problem> {
        serde_json::from_slice(text).map_err(|error| Problem {
            error: format!("this is no request: {error}"),
            remedy: "send {\"type\":\"subscribe\"|\"unsubscribe\"|\"publish\",\"topic\":…,\"data\":…}",
        })
    }
}

/// An answer, or something the server says by itself.
#[derive(Default, Serialize)]
struct Said<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscribers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

impl Said<'_> {
    fn text(&self) -> Bytes {
        // Strings and numbers: nothing that JSON cannot hold.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// The answer to a request that was done.
pub fn done(verb: Verb, topic: &Topic, subscribers: Option<usize>, id: Option<u64>) -> Bytes {
    Said { r#type: verb.done(), topic: Some(&topic.0), subscribers, id, ..Said::default() }.text()
}

/// The answer to one that was not.
pub fn failed(problem: &Problem, id: Option<u64>) -> Bytes {
    let (error, remedy) = (Some(&*problem.error), Some(problem.remedy));
    Said { r#type: "error", error, remedy, id, ..Said::default() }.text()
}

/// A publication, as its subscribers get it.
pub fn message(topic: &Topic, data: &RawValue) -> Bytes {
    Said { r#type: "message", topic: Some(&topic.0), data: Some(data), ..Said::default() }.text()
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
        let message = message(&topic, request.data.unwrap());
        assert_eq!(message, r#"{"type":"message","topic":"café","data":{"n": 1.50, "b":[ ]}}"#);
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
