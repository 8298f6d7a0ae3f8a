//! IP and Ethernet: what they do to a segment before TCP gets it.
use std::{ops::Range, slice, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    capture::Capture,
    ip::{self, header},
    netns::Family,
    raw_tcp::RawTcp,
};

use crate::{
    attacker::{Attacker, TEXT, header as frame_header, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const ALL: Reached = Reached::Exactly(PINGS as u64);
const SOME: Reached = Reached::AtMost(PINGS as u64);
const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
/// Ethernet type of a VLAN tag (802.1Q), and identifier 0: a priority tag.
const PRIORITY: (u16, u16) = (0x8100, 0);

/// Send the next bytes in the frames of `wrap`; repeat as TCP would.
fn push(
    tcp: &mut RawTcp,
    bytes: &[u8],
    wrap: impl Fn(Vec<u8>) -> Result<Vec<Vec<u8>>>,
) -> Result<bool> {
    let packet = tcp.segment(0, bytes);
    tcp.advance(bytes.len());
    for _ in 0..4 {
        for frame in wrap(tcp.frame(&tcp.again(&packet))?)? {
            tcp.send_frame(&frame)?;
        }
        if tcp.wait(Duration::from_millis(300), |tcp| tcp.unacknowledged() <= 0)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Send all pings in one segment, wrapped in this way.
fn wrapped(attacker: &Attacker, wrap: impl Fn(Vec<u8>) -> Result<Vec<Vec<u8>>>) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    push(&mut tcp, &pings(PINGS), wrap)?;
    one(tcp)
}

/// Cut the segment into fragments with these ends, and one for the rest.
fn cut(frame: &[u8], ends: &[usize]) -> Result<Vec<Vec<u8>>> {
    let all = ip::carried(frame)?;
    let mut from = 0;
    let mut parts: Vec<Range<usize>> = Vec::new();
    for end in ends.iter().copied().chain([all]) {
        parts.push(from..end);
        from = end;
    }
    ip::fragment(frame, fastrand::u16(..), &parts)
}

fn two_fragments(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| cut(&frame, &[400]))
}

/// Ports and sequence number in one fragment, the rest of the header in another.
fn tiny_first_fragment(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| cut(&frame, &[8, 16, 40]))
}

fn last_fragment_first(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| {
        let mut parts = cut(&frame, &[400])?;
        parts.reverse();
        Ok(parts)
    })
}

/// Two fragments that disagree about the same bytes (RFC 5722 forbids them).
fn overlapping_fragments(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| {
        let all = ip::carried(&frame)?;
        let mut other = frame.clone();
        let at = other.len() - all;
        other[at + 80..].fill(0);
        let id = fastrand::u16(..);
        let (first, second) = (0..160, 80..all);
        let mut parts = ip::fragment(&other, id, slice::from_ref(&first))?;
        parts.extend(ip::fragment(&frame, id, slice::from_ref(&second))?);
        Ok(parts)
    })
}

/// A flow kept out of sync on purpose:
/// bytes that the guard did not see, then segments that each begin inside a frame.
fn kept_out_of_step(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut first = TEXT.to_vec();
    first.extend(frame_header(8));
    push(&mut tcp, &first, |frame| cut(&frame, &[32]))?;
    for _ in 0..PINGS / 10 {
        // The rest of a frame, which looks like no header; pings; and the start of the next frame.
        let mut bytes = vec![0xFF; 8];
        bytes.extend(pings(10));
        bytes.extend(frame_header(8));
        if !try_all(&mut tcp, &bytes)? {
            break;
        }
    }
    one(tcp)
}

fn atomic_fragment(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| Ok(vec![ip::extend(&frame, &[(header::FRAGMENT, 8)])?]))
}

fn five_extension_headers(attacker: &Attacker) -> Result<Peers> {
    let chain = [
        (header::HOP_BY_HOP, 8),
        (header::DESTINATION, 64),
        (header::ROUTING, 8),
        (header::FRAGMENT, 8),
        (header::DESTINATION, 16),
    ];
    wrapped(attacker, |frame| Ok(vec![ip::extend(&frame, &chain)?]))
}

