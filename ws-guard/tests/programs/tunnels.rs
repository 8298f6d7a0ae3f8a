//! Segments inside other packets: followed as configured, and otherwise ignored.
use std::ops::Range;

use ws_guard_common::maps::{
    Counter::{self, *},
    Tunnels,
};
use ws_guard_testkit::{
    ip::fragment,
    programs::{Programs, object},
    skip_reason,
    tunnel::{Tunnel, ends},
};

use crate::{
    PROGRAMS, SIZES,
    case::{Case, Family, case, pings},
    paced,
    play::Hook,
    play_all,
};

const VXLAN: Tunnel = Tunnel::Vxlan(4789);
/// A Geneve tunnel with 12 bytes of options.
const GENEVE: Tunnel = Tunnel::Geneve(6081, 12);
const NOT_LOOKED_AT: [(Counter, u64); 3] = [(Seen, 1), (Protected, 0), (Unparsed, 0)];

/// Expect that the 31st ping is defused, inside and out.
fn followed(name: &'static str, tunnel: Tunnel, v6: bool) -> Case {
    case(name).inside(tunnel, v6).open().client(pings(31)).defused(&[180]).counts(&[
        (Tracked, 1),
        (Pings, 31),
        (Defused, 1),
        (Rewritten, 1),
    ])
}

/// Expect that one ping passes without being followed.
fn passes(name: &'static str, tunnel: Tunnel) -> Case {
    case(name).inside(tunnel, false).client(pings(1)).counts(&NOT_LOOKED_AT)
}

/// Cut an IP packet to a fragment, this part of it.
fn cut(part: Range<usize>) -> impl Fn(&mut Vec<u8>) {
    move |bytes| {
        let parts = [part.clone()];
        *bytes = fragment(bytes, 7, &parts).expect("an IP packet").remove(0);
    }
}

fn looked_into() -> Vec<Case> {
    let first = |case: Case| {
        case.client(pings(31)).dropped().counts(&[(Pings, 0), (Unparsed, 1), (DroppedFragment, 1)])
    };
    vec![
        followed("VXLAN over IPv4", VXLAN, false),
        followed("VXLAN over IPv6", VXLAN, true),
        followed("Geneve over IPv4", GENEVE, false),
        followed("Geneve over IPv6", GENEVE, true),
        paced::inside("VXLAN over IPv4: a window held", VXLAN, false),
        paced::inside("VXLAN over IPv6: a window held", VXLAN, true),
        followed("in IPv4", Tunnel::IpInIp, false),
        followed("in IPv6", Tunnel::IpInIp, true),
        first(case("VXLAN's packet cut").inside(VXLAN, false).open()).bytes(cut(0..160)),
        first(case("IPv6's packet cut").inside(Tunnel::IpInIp, true).open()).bytes(cut(0..160)),
        passes("another port", Tunnel::Vxlan(8472)),
        passes("VXLAN without a valid network", VXLAN).bytes(|bytes| bytes[42] = 0),
        passes("Geneve of another version", GENEVE).bytes(|bytes| bytes[42] |= 0x40),
        passes("Geneve with something else inside", GENEVE).bytes(|bytes| bytes[44] = 0x12),
        passes("a tunnel in a tunnel", VXLAN).bytes(|bytes| {
            *bytes = VXLAN.around(bytes, ends(true)).expect("two IPv6 addresses");
        }),
        case("a later fragment of a tunnel's packet")
            .inside(VXLAN, false)
            .client(pings(31))
            .bytes(cut(160..200))
            .counts(&NOT_LOOKED_AT),
        case("a segment that is in no tunnel")
            .open()
            .client(pings(31))
            .defused(&[180])
            .counts(&[(Defused, 1)]),
    ]
}

fn not_looked_into() -> Vec<Case> {
    vec![
        passes("VXLAN, not asked for", VXLAN),
        passes("Geneve, not asked for", GENEVE),
        passes("IP in IP, not asked for", Tunnel::IpInIp),
    ]
}

fn play_with(tunnels: Tunnels, cases: &[Case]) {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return;
    }
    let programs = Programs::load_with(&object(), &PROGRAMS, &SIZES, tunnels);
    let mut programs = programs.unwrap_or_else(|error| panic!("{error:#}"));
    for hook in [Hook::Xdp, Hook::Tc] {
        for family in [Family::V4, Family::V6] {
            play_all(&mut programs, cases, hook, family);
        }
    }
}

#[test]
fn tunnels_are_looked_into() {
    let tunnels = Tunnels { vxlan: 4789, geneve: 6081, ip_in_ip: 1, _pad: 0 };
    play_with(tunnels, &looked_into());
}

#[test]
fn tunnels_are_off_by_default() {
    play_with(Tunnels::default(), &not_looked_into());
}
