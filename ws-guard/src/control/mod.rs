//! The control API: HTTP and JSON over a unix socket, and what both its ends share.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/info` | [`Info`]: who answers |
//! | `GET /v1/status` | [`crate::domain::status::Status`] |
//! | `GET /v1/flows` | array of [`crate::domain::flow::FlowView`] |
//! | `GET /v1/sources[?state=ok\|throttled\|allowed]` | array of [`crate::domain::source::SourceView`] |
//! | `GET /v1/policy` | [`crate::domain::policy::PolicySettings`] |
//! | `PATCH /v1/policy` | some fields of it in, the whole of it out |
//! | `PATCH`, `DELETE /v1/policy/cidr` | [`ForNetwork`] in, the whole policy out |
//! | `PATCH`, `DELETE /v1/policy/port` | [`ForPort`] in, the whole policy out |
//! | `POST /v1/throttle` | [`Throttle`] in, [`Decision`] out |
//! | `POST /v1/release` | [`Release`] in, [`Decision`] out |
//! | `POST /v1/reports` | [`reports::Reports`] in, [`reports::Reported`] out |
//! | `GET`, `POST`, `DELETE /v1/allow` | [`Allow`] in, array of [`AllowView`] out |
//! | `GET /v1/connections[?all=true]` | array of [`ws_guard_server::view::ConnectionView`] |
//! | `GET /v1/connections/ID` | [`ws_guard_server::view::ConnectionStory`] |
//! | `GET /v1/connections/ID/story[?follow=true]` | a line of JSON an event |
//! | `POST /v1/publish` | [`Publish`] in, [`Published`] out |
//! | `GET /v1/events[?since=SEQ][&follow=true]` | a line of JSON an event |
//!
//! Every error is an [`ErrorBody`].

pub mod client;
pub mod companion;
pub mod error;
pub mod kept;
pub mod networks;
pub mod operator;
pub mod reader;
pub mod regroup;
pub mod reports;
pub mod routes;
pub mod socket;
pub mod throttling;

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

/// Throttle the source that an address belongs to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    pub source: String,
    /// For how long; until it is released when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// What it leads to; the policy's action for its connections over their share when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ThrottleAction>,
    /// Also where a ban hits others.
    #[serde(default)]
    pub force: bool,
}

/// Action of throttling a source by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ThrottleAction {
    /// Drop everything of the source, new connections too
    Ban,
}

/// Release the source that an address belongs to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub source: String,
}

/// Result of an operator's decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// The source, which may be wider than the address that was named.
    pub source: String,
    pub state: SourceState,
    pub banned: bool,
    pub throttled_until: Option<crate::domain::clock::Timestamp>,
}

/// A network to exempt, or to exempt no more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    pub network: String,
}

/// An entry of the allowlist.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllowView {
    pub network: String,
    pub origin: Origin,
}

/// Origin of an entry of the allowlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration: gone when it no longer names it.
    Config,
    /// An operator: stays until it is removed.
    Runtime,
}

/// Queries of `GET /v1/sources`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceQuery {
    pub state: Option<SourceState>,
}

/// Queries of `GET /v1/events`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only events with a higher `seq`.
    #[serde(default)]
    pub since: u64,
    /// Go on with events as they come.
    #[serde(default)]
    pub follow: bool,
}

/// Queries of `GET /v1/connections`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionQuery {
    /// Also those that ended more than a minute ago, as far as they are remembered.
    #[serde(default)]
    pub all: bool,
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
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub topic: String,
    /// Subscribers that it is known to reach.
    pub subscribers: usize,
}

/// Any error of the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, with the value that is.
    pub error: String,
    /// What would put it right.
    pub remedy: String,
}
