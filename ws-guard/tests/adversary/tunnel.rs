//! Connections in tunnels to the server: the interface sees only outer packets.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, Pair, PairOptions},
};

use crate::{
    attacker::Attacker,
    row::{Peers, Reached, Row, play},
    stage::Stage,
};

const PINGS: usize = 100;
const ALL: Reached = Reached::Exactly(PINGS as u64);
const KNOWN: &str = "tunnels are not read";
/// The rows, and for each the device type in the words of `ip link`;
/// `LOCAL` and `REMOTE` are replaced by the outer addresses.
const TUNNELS: [(Row, Family, &str); 4] = [
    (row::<0>("vxlan"), Family::V4, "vxlan id 5 dstport 4789 local LOCAL remote REMOTE"),
    (row::<1>("geneve"), Family::V4, "geneve id 5 remote REMOTE"),
    (row::<2>("ipv4_in_ipv4"), Family::V4, "ipip local LOCAL remote REMOTE"),
    (row::<3>("ipv4_in_ipv6"), Family::V6, "ip6tnl mode ipip6 local LOCAL remote REMOTE"),
];

const fn row<const N: u8>(name: &'static str) -> Row {
    Row::new(name, ALL, through::<N>).only(&[Family::V4]).known(KNOWN)
}

/// Return the addresses of client and server inside tunnel number `n`.
fn inside(n: u8) -> [IpAddr; 2] {
    [1, 2].map(|end| Ipv4Addr::new(10, 78, n, end).into())
}

/// A flood through tunnel number `N`, by the kernel's own TCP.
fn through<const N: u8>(attacker: &Attacker) -> Result<Peers> {
    let [client, server] = inside(N);
    let options = ConnectOptions { source: Some(client), ..Default::default() };
    let server = SocketAddr::new(server, attacker.server()?.port());
    let mut client = Client::connect(&attacker.stage.pair.client, server, options)?;
    client.send(&vec![Frame::ping(""); PINGS], &Cut::Whole)?;
    Ok(vec![Box::new(Some(client))])
}

/// Make both ends of tunnel number `n`.
fn open(pair: &Pair, n: u8, family: Family, device: &str) -> Result<()> {
    let outer = [family.client(0), family.server()];
    let ends = [(&pair.client, outer), (&pair.server, [outer[1], outer[0]])];
    for ((namespace, outer), inner) in ends.into_iter().zip(inside(n)) {
        let [local, remote] = outer.map(|address| address.to_string());
        let device = device.replace("LOCAL", &local).replace("REMOTE", &remote);
        namespace.ip(&format!("link add tunnel{n} type {device}"))?;
        namespace.ip(&format!("addr add {inner}/24 dev tunnel{n}"))?;
        namespace.ip(&format!("link set tunnel{n} up"))?;
    }
    Ok(())
}

#[test]
fn tunnels() -> Result<()> {
    needs_root!();
    let options = PairOptions { clients: 20, offloads: false, ..PairOptions::default() };
    let stage = Stage::new("xdp-native", options)?;
    let mut rows = Vec::new();
    for ((row, family, device), n) in TUNNELS.into_iter().zip(0..) {
        match open(&stage.pair, n, family, device) {
            Ok(()) => rows.push(row),
            Err(error) => println!("  off    {}: {error:#}", row.name),
        }
    }
    play(stage, &rows)
}
