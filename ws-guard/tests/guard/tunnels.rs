//! Clients behind a VXLAN tunnel of the kernel.
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    netns::{Family, INTERFACE, Pair, PairOptions},
    servers::Library,
    statistics::{tcp, udp},
};

use crate::{
    defuse::patient,
    jumbo::{LIMIT, deep_pings},
    stage::{PORT, Stage, WAIT},
    talk::{answered, pings, round_trip},
};

/// Address inside the tunnel, whatever is outside.
const CLIENT: &str = "10.78.0.1";
const SERVER: &str = "10.78.0.2";
/// Less than the tunnel's headers leave of 1,500 bytes.
const MTU: u32 = 1400;
const PINGS: u64 = 80;
const PINGS_OFFLOADED: u64 = 3800;

/// Properties of a tunnel.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Outer IP version. Over IPv6 the tunnel has separate checksums.
    outer: Family,
    /// Offloads of the interface below it...
    offloads: bool,
    /// ...and of the tunnel itself:
    /// with those below alone, the outer checksum is partial and the inner one is not.
    inner_offloads: bool,
}

const fn kind(outer: Family, offloads: bool, inner_offloads: bool) -> Kind {
    Kind { outer, offloads, inner_offloads }
}

const KINDS: [Kind; 5] = [
    kind(Family::V4, false, false),
    kind(Family::V6, false, false),
    kind(Family::V4, true, true),
    kind(Family::V6, true, true),
    kind(Family::V6, true, false),
];

/// Make a tunnel between the two namespaces.
fn make_tunnel(pair: &Pair, kind: Kind) -> Result<()> {
    let outer = kind.outer;
    let ends = [
        (&pair.client, CLIENT, outer.client(0), outer.server()),
        (&pair.server, SERVER, outer.server(), outer.client(0)),
    ];
    for (namespace, address, local, remote) in ends {
        let to = format!("local {local} remote {remote} dev {INTERFACE}");
        namespace.ip(&format!("link add vx0 mtu {MTU} type vxlan id 42 dstport 4789 {to}"))?;
        namespace.ip(&format!("addr add {address}/24 dev vx0"))?;
        namespace.ip("link set vx0 up")?;
        namespace.offloads("vx0", kind.inner_offloads)?;
        namespace.ip("route change 10.78.0.0/24 dev vx0 rto_min 4s")?;
    }
    Ok(())
}

fn inside(stage: &Stage) -> Result<Client> {
    let server: IpAddr = SERVER.parse()?;
    Client::connect(&stage.pair.client, (server, PORT).into(), ConnectOptions::default())
}

fn stage(kind: Kind, words: &str) -> Result<Stage> {
    let pair = Pair::new(PairOptions { offloads: kind.offloads, ..PairOptions::default() })?;
    patient(&pair)?;
    make_tunnel(&pair, kind)?;
    Stage::on(pair, &[Library::Gorilla], words)
}

fn followed(mode: &str, kind: Kind) -> Result<()> {
    let words = format!("--attach {mode} --window-seconds 60 --pace off --tunnel vxlan:4789");
    let stage = stage(kind, &words)?;
    let each = if kind.inner_offloads { PINGS_OFFLOADED } else { PINGS };
    deep_pings(&stage, inside(&stage)?, each).with_context(|| stage.drops())?;
    for errors in ["InErrs", "InCsumErrors"] {
        let counted = tcp(&stage.pair.server, errors)?;
        ensure!(counted == 0, "{errors} of the server's TCP: {counted}");
    }
    for errors in ["InErrors", "InCsumErrors"] {
        let counted = udp(&stage.pair.server, errors)?;
        ensure!(counted == 0, "{errors} of the server's UDP: {counted}");
    }
    let totals = stage.finish_one()?;
    ensure!(totals.pings == LIMIT, "{totals:?}");
    Ok(())
}

macro_rules! followed {
    ($($name:ident: $mode:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            needs_root!();
            for kind in KINDS {
                followed($mode, kind).with_context(|| format!("{kind:?}"))?;
            }
            Ok(())
        }
    )*};
}

followed! {
    native_xdp_looks_into_vxlan: "xdp-native";
    generic_xdp_looks_into_vxlan: "xdp-generic";
    tcx_looks_into_vxlan: "tcx";
}

/// Only what is configured is guarded.
#[test]
fn tunnels_are_left_alone_unless_asked_for() -> Result<()> {
    needs_root!();
    let stage = stage(KINDS[0], "--attach xdp-native --window-seconds 60 --pace off")?;
    let mut client = inside(&stage)?;
    client.send(&pings(0, LIMIT + 10), &Cut::Every(14))?;
    round_trip(&mut client, "all of them")?;
    ensure!(client.drain(WAIT), "the server does not acknowledge");
    ensure!(answered(&client).into_iter().eq(0..LIMIT + 10), "{:?}", answered(&client));
    ensure!(stage.flow(&client).is_err(), "it is tracked");
    client.close()?;
    let totals = stage.finish_one()?;
    ensure!(totals.pings == LIMIT + 10, "{totals:?}");
    Ok(())
}
