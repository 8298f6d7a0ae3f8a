//! The layout of everything that crosses between kernel and user space: map names, keys, values,
//! counters, events, and the requests of the control program.
//!
//! All types are `repr(C)`, have no padding that is not named, and their sizes are asserted: a
//! pinned map outlives the daemon that made it. Change one, and raise [`SCHEMA_VERSION`].
//!
//! Addresses and ports are in network byte order, as in the packet; all other numbers in the
//! machine's.

mod client;
mod counter;
mod event;
mod key;
mod pending;
mod policy;
mod request;
mod shared;

pub use self::{
    client::*, counter::*, event::*, key::*, pending::*, policy::*, request::*, shared::*,
};

use crate::{flow::Flow, source::Source};

/// Version of the layouts, kept in the pin directory.
pub const SCHEMA_VERSION: u32 = 8;

/// Names of the maps, as in the object and in the pin directory.
pub mod name {
    /// Hash: [`super::FlowKey`] → [`super::Flow`], connections whose handshake the server answered.
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash: [`super::FlowKey`] → [`super::Pending`], requests without an answer yet.
    pub const PENDING: &str = "PENDING";
    /// LRU hash: [`super::FlowKey`] → [`super::Pending`], the same of connections that the server has
    /// spoken on.
    pub const PROVEN: &str = "PROVEN";
    /// LRU hash: [`super::FlowKey`] → [`super::Stranger`], connections that a server speaks on and
    /// nobody saw begin.
    pub const STRANGERS: &str = "STRANGERS";
    /// Array of [`crate::trail::TRAILS`] [`crate::trail::Trail`]: where each frame begins that the server
    /// has not acknowledged.
    pub const TRAILS: &str = "TRAILS";
    /// Array of [`crate::held::SLOTS`] [`crate::held::Held`]: copies of what came behind a gap.
    pub const HELD: &str = "HELD";
    /// Hash: [`super::SourceKey`] → [`super::Source`], who has sent a ping.
    pub const SOURCES: &str = "SOURCES";
    /// Hash: [`super::SourceKey`] of a coarser prefix → [`super::Source`], sources that [`SOURCES`] has
    /// no room for.
    pub const COARSE: &str = "COARSE";
    /// LPM trie: prefix of a [`super::Network`] → [`super::Rule`].
    pub const RULES: &str = "RULES";
    /// LPM trie: prefix of a [`super::Network`] → 1, the trusted proxies.
    pub const PROXIES: &str = "PROXIES";
    /// Array of two [`crate::forwarded::names::HeaderNames`]: which headers name a request's client.
    pub const HEADERS: &str = "HEADERS";
    /// LRU hash: [`super::Address`] → [`super::Suspect`], untrusted peers whose requests carry
    /// forwarding headers.
    pub const SUSPECTS: &str = "SUSPECTS";
    /// LRU hash: [`super::FlowKey`] → [`super::Beginning`], where connections begin.
    pub const BEGINNINGS: &str = "BEGINNINGS";
    /// Array of two sets of [`super::SCOPES`] [`super::Policy`]: the set in force, and the one being
    /// written.
    pub const POLICY: &str = "POLICY";
    /// Array of one `u32`: which set of [`POLICY`] and which of [`PORTS`] is in force.
    pub const ACTIVE: &str = "ACTIVE";
    /// Array of two [`super::Ports`]: which ports are protected, and under which policy.
    pub const PORTS: &str = "PORTS";
    /// Array of one [`super::Shared`]: what all CPUs have to know.
    pub const SHARED: &str = "SHARED";
    /// Per-CPU array of one [`super::Counters`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";
}

/// Names of the programs in the object.
pub mod program {
    /// XDP, client side.
    pub const XDP_INGRESS: &str = "ws_guard_xdp";
    /// TC, client side: where XDP's slot is taken or XDP is not to be had.
    pub const TC_INGRESS: &str = "ws_guard_in";
    /// TC, server side.
    pub const TC_EGRESS: &str = "ws_guard_out";
    /// Run by the daemon with a [`super::Request`] as its packet, never attached: what changes a
    /// source has to take the source's lock.
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
    assert!(size_of::<Pending>() == 264);
    assert!(size_of::<Suspect>() == 40);
    assert!(size_of::<Stranger>() == 16);
    assert!(size_of::<Ports>() == 65_536);
};
