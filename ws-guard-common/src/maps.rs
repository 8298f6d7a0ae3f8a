//! Layout of all data shared by kernel and user space: map names, keys, values, counters, events,
//! and the requests of the control program.
//!
//! All types are `repr(C)` without unnamed padding, and their sizes are asserted: a pinned map
//! outlives the daemon that made it. A change of a layout raises [`SCHEMA_VERSION`].
//!
//! Addresses and ports are in network byte order, as in the packet; all other numbers in host
//! order.

mod client;
mod counter;
mod event;
mod key;
mod midstream;
mod pending;
mod policy;
mod request;
mod server;
mod shared;
mod suspect;
pub mod syns;
mod unopened;

pub use self::syns::{SYNS, Syn};
pub use self::{
    client::*, counter::*, event::*, key::*, midstream::*, pending::*, policy::*, request::*,
    server::*, shared::*, suspect::*, unopened::*,
};

use crate::{flow::Flow, source::Source};

/// Version of the layouts, kept in the pin directory.
pub const SCHEMA_VERSION: u32 = 15;

/// Names of the maps, as in the object and in the pin directory.
pub mod name {
    /// Hash: [`super::FlowKey`] → [`super::Flow`], connections whose handshake the server answered.
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash: [`super::FlowKey`] → [`super::Pending`], requests without an answer yet.
    pub const PENDING: &str = "PENDING";
    /// LRU hash: [`super::FlowKey`] → [`super::Pending`], the same for connections on which the
    /// server has sent something.
    pub const PROVEN: &str = "PROVEN";
    /// LRU hash: [`super::FlowKey`] → [`super::Midstream`], candidates for midstream pickup: the
    /// server sends data on them, and their beginning was not seen.
    pub const MIDSTREAM: &str = "MIDSTREAM";
    /// Array of [`crate::trail::TRAILS`] [`crate::trail::Trail`]: positions of unacknowledged
    /// frames.
    pub const TRAILS: &str = "TRAILS";
    /// Array of [`crate::out_of_order::SLOTS`] [`crate::out_of_order::Held`]: copies of out-of-order segments.
    pub const HELD: &str = "HELD";
    /// Array of [`crate::pages::ALL`] [`crate::pages::Page`]: their bytes.
    pub const PAGES: &str = "PAGES";
    /// Hash: [`super::SourceKey`] → [`super::Source`], sources that have sent pings.
    pub const SOURCES: &str = "SOURCES";
    /// Hash: [`super::SourceKey`] of a coarser prefix → [`super::Source`], sources that [`SOURCES`] has
    /// no room for.
    pub const COARSE: &str = "COARSE";
    /// LPM trie: prefix of a [`super::Network`] → [`super::Rule`].
    pub const RULES: &str = "RULES";
    /// LPM trie: prefix of a [`super::Network`] → 1, the trusted proxies.
    pub const PROXIES: &str = "PROXIES";
    /// Array of two [`crate::forwarded::names::HeaderNames`]: the headers that name a request's
    /// client.
    pub const HEADERS: &str = "HEADERS";
    /// LRU hash: [`super::Address`] → [`super::Suspect`], untrusted peers whose requests carry
    /// forwarding headers.
    pub const SUSPECTS: &str = "SUSPECTS";
    /// LRU hash: [`super::FlowKey`] → [`super::Unopened`], connections since their SYN-ACK.
    pub const BEGINNINGS: &str = "BEGINNINGS";
    /// Array of [`super::Syn`]: the latest SYNs, by [`super::syns::syn_pair`].
    pub const SYNS: &str = "SYNS";
    /// Array of two sets of [`super::SCOPES`] [`super::Policy`]: the set in force, and the one being
    /// written.
    pub const POLICY: &str = "POLICY";
    /// Array of one `u32`: which set of [`POLICY`] and which of [`PORTS`] is in force.
    pub const ACTIVE: &str = "ACTIVE";
    /// Array of two [`super::Ports`]: which ports are protected, and under which policy.
    pub const PORTS: &str = "PORTS";
    /// Array of one [`super::Shared`]: state shared by all CPUs.
    pub const SHARED: &str = "SHARED";
    /// Per-CPU array of one [`super::Counters`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU hash: [`super::ServerKey`] → [`super::Server`], figures of up to [`super::SERVERS`] servers.
    pub const SERVERS: &str = "SERVERS";
    /// LRU hash: [`super::FlowKey`] → [`crate::heartbeat::Heartbeats`], pings that wait for their pongs.
    /// Changed by one CPU at a time: [`crate::heartbeat::Heartbeats::busy`].
    pub const HEARTBEATS: &str = "HEARTBEATS";
    /// Per-CPU array of one [`super::Server`]: figures of all other servers together.
    pub const OTHERS: &str = "OTHERS";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";
}

/// Names of the programs in the object.
pub mod program {
    /// XDP, client side.
    pub const XDP_INGRESS: &str = "ws_guard_xdp";
    /// TC, client side: where XDP's slot is taken or XDP is not available.
    pub const TC_INGRESS: &str = "ws_guard_in";
    /// TC, server side.
    pub const TC_EGRESS: &str = "ws_guard_out";
    /// Run by the daemon with a [`super::Request`] as its packet, never attached: changes to a
    /// source need its lock, which user space cannot take.
    pub const CONTROL: &str = "ws_guard_control";
}

const _: () = {
    assert!(size_of::<FlowKey>() == 36 && align_of::<FlowKey>() == 4);
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<Client>() == 20);
    assert!(size_of::<Account>() == 40);
    assert!(size_of::<Network>() == 20);
    assert!(size_of::<Policy>() == 164);
    assert!(size_of::<Rule>() == 32);
    assert!(size_of::<Flow>() == 1000);
    assert!(size_of::<Source>() == 384);
    assert!(size_of::<Event>() == 80);
    assert!(size_of::<Request>() == 40);
    assert!(size_of::<Pending>() == 552);
    assert!(size_of::<Suspect>() == 40);
    assert!(size_of::<Midstream>() == 16);
    assert!(size_of::<Ports>() == 65_536);
    assert!(size_of::<crate::heartbeat::Heartbeats>() == 40);
    assert!(size_of::<ServerKey>() == 20);
    assert!(size_of::<Server>() == 640);
};
