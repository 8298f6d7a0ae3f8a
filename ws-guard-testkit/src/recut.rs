//! What a path does to TCP segments: cuts them, puts them together, or says that they are too long.
//!
//! On whole Ethernet frames with IPv4 without options, or IPv6 without extension headers, right behind
//! the Ethernet header. All checksums are computed, whatever stood there.
use etherparse::checksum::Sum16BitWords;

use crate::ip::ETHERNET;

const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// Bytes of the two ports and two numbers that a message of ICMP has to carry of a TCP header.
const PORTS: usize = 8;

/// Where things are in a frame with a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    v6: bool,
    tcp: usize,
    payload: usize,
    end: usize,
}

impl Layout {
    /// Of a frame; none if it is no TCP segment.
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

    /// Bytes of payload.
    pub fn len(&self) -> usize {
        self.end - self.payload
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the packet, Ethernet's header not counted.
    pub fn packet(&self) -> usize {
        self.end - ETHERNET
    }

    fn seq(&self, frame: &[u8]) -> u32 {
        let at = self.tcp + 4;
        frame[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// The frame with another payload, at another place of the stream.
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

/// Source and destination.
fn addresses(frame: &[u8], v6: bool) -> Vec<u8> {
    let range = if v6 { 8..40 } else { 12..20 };
    frame[ETHERNET..][range].to_vec()
}

/// The sum of the pseudo-header; the same bytes count for both families.
fn pseudo(addresses: &[u8], protocol: u8, len: usize) -> Sum16BitWords {
    let length = (len as u32).to_be_bytes();
    Sum16BitWords::new().add_slice(addresses).add_4bytes(length).add_4bytes([0, 0, 0, protocol])
}

/// Write the sum of all from `from` on, over `begun`, to `at` behind that.
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

/// The frame, with checksums that are right.
pub fn sealed(frame: &[u8], layout: Layout) -> Vec<u8> {
    layout.with(frame, layout.seq(frame), &frame[layout.payload..layout.end])
}

/// The frame in segments of at most `longest` bytes of payload.
pub fn cut(frame: &[u8], layout: Layout, longest: usize) -> Vec<Vec<u8>> {
    let payload = &frame[layout.payload..layout.end];
    let seq = layout.seq(frame);
    let parts = payload.chunks(longest.max(1)).enumerate();
    parts
        .map(|(n, part)| layout.with(frame, seq.wrapping_add((n * longest) as u32), part))
        .collect()
}

/// Both in one, if the second follows the first and the packet has no more than `longest` bytes then.
pub fn merge(first: &[u8], second: &[u8], longest: usize) -> Option<Vec<u8>> {
    let (one, two) = (Layout::of(first)?, Layout::of(second)?);
    let follows = one.seq(first).wrapping_add(one.len() as u32) == two.seq(second);
    let alike = one.v6 == two.v6 && addresses(first, one.v6) == addresses(second, two.v6);
    let ports = first[one.tcp..one.tcp + 4] == second[two.tcp..two.tcp + 4];
    if !(follows && alike && ports) || one.packet() + two.len() > longest {
        return None;
    }
    let payload = [&first[one.payload..one.end], &second[two.payload..two.end]].concat();
    // The second one's header: it has the later acknowledgement.
    Some(two.with(second, one.seq(first), &payload))
}

/// What a router says that cannot send the frame on, because its next link takes `mtu` bytes at most.
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
