//! What the scenarios run on: a cluster of the test's own, or one that was given.
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
    /// The node of its own, for what can only be done there.
    pub fn own(&mut self) -> Option<&mut Node> {
        match self {
            Cluster::Own(node) => Some(node),
            Cluster::Given(_) => None,
        }
    }

    /// The file that names it, where the environment does not.
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

    /// A command that reaches the API server.
    pub fn command(&self, program: &str) -> Command {
        match self {
            Cluster::Own(node) => node.inside().command(program),
            Cluster::Given(_) => Command::new(program),
        }
    }

    /// The node that everything is done on.
    pub fn node(&self) -> &str {
        match self {
            Cluster::Own(_) => node::NAME,
            Cluster::Given(given) => given.node().0,
        }
    }

    /// A port of that node, from outside.
    pub fn port(&self, port: u16) -> SocketAddr {
        match self {
            Cluster::Own(_) => (Family::V4.server(), port).into(),
            Cluster::Given(given) => (given.node().1, port).into(),
        }
    }

    /// Where the clients are.
    pub fn outside(&self) -> &Namespace {
        match self {
            Cluster::Own(node) => node.outside(),
            Cluster::Given(given) => given.here(),
        }
    }

    /// Address of client number `n`. From outside a given cluster all have the same.
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

    /// Restart the kubelet; false where that was not allowed.
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
