//! Node as in Kubernetes: an uplink, routing, and pods behind veth pairs.
//!
//! ```text
//! client namespace          node's namespace                     pods' namespaces
//! veth0  10.77.0.1 ..  ───  veth0 (uplink)  10.77.255.1
//! cali0           10.78.0.1   ───   eth0  10.78.0.2
//! cali1           10.78.1.1   ───   eth0  10.78.1.2
//! ```
//! and fd78:0:0:N::1 and ::2 for pod number N.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::netns::{Family, Namespace, Pair, PairOptions};

/// Interface inside a pod.
pub const INSIDE: &str = "eth0";

/// Namespace of a pod, and the host's side of its interface.
#[derive(Debug)]
pub struct Pod {
    pub namespace: Namespace,
    /// Interface in the node's namespace.
    pub interface: String,
    number: u8,
}

impl Pod {
    /// Return the listening address of its servers.
    pub fn address(&self, family: Family) -> IpAddr {
        address(family, self.number, 2)
    }
}

/// Client, node and pods; the server's namespace of the pair is the node's.
#[derive(Debug)]
pub struct Node {
    // Dropped first: a pod's interface goes with it.
    pub pods: Vec<Pod>,
    pub pair: Pair,
    offloads: bool,
}

impl Node {
    /// Create a node with this number of pods, `cali0` and so on.
    pub fn new(pods: u8, options: PairOptions) -> Result<Node> {
        let pair = Pair::new(options)?;
        for (family, to) in [(Family::V4, "10.78.0.0/16"), (Family::V6, "fd78::/32")] {
            pair.client.ip(&format!("route add {to} via {}", family.server()))?;
        }
        pair.server.sysctl("net/ipv4/ip_forward", "1")?;
        pair.server.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let mut node = Node { pods: Vec::new(), pair, offloads: options.offloads };
        (0..pods).try_for_each(|_| node.add_pod())?;
        Ok(node)
    }

    /// Return the node's own namespace, in which the guard runs.
    pub fn namespace(&self) -> &Namespace {
        &self.pair.server
    }

    /// Forward connections to another address, as kube-proxy does (DNAT). IPv4 only.
    pub fn send_on(&self, at: SocketAddr, to: SocketAddr) -> Result<()> {
        self.translate(&format!(
            "PREROUTING -p tcp -d {} --dport {} -j DNAT --to-destination {to}",
            at.ip(),
            at.port()
        ))
    }

    /// Send to a pod from the node's own address.
    /// kube-proxy does so where a Service has `externalTrafficPolicy: Cluster`. IPv4 only.
    pub fn masquerade(&self, pod: usize) -> Result<()> {
        self.translate(&format!("POSTROUTING -o {} -j MASQUERADE", self.pods[pod].interface))
    }

    /// Add a rule of address translation.
    fn translate(&self, rule: &str) -> Result<()> {
        let words = format!("-t nat -A {rule}");
        let mut iptables = self.namespace().command("iptables");
        let output = iptables.args(words.split(' ')).output().context("running iptables")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`iptables {words}` failed: {}", said.trim());
        Ok(())
    }

    /// Add a pod.
    pub fn add_pod(&mut self) -> Result<()> {
        let number = self.pods.len() as u8;
        let pod =
            Pod { namespace: Namespace::new("pod")?, interface: format!("cali{number}"), number };
        let (host, inside) = (&pod.interface, pod.namespace.name());
        let node = self.namespace();
        node.ip(&format!("link add {host} type veth peer name {INSIDE} netns {inside}"))?;
        for (family, length) in [(Family::V4, "24"), (Family::V6, "64 nodad")] {
            let (gateway, own) = (address(family, number, 1), address(family, number, 2));
            node.ip(&format!("addr add {gateway}/{length} dev {host}"))?;
            pod.namespace.ip(&format!("addr add {own}/{length} dev {INSIDE}"))?;
        }
        node.ip(&format!("link set {host} up"))?;
        pod.namespace.ip(&format!("link set {INSIDE} up"))?;
        for family in Family::BOTH {
            let gateway = address(family, number, 1);
            pod.namespace.ip(&format!("route add default via {gateway}"))?;
        }
        if !self.offloads {
            node.offloads(host, false)?;
            pod.namespace.offloads(INSIDE, false)?;
        }
        self.pods.push(pod);
        Ok(())
    }
}

fn address(family: Family, number: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 78, number, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd78, 0, 0, number.into(), 0, 0, 0, host.into()).into(),
    }
}
