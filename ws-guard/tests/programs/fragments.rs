//! Segments that come in fragments. Linux puts them together before TCP sees them, so they must not
//! go by uncounted; what is no segment to a protected port must go by.
use ws_guard_common::{
    flow::state,
    maps::{Counter::*, UNREADABLE_PASSES, action},
};
use ws_guard_testkit::{
    ip::{carried, extend, fragment as cut_out, header},
    packets::flag,
};

use crate::case::{Case, Family, case, pings};

/// The part of a packet that is the fragment from byte `from` up to byte `to` of its IP payload, or
/// to the end.
fn cut(from: usize, to: Option<usize>) -> impl Fn(&mut Vec<u8>) {
    move |bytes| {
        let all = carried(bytes).expect("an IP packet");
        let part = from..to.unwrap_or(all);
        *bytes = cut_out(bytes, 7, &[part]).expect("an IP packet").remove(0);
    }
}

/// A fragment of 30 pings with a TCP header, on an open connection.
fn fragment(name: &'static str, from: usize, to: Option<usize>) -> Case {
    case(name).open().client(pings(30)).bytes(cut(from, to))
}

fn dropped(case: Case) -> Case {
    case.dropped().counts(&[(Seen, 2), (Unparsed, 1), (DroppedFragment, 1), (Pings, 0)])
}

fn passes(case: Case) -> Case {
    case.counts(&[(Unparsed, 1), (DroppedFragment, 0), (DroppedHeaders, 0), (Pings, 0)])
}

pub fn cases() -> Vec<Case> {
    let mut cases = either_version();
    cases.extend(ipv6());
    cases
}

fn either_version() -> Vec<Case> {
    vec![
        dropped(fragment("a first fragment", 0, Some(104))),
        // Ports and sequence number, no more.
        dropped(fragment("a tiny first fragment", 0, Some(8))),
        dropped(fragment("a first fragment with TCP's header cut", 0, Some(16))),
        passes(fragment("a later fragment", 104, None)),
        passes(fragment("a fragment in the middle", 104, Some(152))),
        // What Linux discards and others may take: a second one at the same place.
        fragment("first fragments that overlap", 0, Some(104))
            .dropped()
            .client_at(0, pings(30))
            .bytes(cut(0, Some(48)))
            .dropped()
            .client_at(0, pings(30))
            .bytes(cut(8, None))
            .counts(&[(Unparsed, 3), (DroppedFragment, 2), (Pings, 0)]),
        passes(fragment("a first fragment, let pass", 0, Some(104)))
            .policy(|policy| policy.flags = UNREADABLE_PASSES),
        passes(fragment("a first fragment, observed", 0, Some(104)))
            .policy(|policy| policy.action = action::OBSERVE),
        passes(fragment("a first fragment for another port", 0, Some(104)))
            .with(|packet| packet.to.set_port(443)),
        case("a fragment of something else")
            .client(pings(30))
            .bytes(|bytes| {
                cut(0, Some(104))(bytes);
                // UDP, in IPv4's header or the fragment's.
                let at = if bytes[12] == 0x08 { 23 } else { 54 };
                bytes[at] = 17;
            })
            .counts(&[(Seen, 1), (Unparsed, 0)]),
        // What the first fragment acknowledges is known, though not what follows in others.
        case("a server's first fragment acknowledges")
            .open()
            .client("")
            .with(|packet| packet.flags = flag::FIN | flag::ACK)
            .server(1, vec![0; 200])
            .bytes(cut(0, Some(104)))
            .counts(&[(EgressTracked, 1), (FlowsClosed, 1)])
            .leaves(state::CLOSED),
    ]
}

/// A first fragment with `length` bytes of options behind the fragment header, in a packet that
/// ends after `end` bytes of IP payload, where that is said; what follows is Ethernet's padding.
fn first(name: &'static str, length: usize, end: Option<u16>) -> Case {
    case(name).only(Family::V6).open().client(pings(30)).bytes(move |bytes| {
        let headers = [(header::FRAGMENT, 8), (header::DESTINATION, length)];
        *bytes = extend(bytes, &headers).expect("IPv6");
        // There are more.
        bytes[57] = 1;
        if let Some(end) = end {
            bytes[18..20].copy_from_slice(&end.to_be_bytes());
        }
    })
}

/// RFC 8200, 4.5, forbids a first fragment without all headers; who takes it all the same finds TCP
/// in the second one.
fn ipv6() -> Vec<Case> {
    let hidden = |case: Case| {
        case.dropped().counts(&[(Unparsed, 1), (DroppedHeaders, 1), (DroppedFragment, 0)])
    };
    vec![
        dropped(first("a first fragment with options", 16, None)),
        hidden(first("a first fragment that ends behind its options", 64, Some(72))),
        hidden(first("a first fragment that ends within its options", 64, Some(40))),
    ]
}
