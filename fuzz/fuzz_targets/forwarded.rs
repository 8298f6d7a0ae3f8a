//! The client's address behind a proxy:
//! any beginning of a connection is read, alike with and without skipped words, and a list of
//! addresses as a plain parser reads it. First byte: whether `Forwarded` is among the headers, and
//! whether a PROXY protocol header may come first.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use ws_guard_common::{
    forwarded::names::{HeaderNames, X_FORWARDED_FOR},
    handshake::END,
    maps::{Address, Pending, identity},
};

/// Another header that holds a list of addresses.
const OTHER: &str = "x-real-ip";

/// Check whether an address is a proxy's: in 10.0.0.0/8 or fd00::/8.
fn trusts(address: &Address) -> bool {
    match IpAddr::from(*address) {
        IpAddr::V4(v4) => v4.octets()[0] == 10,
        IpAddr::V6(v6) => v6.octets()[0] == 0xFD,
    }
}

/// Take one byte; `true` when it ends the head.
fn take(pending: &mut Pending, byte: u8, names: &HeaderNames) -> bool {
    if !pending.client.preface.is_over() && pending.client.push_preface(byte) {
        return false;
    }
    pending.client.push(byte, names, &trusts);
    pending.head.push(byte)
}

/// Read a connection's beginning, up to the end of a head; return its length too.
fn read(bytes: &[u8], names: &HeaderNames, preface: bool, skips: bool) -> (Pending, usize) {
    let mut pending = Pending::default();
    if !preface {
        pending.client.skip_preface();
    }
    pending.begin();
    let mut at = 0;
    while at < bytes.len() {
        if skips {
            at += pending.client.preface.skip((bytes.len() - at) as u32) as usize;
        }
        if at == bytes.len() {
            break;
        }
        let word = bytes.get(at..at + 8).filter(|_| skips);
        let word = word.map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes")));
        if word.is_some_and(|word| pending.skip(word, names)) {
            at += 8;
            continue;
        }
        at += 1;
        if take(&mut pending, bytes[at - 1], names) {
            break;
        }
    }
    (pending, at)
}

fn address(text: &str) -> Option<Address> {
    let is_port = |port: &str| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if let Some((v6, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let known = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return v6.parse().ok().map(IpAddr::V6).map(Address::from).filter(|_| known);
    }
    let ported = || text.split_once(':').filter(|(_, port)| is_port(port));
    let v4 = || ported().and_then(|(v4, _)| v4.parse().ok()).map(IpAddr::V4);
    text.parse().ok().or_else(v4).map(Address::from)
}

/// Return the client that one header's lines name:
/// outer `None` without a list, inner `None` for a client that cannot be believed.
fn list(head: &str, name: &str) -> Option<Option<Address>> {
    let (mut items, mut folded, mut ours) = (Vec::new(), false, false);
    // Skip the request line, and the last piece, which has no end yet.
    let lines: Vec<&str> = head.split('\n').collect();
    for line in &lines[1..lines.len() - 1] {
        if line.starts_with([' ', '\t']) {
            folded |= ours;
            continue;
        }
        let value = line.split_once(':').filter(|(found, _)| found.eq_ignore_ascii_case(name));
        ours = value.is_some();
        if let Some((_, value)) = value {
            let blank = [' ', '\t', '\r'];
            let trimmed = value.split(',').map(|item| item.trim_matches(blank));
            items.extend(trimmed.filter(|item| !item.is_empty()).map(address));
        }
    }
    if folded {
        return Some(None);
    }
    let known: Vec<Address> = items.iter().rev().map_while(|item| *item).collect();
    let client = known.iter().find(|address| !trusts(address)).or(known.first());
    // An address that is no proxy's may be anywhere right of what is no address.
    (!items.is_empty()).then_some(client.copied())
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, bytes)) = data.split_first() else { return };
    let (forwarded, preface) = (flags & 1 != 0, flags & 2 != 0);
    let mut names = HeaderNames::usual();
    if !forwarded {
        names.set(0, OTHER);
    }
    let (skipping, over) = read(bytes, &names, preface, true);
    let (plain, end) = read(bytes, &names, preface, false);
    // A head ends only at a byte that was taken singly, so both end at the same byte.
    assert_eq!(over, end);
    assert_eq!(skipping.head.found, plain.head.found);
    assert_eq!(skipping.client.claimed(), plain.client.claimed());
    let (skipped, taken) = (&skipping.client.preface, &plain.client.preface);
    assert_eq!((skipped.is_over(), skipped.client), (taken.is_over(), taken.client));
    assert!(!taken.is_over() || skipped == taken);

    let stranger: Address = IpAddr::from([192, 0, 2, 1]).into();
    let client = plain.client.client(&stranger, 1, &trusts);
    assert!(client.identity == identity::PEER && client.address == stranger);
    if forwarded || preface || plain.head.found & END == 0 {
        return;
    }
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return };
    let expected = match (list(head, OTHER), list(head, X_FORWARDED_FOR)) {
        (None, said) | (said, None) => said,
        (Some(Some(one)), Some(Some(other))) if one == other => Some(Some(one)),
        _ => Some(None),
    };
    assert_eq!(plain.client.claimed(), expected, "{head:?}");
});
