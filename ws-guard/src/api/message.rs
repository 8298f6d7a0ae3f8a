//! Requests and answers of the control API, except views of the guard.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::source::SourceState;

/// Process that answers on the socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    pub version: String,
    pub pid: u32,
    pub pin_dir: PathBuf,
}

/// Own settings of a network; without any, the network's settings are removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForNetwork {
    pub cidr: String,
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Own settings of a protected port; without any, the port's settings are removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForPort {
    pub port: u16,
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Release of the source of an address.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub source: String,
}

/// Network to add to the allowlist, or to remove from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    pub network: String,
}

/// Log filter, in the syntax of RUST_LOG.
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
    /// Also list those that ended over a minute ago, as far as they are remembered.
    #[serde(default)]
    pub all: bool,
    /// Limit of the listing: those that need attention first, then the newest.
    #[serde(default)]
    pub first: Option<usize>,
}

/// Queries of `GET /v1/connections/ID/story`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoryQuery {
    /// Follow: send further events as they occur, until the connection ends.
    #[serde(default)]
    pub follow: bool,
}

/// Publication to the subscribers of a topic.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    pub topic: String,
    /// Any JSON, passed on unchanged.
    pub data: Box<serde_json::value::RawValue>,
    /// Idempotency key: a second publication with the same key is not stored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Result of a publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub topic: String,
    /// Subscribers known to be reached, where the bus knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<usize>,
    /// Offset in the topic's history, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The publication had been stored before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}
