//! Cluster of the scenarios: the test's own, or a given one.
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};
use ws_guard_testkit::netns::{Family, Namespace};

use super::{
    given::Given,
    node::{self, Node},
};

pub enum Cluster {
    Own(Node),
    Given(Given),
}

impl Cluster {
    /// Return the test's own node, for work that is possible only there.
    pub fn own(&mut self) -> Option<&mut Node> {
        match self {
            Cluster::Own(node) => Some(node),
            Cluster::Given(_) => None,
        }
    }

    /// Return the file that names it, where the environment does not.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        match self {
            Cluster::Own(node) => Some(node.kubeconfig()),
            Cluster::Given(_) => None,
        }
    }

    pub fn kubectl(&self) -> Command {
        match self {
            Cluster::Own(node) => node.kubectl(),
            Cluster::Given(_) => Command::new("kubectl"),
        }
    }

    /// Return a command that reaches the API server.
    pub fn command(&self, program: &str) -> Command {
        match self {
            Cluster::Own(node) => node.inside().command(program),
            Cluster::Given(_) => Command::new(program),
        }
    }

    /// Return the node that everything is done on.
    pub fn node(&self) -> &str {
        match self {
            Cluster::Own(_) => node::NAME,
            Cluster::Given(given) => given.node().0,
        }
    }

    /// Return the address of a port of that node, from outside.
    pub fn port(&self, port: u16) -> SocketAddr {
        match self {
            Cluster::Own(_) => (Family::V4.server(), port).into(),
            Cluster::Given(given) => (given.node().1, port).into(),
        }
    }

    /// Return the namespace of the clients.
    pub fn outside(&self) -> &Namespace {
        match self {
            Cluster::Own(node) => node.outside(),
            Cluster::Given(given) => given.here(),
        }
    }

    /// Return the address of client number `n`.
    /// From outside a given cluster all have the same.
    pub fn client(&self, n: u8) -> IpAddr {
        match self {
            Cluster::Own(_) => Family::V4.client(n),
            Cluster::Given(given) => given.own(),
        }
    }

    pub fn shares_address(&self) -> bool {
        matches!(self, Cluster::Given(_))
    }

    pub fn uplink(&self) -> &str {
        match self {
            Cluster::Own(_) => node::UPLINK,
            Cluster::Given(given) => &given.uplink,
        }
    }

    pub fn pod_interfaces(&self) -> &str {
        match self {
            Cluster::Own(_) => node::POD_INTERFACES,
            Cluster::Given(given) => &given.pod_interfaces,
        }
    }

    /// Restart the kubelet; return false where that was not allowed.
    pub fn restart_kubelet(&mut self) -> Result<bool> {
        match self {
            Cluster::Own(node) => {
                node.stop("kubelet")?;
                node.start("kubelet").context("starting it again")?;
                Ok(true)
            }
            Cluster::Given(given) => given.restart_kubelet(),
        }
    }
}
