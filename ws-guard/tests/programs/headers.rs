//! What stands before the payload.
use ws_guard_common::maps::{Counter::*, UNREADABLE_PASSES, action};
use ws_guard_testkit::{
    packets::{Checksum, Packet, flag},
    wrap::{CUSTOMER_TAG, SERVICE_TAG, extended, extension::*, options, routing, tagged},
};

use crate::case::{Case, Family, case, pings, text};

/// The 31st ping, in a packet that looks as `edit` says.
fn defused_in(name: &'static str, edit: impl Fn(&mut Packet) + 'static) -> Case {
    counted(case(name).open().client(pings(31)).with(edit))
}

fn counted(case: Case) -> Case {
    case.defused(&[180]).counts(&[(Pings, 31), (Defused, 1), (Rewritten, 1), (Unparsed, 0)])
}

/// The same behind these tags: VLAN identifiers, the outer one first.
fn defused_behind_tags(name: &'static str, tags: &'static [(u16, u16)]) -> Case {
    counted(case(name).open().client(pings(31)).bytes(|bytes| *bytes = tagged(bytes, tags)))
}

/// A packet with these IPv6 extension headers.
fn with_extensions(case: Case, headers: Vec<(u8, Vec<u8>)>) -> Case {
    case.only(Family::V6).bytes(move |bytes| *bytes = extended(bytes, &headers).expect("IPv6"))
}

/// As [`defused_in`], behind extension headers.
fn defused_behind(name: &'static str, headers: Vec<(u8, Vec<u8>)>) -> Case {
    counted(with_extensions(case(name).open().client(pings(31)), headers))
}

/// Headers that hide a segment, which is dropped.
fn hidden_behind(name: &'static str, headers: Vec<(u8, Vec<u8>)>) -> Case {
    let case = with_extensions(case(name).open().client(pings(31)), headers).dropped();
    case.counts(&[(Seen, 2), (Pings, 0), (Unparsed, 1), (DroppedHeaders, 1)])
}

/// So many of the shortest destination options.
fn chain(length: usize) -> Vec<(u8, Vec<u8>)> {
    vec![(DESTINATION, options(8)); length]
}

pub fn cases() -> Vec<Case> {
    let mut cases = usual();
    cases.extend(extensions());
    cases
}

/// IPv6 extension headers.
fn extensions() -> Vec<Case> {
    let each = || {
        vec![
            (HOP_BY_HOP, options(8)),
            (DESTINATION, options(16)),
            (ROUTING, routing(4, 0)),
            (FRAGMENT, vec![0; 7]),
            // Four 4-byte words, less two.
            (AUTHENTICATION, [vec![2], vec![0; 14]].concat()),
            (DESTINATION, options(24)),
        ]
    };
    let headers = |headers: Vec<(u8, Vec<u8>)>| move |case| with_extensions(case, headers.clone());
    vec![
        defused_behind("each extension header", each()),
        defused_behind("an atomic fragment", vec![(FRAGMENT, vec![0; 7])]),
        defused_behind("eight extension headers", chain(8)),
        // More than is linear at TC, and than the programs make so at first.
        defused_behind("long extension headers", vec![(DESTINATION, options(1000)); 2]),
        hidden_behind("nine extension headers", chain(9)),
        hidden_behind("a router has yet to send it on", vec![(ROUTING, routing(4, 1))]),
        headers(chain(9))(case("nine extension headers, let pass").open().client(pings(31)))
            .policy(|policy| policy.flags = UNREADABLE_PASSES)
            .counts(&[(Pings, 0), (Unparsed, 1), (DroppedHeaders, 0)]),
        headers(chain(9))(case("nine extension headers, observed").open().client(pings(31)))
            .policy(|policy| policy.action = action::OBSERVE)
            .counts(&[(Pings, 0), (Unparsed, 1), (DroppedHeaders, 0)]),
        headers(vec![(ROUTING, routing(4, 1))])(case("sent on to another port").client(pings(1)))
            .with(|packet| packet.to.set_port(443))
            .counts(&[(Unparsed, 1), (DroppedHeaders, 0)]),
        headers(chain(8))(case("extension headers before something else").client(""))
            .bytes(|bytes| {
                *bytes = extended(bytes, &chain(8)).expect("IPv6");
                // The last one says: UDP.
                bytes[14 + 40 + 7 * 8] = 17;
            })
            .counts(&[(Seen, 1), (Unparsed, 0)]),
        headers(chain(2))(case("extension headers longer than their packet").client(pings(1)))
            .bytes(|bytes| {
                *bytes = extended(bytes, &chain(2)).expect("IPv6");
                bytes[18..20].copy_from_slice(&[0, 12]);
            })
            .counts(&[(Unparsed, 1), (DroppedHeaders, 0)]),
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
        // Linux takes off any number of these.
        defused_behind_tags("four priority tags", &[(CUSTOMER_TAG, 0x2000); 4]),
        case("five tags")
            .open()
            .client(pings(31))
            .bytes(|bytes| *bytes = tagged(bytes, &[(CUSTOMER_TAG, 0x2000); 5]))
            .dropped()
            .counts(&[(Pings, 0), (Unparsed, 1), (DroppedHeaders, 1)]),
        case("tags in front of something else")
            .client("")
            .bytes(|bytes| {
                *bytes = tagged(bytes, &[(CUSTOMER_TAG, 5), (CUSTOMER_TAG, 6)]);
                bytes[20..22].copy_from_slice(&[0x08, 0x06]);
            })
            .counts(&[(Seen, 1), (Unparsed, 0)]),
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
