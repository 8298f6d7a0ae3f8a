//! Many clients, the host of a reverse proxy, and behind it a node with one pod.
//!
//! ```text
//! clients' namespace          proxy's namespace            node             pod
//! edge0  10.76.0.2      ───   edge0  10.76.0.1
//! and all of theirs    veth0  10.77.0.1, .2   ───   veth0
//! cali0      ───   eth0  10.78.0.2
//! ```
//! and fd76::2, fd76::1, and so on. The clients' namespace has whole networks, public and private
//! ones, so that each client has its own address, and each IPv6 client its own /64.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{
    netns::{Family, Namespace, PairOptions},
    node::{Node, Pod},
};

/// Interface between clients and proxy, on both sides.
const EDGE: &str = "edge0";
/// Number of clients in each IPv4 /24.
const PER_NETWORK: u16 = 250;
/// Networks of the clients (RFC 5737, RFC 2544, RFC 3849, RFC 1918, RFC 4193).
/// They are public and private ones.
const NETWORKS: [&str; 7] = [
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "198.18.0.0/15",
    "10.66.0.0/16",
    "2001:db8::/32",
    "fd66::/32",
];

/// Kind of a client's network: public or private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Public,
    Private,
}

impl Reach {
    pub const BOTH: [Reach; 2] = [Reach::Public, Reach::Private];

    /// Return the address of client number `n`, from 0 and below 750.
    pub fn client(self, family: Family, n: u16) -> IpAddr {
        let (network, host) = (n / PER_NETWORK, (n % PER_NETWORK) as u8 + 1);
        match (family, self) {
            (Family::V4, Reach::Public) => {
                let networks = [[198, 51, 100], [203, 0, 113], [192, 0, 2]];
                let [a, b, c] = networks[usize::from(network) % networks.len()];
                Ipv4Addr::new(a, b, c, host).into()
            }
            (Family::V4, Reach::Private) => Ipv4Addr::new(10, 66, network as u8, host).into(),
            (Family::V6, Reach::Public) => Ipv6Addr::new(0x2001, 0xdb8, 0, n, 0, 0, 0, 1).into(),
            (Family::V6, Reach::Private) => Ipv6Addr::new(0xfd66, 0, 0, n, 0, 0, 0, 1).into(),
        }
    }
}

/// Return the listening address of the proxy.
pub fn front(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 76, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd76, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Namespaces of the setup.
#[derive(Debug)]
pub struct Edge {
    pub clients: Namespace,
    pub node: Node,
}

impl Edge {
    pub fn new() -> Result<Edge> {
        let clients = Namespace::new("clients")?;
        let node = Node::new(1, PairOptions::default())?;
        let edge = Edge { clients, node };
        edge.connect()?;
        Ok(edge)
    }

    /// Return the namespace of the proxies.
    pub fn proxy(&self) -> &Namespace {
        &self.node.pair.client
    }

    /// Return the pod of the server.
    pub fn pod(&self) -> &Pod {
        &self.node.pods[0]
    }

    fn connect(&self) -> Result<()> {
        let (clients, proxy) = (&self.clients, self.proxy());
        let peer = format!("type veth peer name {EDGE} netns {}", proxy.name());
        clients.ip(&format!("link add {EDGE} {peer}"))?;
        for (namespace, host) in [(clients, 2), (proxy, 1)] {
            namespace.ip(&format!("addr add 10.76.0.{host}/30 dev {EDGE}"))?;
            namespace.ip(&format!("addr add fd76::{host}/64 dev {EDGE} nodad"))?;
            namespace.ip(&format!("link set {EDGE} up"))?;
        }
        // With a whole network a process may bind to each of its addresses, IPv6 ones with this
        // setting.
        clients.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
        for network in NETWORKS {
            clients.ip(&format!("route add local {network} dev lo"))?;
            let gateway = if network.contains(':') { "fd76::2" } else { "10.76.0.2" };
            proxy.ip(&format!("route add {network} via {gateway}"))?;
        }
        Ok(())
    }
}
