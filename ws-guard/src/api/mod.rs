//! Control API, server and client: HTTP and JSON over a unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/info` | [`Info`](message::Info): version and process |
//! | `GET /v1/status` | [`crate::domain::status::Status`] |
//! | `GET /v1/flows` | array of [`crate::domain::flow::FlowView`] |
//! | `GET /v1/sources[?state=ok\|throttled\|allowed]` | array of [`crate::domain::source::SourceView`] |
//! | `GET /v1/policy` | [`crate::domain::policy::PolicySettings`] |
//! | `PATCH /v1/policy` | some fields of it in, all of it out |
//! | `PATCH`, `DELETE /v1/policy/cidr` | [`ForNetwork`](message::ForNetwork) in, the whole policy out |
//! | `PATCH`, `DELETE /v1/policy/port` | [`ForPort`](message::ForPort) in, the whole policy out |
//! | `POST /v1/throttle` | [`Throttle`](crate::operator::throttling::Throttle) in, [`Decision`](crate::operator::throttling::Decision) out |
//! | `POST /v1/release` | [`Release`](message::Release) in, [`Decision`](crate::operator::throttling::Decision) out |
//! | `POST /v1/reports` | [`crate::operator::reports::Reports`] in, [`crate::operator::reports::Reported`] out |
//! | `GET`, `POST`, `DELETE /v1/allow` | [`Allow`](message::Allow) in, array of [`AllowView`](crate::domain::origin::AllowView) out |
//! | `GET`, `PUT /v1/log` | [`LogLevel`](message::LogLevel) in and out |
//! | `GET /v1/connections[?all=true]` | array of [`ws_guard_server::view::ConnectionView`] |
//! | `GET /v1/connections/ID` | [`ws_guard_server::view::ConnectionStory`] |
//! | `GET /v1/connections/ID/story[?follow=true]` | one line of JSON per event |
//! | `POST /v1/publish` | [`Publish`](message::Publish) in, [`Published`](message::Published) out |
//! | `GET /v1/events[?since=SEQ][&follow=true]…` | [`events::EventQuery`]; one line of JSON per event |
//!
//! Every error is an [`ErrorBody`](crate::operator::error::ErrorBody).

pub mod client;
pub mod companion;
pub mod events;
pub mod extract;
pub mod message;
pub mod routes;
pub mod socket;
