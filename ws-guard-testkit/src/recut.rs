//! Transformations of TCP segments on a path: cutting, merging, and MTU reports.
//!
//! On whole Ethernet frames with IPv4 without options, or IPv6 without extension headers, right
//! after the Ethernet header. All checksums are computed, whatever they were.
use etherparse::checksum::Sum16BitWords;

use crate::ip::ETHERNET;

const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// Length of a TCP header's ports and numbers, which ICMP messages have to quote.
const PORTS: usize = 8;

/// Positions in a frame with a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    v6: bool,
    tcp: usize,
    payload: usize,
    end: usize,
}

impl Layout {
    /// Determine the layout of a frame; `None` if it is not a TCP segment.
    pub fn of(frame: &[u8]) -> Option<Layout> {
        let kind = frame.get(12..14)?;
        let (v6, tcp, length) = match (kind, *frame.get(ETHERNET)?) {
            ([0x08, 0x00], 0x45) if frame.get(23) == Some(&TCP) => {
                (false, ETHERNET + IPV4, word(frame, ETHERNET + 2)?)
            }
            ([0x86, 0xDD], first) if first >> 4 == 6 && frame.get(20) == Some(&TCP) => {
                (true, ETHERNET + IPV6, word(frame, ETHERNET + 4)? + IPV6)
            }
            _ => return None,
        };
        let payload = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
        let end = ETHERNET + length;
        (payload <= end && end <= frame.len()).then_some(Layout { v6, tcp, payload, end })
    }

    /// Return the length of the payload in bytes.
    pub fn len(&self) -> usize {
        self.end - self.payload
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Return the length of the packet in bytes, without the Ethernet header.
    pub fn packet(&self) -> usize {
        self.end - ETHERNET
    }

    fn seq(&self, frame: &[u8]) -> u32 {
        let at = self.tcp + 4;
        frame[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// Build the frame with another payload, at another position in the stream.
    fn with(&self, frame: &[u8], seq: u32, payload: &[u8]) -> Vec<u8> {
        let mut made = frame[..self.payload].to_vec();
        made.extend(payload);
        made[self.tcp + 4..self.tcp + 8].copy_from_slice(&seq.to_be_bytes());
        let packet = made.len() - ETHERNET;
        if self.v6 {
            set(&mut made, ETHERNET + 4, packet - IPV6);
        } else {
            set(&mut made, ETHERNET + 2, packet);
            sum_v4(&mut made);
        }
        let (addresses, len) = (addresses(&made, self.v6), made.len() - self.tcp);
        seal(&mut made, self.tcp, 16, pseudo(&addresses, TCP, len));
        made
    }
}

fn word(frame: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?])))
}

fn set(frame: &mut [u8], at: usize, value: usize) {
    frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Return source and destination.
fn addresses(frame: &[u8], v6: bool) -> Vec<u8> {
    let range = if v6 { 8..40 } else { 12..20 };
    frame[ETHERNET..][range].to_vec()
}

/// Return the sum of the pseudo-header, whose bytes are the same for both families.
fn pseudo(addresses: &[u8], protocol: u8, len: usize) -> Sum16BitWords {
    let length = (len as u32).to_be_bytes();
    Sum16BitWords::new().add_slice(addresses).add_4bytes(length).add_4bytes([0, 0, 0, protocol])
}

/// Write the checksum from `from` on, added to `begun`, at offset `at` from there.
fn seal(frame: &mut [u8], from: usize, at: usize, begun: Sum16BitWords) {
    frame[from + at..from + at + 2].fill(0);
    let sum = begun.add_slice(&frame[from..]).ones_complement();
    frame[from + at..from + at + 2].copy_from_slice(&sum.to_ne_bytes());
}

fn sum_v4(frame: &mut [u8]) {
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum = Sum16BitWords::new().add_slice(&frame[ETHERNET..ETHERNET + IPV4]).ones_complement();
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_ne_bytes());
}

/// Return the frame with valid checksums.
pub fn sealed(frame: &[u8], layout: Layout) -> Vec<u8> {
    layout.with(frame, layout.seq(frame), &frame[layout.payload..layout.end])
}

/// Cut the frame into segments of at most `longest` bytes of payload.
pub fn cut(frame: &[u8], layout: Layout, longest: usize) -> Vec<Vec<u8>> {
    let payload = &frame[layout.payload..layout.end];
    let seq = layout.seq(frame);
    let parts = payload.chunks(longest.max(1)).enumerate();
    parts
        .map(|(n, part)| layout.with(frame, seq.wrapping_add((n * longest) as u32), part))
        .collect()
}

/// Merge two frames, if the second follows the first, into at most `longest` bytes.
pub fn merge(first: &[u8], second: &[u8], longest: usize) -> Option<Vec<u8>> {
    let (one, two) = (Layout::of(first)?, Layout::of(second)?);
    let follows = one.seq(first).wrapping_add(one.len() as u32) == two.seq(second);
    let alike = one.v6 == two.v6 && addresses(first, one.v6) == addresses(second, two.v6);
    let ports = first[one.tcp..one.tcp + 4] == second[two.tcp..two.tcp + 4];
    if !(follows && alike && ports) || one.packet() + two.len() > longest {
        return None;
    }
    let payload = [&first[one.payload..one.end], &second[two.payload..two.end]].concat();
    // The second one's header, with the later acknowledgement.
    Some(two.with(second, one.seq(first), &payload))
}

/// Build the report of a router whose next link takes at most `mtu` bytes.
pub fn too_long(frame: &[u8], layout: Layout, mtu: u16) -> Vec<u8> {
    let mut answer = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    let source = addresses(frame, layout.v6);
    let (from, to) = source.split_at(source.len() / 2);
    let quoted = &frame[ETHERNET..layout.tcp + PORTS];
    if layout.v6 {
        let len = 8 + quoted.len();
        answer.extend([0x60, 0, 0, 0, 0, len as u8, ICMPV6, 64]);
        answer.extend([to, from].concat());
        let icmp = answer.len();
        answer.extend([2, 0, 0, 0, 0, 0]);
        answer.extend(mtu.to_be_bytes());
        answer.extend(quoted);
        let begun = pseudo(&[to, from].concat(), ICMPV6, len);
        seal(&mut answer, icmp, 2, begun);
    } else {
        let length = (IPV4 + 8 + quoted.len()) as u16;
        answer.extend([0x45, 0xC0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 1, 0, 0]);
        answer.extend([to, from].concat());
        let icmp = answer.len();
        answer.extend([3, 4, 0, 0, 0, 0]);
        answer.extend(mtu.to_be_bytes());
        answer.extend(quoted);
        seal(&mut answer, icmp, 2, Sum16BitWords::new());
        sum_v4(&mut answer);
    }
    answer
}
