//! Multipath TCP: not agreed to where the guard enforces.
use ws_guard_common::maps::{Counter::*, LIMITS_CLASSES, Rule, TLS, action};
use ws_guard_testkit::packets::flag;

use crate::case::{Case, Fate, case};

/// Linux's options in front: MSS, SACK permitted, timestamps, NOP, window scale.
const BEFORE: [u8; 20] = [2, 4, 5, 0xB4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
/// MP_CAPABLE, version 1, in a SYN (RFC 8684, 3.1).
const CAPABLE: [u8; 4] = [30, 4, 0x01, 0x81];
/// MP_JOIN in a SYN (RFC 8684, 3.2).
const JOIN: [u8; 12] = [30, 12, 0x10, 1, 0xAA, 0xBB, 0xCC, 0xDD, 1, 2, 3, 4];

fn syn(case: Case, options: &[u8], payload: &[u8]) -> Case {
    let options = options.to_vec();
    case.client_at(-1, payload).with(move |packet| {
        (packet.flags, packet.ack) = (flag::SYN, 0);
        packet.tcp_options = options.clone();
    })
}

/// Expect `options` with those of MPTCP under another number.
fn refused(options: &[u8], at: &[usize]) -> Fate {
    let mut options = options.to_vec();
    at.iter().for_each(|at| options[*at] = 31);
    Fate::Options(options)
}

pub fn cases() -> Vec<Case> {
    let usual = [&BEFORE[..], &CAPABLE].concat();
    let joins = [&BEFORE[..], &JOIN].concat();
    let padded = [&[1; 27][..], &JOIN, &[0]].concat();
    let behind_the_end = [&[0, 0, 0, 0][..], &CAPABLE].concat();
    let inside_another = [254, 8, 30, 4, 1, 0x81, 0, 0];
    let endless = [&[99, 0, 1, 1][..], &CAPABLE].concat();
    vec![
        syn(case("a SYN that asks for Multipath TCP: another number"), &usual, b"")
            .fate(refused(&usual, &[20]))
            .counts(&[(MptcpRefused, 1)]),
        syn(case("one that joins"), &joins, b"")
            .fate(refused(&joins, &[20]))
            .counts(&[(MptcpRefused, 1)]),
        syn(case("at an odd offset, behind as many NOPs as there is room for"), &padded, b"")
            .fate(refused(&padded, &[27]))
            .counts(&[(MptcpRefused, 1)]),
        syn(case("twice, and with data behind"), &[CAPABLE, CAPABLE].concat(), b"data")
            .fate(refused(&[CAPABLE, CAPABLE].concat(), &[0, 4]))
            .counts(&[(MptcpRefused, 1)]),
        syn(case("a SYN without it"), &BEFORE, b"").counts(&[(MptcpRefused, 0)]),
        syn(case("behind the end of the options"), &behind_the_end, b"")
            .counts(&[(MptcpRefused, 0)]),
        syn(case("in another option's data"), &inside_another, b"").counts(&[(MptcpRefused, 0)]),
        syn(case("behind an option without a length"), &endless, b"").counts(&[(MptcpRefused, 0)]),
        syn(case("where the guard only observes"), &usual, b"")
            .policy(|policy| policy.action = action::OBSERVE)
            .counts(&[(MptcpRefused, 0)]),
        syn(case("of an allowed source"), &usual, b"")
            .rule(Rule { flags: Rule::ALLOW, ..Rule::default() })
            .counts(&[(MptcpRefused, 0)]),
        syn(case("on a TLS port, which is only watched"), &usual, b"")
            .policy(|policy| policy.flags = TLS | LIMITS_CLASSES)
            .counts(&[(MptcpRefused, 0)]),
    ]
}
