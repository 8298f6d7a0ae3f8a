//! What stands before the payload.
use ws_guard_common::maps::Counter::*;
use ws_guard_testkit::packets::{Checksum, Fragment, flag};

use crate::case::{Case, Fate, case, pings, text};

/// The 31st ping, in a packet that looks as `edit` says.
fn defused_in(
    name: &'static str,
    edit: impl Fn(&mut ws_guard_testkit::packets::Packet) + 'static,
) -> Case {
    let case = case(name).open().client(pings(31)).with(edit).defused(&[180]);
    case.counts(&[(Pings, 31), (Defused, 1), (Rewritten, 1), (Unparsed, 0)])
}

pub fn cases() -> Vec<Case> {
    let unparsed = [(Seen, 1), (Protected, 0), (Unparsed, 1)];
    vec![
        case("a port that is not protected")
            .client(pings(1))
            .with(|packet| packet.to.set_port(443))
            .counts(&[(Seen, 1), (Protected, 0), (Tracked, 0)]),
        case("a server's port that is not protected")
            .server(0, "x")
            .with(|packet| packet.from.set_port(443))
            .counts(&[(EgressSeen, 1), (EgressTracked, 0)]),
        case("not IP")
            .client("")
            .bytes(|bytes| bytes[12..14].copy_from_slice(&[0x08, 0x06]))
            .counts(&[(Seen, 1), (Unparsed, 0), (Protected, 0)]),
        case("cut in the TCP header")
            .client("")
            .bytes(|bytes| bytes.truncate(bytes.len() - 10))
            .counts(&unparsed),
        case("a data offset below the least")
            .client("")
            .bytes(|bytes| {
                let at = bytes.len() - 8;
                bytes[at] = 0x40;
            })
            .counts(&unparsed),
        case("a first fragment")
            .client(pings(1))
            .with(|packet| packet.fragment = Some(Fragment { offset: 0, more: true }))
            .dropped()
            .counts(&unparsed),
        case("a later fragment")
            .client(pings(1))
            .with(|packet| packet.fragment = Some(Fragment { offset: 100, more: false }))
            .counts(&unparsed),
        case("SYN").client("").with(|packet| packet.flags = flag::SYN).leaves_no_flow().counts(&[
            (Seen, 1),
            (Protected, 1),
            (Tracked, 0),
        ]),
        case("a segment without a flow").client(pings(40)).leaves_no_flow().counts(&[
            (Protected, 1),
            (Tracked, 0),
            (Pings, 0),
        ]),
        defused_in("IPv4 options, IPv6 extension headers", |packet| {
            packet.ip_options = vec![1; 12];
            packet.extensions = Some(14);
        }),
        defused_in("TCP options", |packet| packet.tcp_options = vec![1; 12]),
        defused_in("the longest headers", |packet| {
            (packet.ip_options, packet.tcp_options) = (vec![1; 40], vec![1; 40]);
        }),
        defused_in("a VLAN tag", |packet| packet.vlans = vec![5]),
        defused_in("two VLAN tags", |packet| packet.vlans = vec![5, 6]),
        case("a partial checksum is left alone")
            .open()
            .client(pings(31))
            .with(|packet| packet.checksum = Checksum::Partial)
            .fate(Fate::DefusedPartial(vec![180]))
            .counts(&[(Defused, 1), (Rewritten, 1)])
            .xdp_only("packets of a test run have no CHECKSUM_PARTIAL, which TC looks at"),
        case("less payload than IP says")
            .open()
            .client(pings(2))
            .bytes(|bytes| bytes.truncate(bytes.len() - 5))
            .dropped()
            .counts(&[(Pings, 0), (DroppedUnreadable, 1)]),
        case("Ethernet padding is no payload")
            .open()
            .client(text("x"))
            .bytes(|bytes| bytes.extend([0x89; 20]))
            .counts(&[(Frames, 1), (Pings, 0)]),
    ]
}