fn twenty_extension_headers(attacker: &Attacker) -> Result<Peers> {
    let chain = [(header::DESTINATION, 8); 20];
    wrapped(attacker, |frame| Ok(vec![ip::extend(&frame, &chain)?]))
}

fn long_extension_header(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| Ok(vec![ip::extend(&frame, &[(header::DESTINATION, 768)])?]))
}

fn ip_options(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut segment = tcp.segment(0, pings(PINGS));
    // No-operation, RFC 791, 3.1.
    segment.ip_options = vec![1; 40];
    ensure!(crate::attacker::persist(&mut tcp, &segment)?, "the server does not take it");
    one(tcp)
}

fn tagged<const N: usize>(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| Ok(vec![ip::tag(&frame, &[PRIORITY; N])?]))
}

/// Bytes behind the IP packet that look like a header, as in short Ethernet frames.
fn trailer(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    push(&mut tcp, &TEXT, |mut frame| {
        frame.extend(frame_header(60_000));
        Ok(vec![frame])
    })?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A jumbogram's payload length of 0 in a packet that is not one (RFC 2675).
fn no_payload_length(attacker: &Attacker) -> Result<Peers> {
    wrapped(attacker, |frame| {
        let mut frame = ip::extend(&frame, &[(header::HOP_BY_HOP, 8)])?;
        frame[ip::ETHERNET + 4..ip::ETHERNET + 6].fill(0);
        Ok(vec![frame])
    })
}

/// Packets in VLANs that the server is not in.
/// Where the kernel has no 8021q, no host is. A packet socket behind the guard sees what arrives on
/// the interface.
fn in_a_vlan<const N: usize>(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    try_all(&mut tcp, &pings(PINGS - 1))?;
    let mut tap = Capture::new(&attacker.stage.pair.server)?;
    let last = tcp.segment(0, pings(1));
    let tags = [(0x88A8, 5), (0x8100, 6)];
    tcp.send_frame(&ip::tag(&tcp.frame(&last)?, &tags[2 - N..])?)?;
    let seen = tap.next(Duration::from_secs(1), |s| s.seq == last.seq && !s.payload.is_empty())?;
    let seen = seen.context("nothing arrives")?;
    // FIN and PONG (RFC 6455, 5.2).
    ensure!(seen.payload[0] == 0x8A, "it is not defused: {seen:?}");
    try_all(&mut tcp, &pings(1))?;
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new("two_fragments", SOME, two_fragments),
    Row::new("tiny_first_fragment", SOME, tiny_first_fragment).only(V4),
    // IPv6 discards it (RFC 7112).
    Row::new("tiny_first_fragment", SOME, tiny_first_fragment).only(V6),
    Row::new("last_fragment_first", SOME, last_fragment_first),
    Row::new("overlapping_fragments", SOME, overlapping_fragments),
    Row::new("kept_out_of_step", SOME, kept_out_of_step),
    Row::new("atomic_fragment", ALL, atomic_fragment).only(V6),
    Row::new("five_extension_headers", ALL, five_extension_headers).only(V6),
    Row::new("twenty_extension_headers", SOME, twenty_extension_headers).only(V6),
    Row::new("long_extension_header", ALL, long_extension_header).only(V6),
    Row::new("no_payload_length", SOME, no_payload_length).only(V6),
    Row::new("trailer", ALL, trailer),
    Row::new("ip_options", ALL, ip_options).only(V4),
    Row::new("priority_tag", ALL, tagged::<1>),
    Row::new("two_priority_tags", ALL, tagged::<2>),
];

/// Rows with packets as XDP sees them.
/// Before TC, the kernel has removed tags, and packet sockets have had their copies.
pub const AT_XDP: &[Row] = &[
    Row::new("three_priority_tags", SOME, tagged::<3>),
    Row::new("in_a_vlan", ALL, in_a_vlan::<1>),
    Row::new("in_two_vlans", ALL, in_a_vlan::<2>),
];
pub const AT_TC: &[Row] = &[Row::new("three_priority_tags", SOME, tagged::<3>)];
