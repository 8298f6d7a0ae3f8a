//! Fragmented segments.
//! Linux reassembles them before TCP sees them, so they must not pass uncounted; everything but
//! segments to a protected port must pass.
use ws_guard_common::{
    flow::state,
    maps::{Counter::*, UNREADABLE_PASSES, action},
};
use ws_guard_testkit::{
    ip::{carried, extend, fragment as cut_out, header},
    packets::flag,
};

use crate::case::{Case, Family, case, pings};

/// Cut a packet to a fragment: bytes `from` up to `to` of its IP payload.
/// To the end without `to`.
fn cut(from: usize, to: Option<usize>) -> impl Fn(&mut Vec<u8>) {
    move |bytes| {
        let all = carried(bytes).expect("an IP packet");
        let part = from..to.unwrap_or(all);
        *bytes = cut_out(bytes, 7, &[part]).expect("an IP packet").remove(0);
    }
}

/// Send a fragment of 30 pings with a TCP header, on an open connection.
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
        // Discarded by Linux, though others may take it: a second one at the same place.
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
        // The acknowledgement of a first fragment is known, though not the bytes in the others.
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

/// Send a first fragment with `length` bytes of options behind its header.
/// The packet ends after `end` bytes of IP payload, where given; Ethernet's padding follows.
fn first(name: &'static str, length: usize, end: Option<u16>) -> Case {
    case(name).only(Family::V6).open().client(pings(30)).bytes(move |bytes| {
        let headers = [(header::FRAGMENT, 8), (header::DESTINATION, length)];
        *bytes = extend(bytes, &headers).expect("IPv6");
        // More fragments follow.
        bytes[57] = 1;
        if let Some(end) = end {
            bytes[18..20].copy_from_slice(&end.to_be_bytes());
        }
    })
}

/// First fragments without all headers, which RFC 8200, 4.5, forbids;
/// a host that accepts them finds TCP in the second one.
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
