//! Role of an interface, and the program for each of its hooks.
//!
//! | role | ingress | egress |
//! |---|---|---|
//! | uplink | clients' packets: XDP or TC | servers' packets: TC |
//! | pod | servers' packets: TC | clients' packets: TC |
use serde::{Deserialize, Serialize};
use ws_guard_common::{flow::owner, maps::program};

/// Role of an interface.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Clients' packets enter through it.
    #[default]
    Uplink,
    /// Host's side of a pod's veth pair: clients' packets leave through it.
    Pod,
}

/// Hook of an interface, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// Sender of the packets that a program inspects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Role {
    pub const ALL: [Role; 2] = [Role::Uplink, Role::Pod];

    /// Return the name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Uplink => "uplink",
            Role::Pod => "pod",
        }
    }

    /// Return the mark of flows that programs in this role follow.
    pub(super) const fn owner(self) -> u8 {
        match self {
            Role::Uplink => owner::UPLINK,
            Role::Pod => owner::POD,
        }
    }

    /// Return the direction in which a side's packets pass.
    pub(super) const fn direction(self, side: Side) -> Direction {
        match (self, side) {
            (Role::Uplink, Side::Client) | (Role::Pod, Side::Server) => Direction::Ingress,
            (Role::Uplink, Side::Server) | (Role::Pod, Side::Client) => Direction::Egress,
        }
    }

    /// Return the TC program for a hook.
    pub(super) const fn classifier(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Role::Uplink, Direction::Ingress) | (Role::Pod, Direction::Egress) => {
                program::TC_INGRESS
            }
            (Role::Uplink, Direction::Egress) | (Role::Pod, Direction::Ingress) => {
                program::TC_EGRESS
            }
        }
    }
}

impl Direction {
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    pub const fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    pub const fn pin_name(self) -> &'static str {
        match self {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        }
    }
}
