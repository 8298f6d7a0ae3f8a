//! Headers before the payload.
use ws_guard_common::maps::{Counter::*, UNREADABLE_PASSES, action};
use ws_guard_testkit::{
    ip::{extend, header::*, tag},
    packets::{Checksum, Packet, flag},
};

use crate::case::{Case, Family, case, pings, text};

/// Send the 31st ping, in a packet changed by `edit`.
fn defused_in(name: &'static str, edit: impl Fn(&mut Packet) + 'static) -> Case {
    counted(case(name).open().client(pings(31)).with(edit))
}

fn counted(case: Case) -> Case {
    case.defused(&[180]).counts(&[(Pings, 31), (Defused, 1), (Rewritten, 1), (Unparsed, 0)])
}

/// Send the same behind these tags: VLAN identifiers, the outer one first.
fn defused_behind_tags(name: &'static str, tags: &'static [(u16, u16)]) -> Case {
    counted(case(name).open().client(pings(31)).bytes(tagged(tags)))
}

fn tagged(tags: &'static [(u16, u16)]) -> impl Fn(&mut Vec<u8>) {
    |bytes| *bytes = tag(bytes, tags).expect("an Ethernet frame")
}

/// Send a packet with these IPv6 extension headers.
fn with_extensions(case: Case, headers: &'static [(u8, usize)]) -> Case {
    case.only(Family::V6).bytes(extended(headers))
}

fn extended(headers: &'static [(u8, usize)]) -> impl Fn(&mut Vec<u8>) {
    |bytes| *bytes = extend(bytes, headers).expect("IPv6")
}

/// Do as [`defused_in`], behind extension headers.
fn defused_behind(name: &'static str, headers: &'static [(u8, usize)]) -> Case {
    counted(with_extensions(case(name).open().client(pings(31)), headers))
}

/// Add a routing header that is not at its last hop yet (RFC 8200, 4.4).
fn routed_on(bytes: &mut Vec<u8>) {
    extended(&[(ROUTING, 24)])(bytes);
    bytes[54 + 3] = 1;
}

fn hidden(case: Case) -> Case {
    case.dropped().counts(&[(Seen, 2), (Pings, 0), (Unparsed, 1), (DroppedHeaders, 1)])
}

const LARGE: &str = "a test run at TC takes no packet of more than a page";
/// The shortest options.
const OPTIONS: (u8, usize) = (DESTINATION, 8);
const EACH: [(u8, usize); 5] =
    [(HOP_BY_HOP, 8), (DESTINATION, 16), (ROUTING, 24), (FRAGMENT, 8), (DESTINATION, 24)];
const CUSTOMER_TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88A8;
/// A tag that carries a priority only.
const PRIORITY: (u16, u16) = (CUSTOMER_TAG, 0x2000);

pub fn cases() -> Vec<Case> {
    let mut cases = usual();
    cases.extend(extensions());
    cases
}

/// IPv6 extension headers.
fn extensions() -> Vec<Case> {
    let nine = |name| with_extensions(case(name).open().client(pings(31)), &[OPTIONS; 9]);
    let passes = |case: Case| case.counts(&[(Pings, 0), (Unparsed, 1), (DroppedHeaders, 0)]);
    let ping = |name| case(name).only(Family::V6).client(pings(1));
    vec![
        defused_behind("each extension header", &EACH),
        defused_behind("an atomic fragment", &[(FRAGMENT, 8)]),
        defused_behind("eight extension headers", &[OPTIONS; 8]),
        // More than is linear at TC, and than the programs linearise at first.
        defused_behind("long extension headers", &[(DESTINATION, 1000); 2]),
        // RFC 4302, 2.2: its length is in words of 4 bytes, less 2.
        counted(case("an authentication header").only(Family::V6).open().client(pings(31)).bytes(
            |bytes| {
                extended(&[(DESTINATION, 24)])(bytes);
                (bytes[20], bytes[55]) = (51, 4);
            },
        )),
        // More than they ever look at.
        hidden(case("five kilobytes of headers").open().client(pings(31)))
            .only(Family::V6)
            .bytes(extended(&[(DESTINATION, 1704); 3]))
            .xdp_only(LARGE),
        hidden(nine("nine extension headers")),
        passes(nine("nine, let pass")).policy(|policy| policy.flags = UNREADABLE_PASSES),
        passes(nine("nine, observed")).policy(|policy| policy.action = action::OBSERVE),
        hidden(case("a router has yet to send it on").only(Family::V6).open().client(pings(31)))
            .bytes(routed_on),
        passes(ping("a router has yet to send it on to another port"))
            .with(|packet| packet.to.set_port(443))
            .bytes(routed_on),
        passes(ping("extension headers longer than their packet")).bytes(|bytes| {
            extended(&[OPTIONS; 2])(bytes);
            bytes[18..20].copy_from_slice(&[0, 12]);
        }),
        ping("extension headers before something else")
            .bytes(|bytes| {
                extended(&[OPTIONS; 8])(bytes);
                // The last one announces UDP.
                bytes[14 + 40 + 7 * 8] = 17;
            })
            .counts(&[(Seen, 1), (Unparsed, 0)]),
    ]
}

fn usual() -> Vec<Case> {
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
        // The version in the header's first byte, IPv4's protocol at 9 or IPv6's next header at 6.
        case("UDP to a protected port, as QUIC has it")
            .open()
            .client(pings(31))
            .bytes(|bytes| {
                let protocol = if bytes[14] >> 4 == 4 { 23 } else { 20 };
                bytes[protocol] = 17;
            })
            .counts(&[(Pings, 0), (Tracked, 0), (Unparsed, 0)]),
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
        defused_in("IPv4 options", |packet| packet.ip_options = vec![1; 12]).only(Family::V4),
        defused_in("TCP options", |packet| packet.tcp_options = vec![1; 12]),
        defused_in("the longest headers", |packet| {
            (packet.ip_options, packet.tcp_options) = (vec![1; 40], vec![1; 40]);
        }),
        defused_behind_tags("a VLAN tag", &[(CUSTOMER_TAG, 5)]),
        defused_behind_tags("a service tag and a VLAN tag", &[(SERVICE_TAG, 5), (CUSTOMER_TAG, 6)]),
        // Linux removes any number of these.
        defused_behind_tags("four priority tags", &[PRIORITY; 4]),
        case("five tags")
            .open()
            .client(pings(31))
            .bytes(tagged(&[PRIORITY; 5]))
            .dropped()
            .counts(&[(Pings, 0), (Unparsed, 1), (DroppedHeaders, 1)]),
        case("tags in front of something else")
            .client("")
            .bytes(|bytes| {
                tagged(&[(CUSTOMER_TAG, 5), (CUSTOMER_TAG, 6)])(bytes);
                bytes[20..22].copy_from_slice(&[0x08, 0x06]);
            })
            .counts(&[(Seen, 1), (Unparsed, 0)]),
        case("a jumbo frame, in several buffers")
            .open()
            .client(pings(1400))
            .defused(&(30..1400).map(|n| n * 6).collect::<Vec<usize>>())
            .counts(&[(Pings, 1400), (Defused, 1370), (Rewritten, 1370)])
            .xdp_only(LARGE),
        case("a partial checksum is left alone")
            .open()
            .client(pings(31))
            .with(|packet| packet.checksum = Checksum::Partial)
            .defused(&[180])
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
