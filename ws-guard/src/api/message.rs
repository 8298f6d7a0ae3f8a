//! Requests and answers of the control API that are no views of the guard.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::source::SourceState;

/// The process that answers on the socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    pub version: String,
    pub pid: u32,
    pub pin_dir: PathBuf,
}

/// Settings that a network has of its own; none of them to take them all away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForNetwork {
    pub cidr: String,
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Settings that a protected port has of its own; none of them to take them all away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForPort {
    pub port: u16,
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Release the source that an address belongs to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub source: String,
}

/// A network to exempt, or to exempt no more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    pub network: String,
}

/// What the daemon logs, as RUST_LOG has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    pub level: String,
}

/// Queries of `GET /v1/sources`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceQuery {
    pub state: Option<SourceState>,
}

/// Queries of `GET /v1/connections`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionQuery {
    /// Also those that ended more than a minute ago, as far as they are remembered.
    #[serde(default)]
    pub all: bool,
    /// Only so many: those that need a look come first, then the newest.
    #[serde(default)]
    pub first: Option<usize>,
}

/// Queries of `GET /v1/connections/ID/story`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoryQuery {
    /// Go on with events as they come, until the connection ends.
    #[serde(default)]
    pub follow: bool,
}

/// Publish to the subscribers of a topic.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    pub topic: String,
    /// Any JSON; it is handed on as it is.
    pub data: Box<serde_json::value::RawValue>,
    /// A second publication with the same key is not stored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub topic: String,
    /// Subscribers that it is known to reach, where the bus knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<usize>,
    /// The offset in the topic's history, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// It had been stored before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}
