//! Transformations of packets by IP: fragments, extension headers, VLAN tags.
//!
//! All of it on whole Ethernet frames with IPv4 or IPv6 right after the Ethernet header, so that
//! they can be combined.
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use etherparse::checksum::Sum16BitWords;

/// Length of the Ethernet header in bytes.
pub const ETHERNET: usize = 14;
/// Length of the two addresses in it in bytes.
const ADDRESSES: usize = 12;
/// Maximum length of an IPv6 option in bytes; even, as the rest needs room for one.
const MAX_OPTION: usize = 256;
/// Length of an IPv6 header in bytes.
const IPV6: usize = 40;

/// Header types for [`extend`] (IANA, "Protocol Numbers").
pub mod header {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
}

/// Add VLAN tags to a frame, the outermost first: its Ethernet type and identifier.
pub fn tag(frame: &[u8], tags: &[(u16, u16)]) -> Result<Vec<u8>> {
    let (addresses, rest) = frame.split_at_checked(ADDRESSES).context("no Ethernet header")?;
    let mut tagged = addresses.to_vec();
    for (kind, identifier) in tags {
        tagged.extend(kind.to_be_bytes());
        tagged.extend(identifier.to_be_bytes());
    }
    tagged.extend(rest);
    Ok(tagged)
}

/// Add IPv6 extension headers between IP and its payload, by type and length.
/// The length is a multiple of 8 bytes. Options are of an experimental type; a fragment header
/// makes an atomic fragment, a routing header has no segments left.
pub fn extend(frame: &[u8], headers: &[(u8, usize)]) -> Result<Vec<u8>> {
    let (front, carried) = frame.split_at_checked(ETHERNET + IPV6).context("no IPv6 header")?;
    let mut chain = Vec::new();
    let mut carries = front[ETHERNET + 6];
    for (kind, length) in headers.iter().rev() {
        let mut header = extension(*kind, *length)?;
        header[0] = carries;
        header.extend(chain);
        (chain, carries) = (header, *kind);
    }
    let mut extended = front.to_vec();
    extended[ETHERNET + 6] = carries;
    let length = u16::try_from(chain.len() + carried.len()).context("too long for IPv6")?;
    extended[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
    extended.extend(chain);
    extended.extend(carried);
    Ok(extended)
}

/// Build an extension header; the type of its payload is left 0.
fn extension(kind: u8, length: usize) -> Result<Vec<u8>> {
    ensure!(
        length >= 8 && length.is_multiple_of(8) && length <= 2048,
        "{length} bytes of extension header"
    );
    let mut header = vec![0; length];
    header[1] = (length / 8 - 1) as u8;
    match kind {
        // Options that a node which does not know them has to skip (RFC 4727, type 0x1E). Padding
        // would do for 8 bytes only: Linux accepts no more of it in a row.
        header::HOP_BY_HOP | header::DESTINATION => {
            for option in header[2..].chunks_mut(MAX_OPTION) {
                if let [kind, bytes, rest @ ..] = option {
                    (*kind, *bytes) = (0x1E, rest.len() as u8);
                }
            }
        }
        // A fragment header of 0 is that of an atomic fragment (RFC 6946).
        header::FRAGMENT => ensure!(length == 8, "a fragment header has 8 bytes"),
        // Type 253 is for experiments (RFC 4727); without segments left it is to be ignored.
        header::ROUTING => header[2] = 253,
        other => bail!("extension header {other} is not one that can be built"),
    }
    Ok(header)
}

/// Split a frame's packet into fragments, each with its part of the IP payload.
/// All boundaries but the packet's end must be at multiples of 8. `id` distinguishes the
/// packet from others.
pub fn fragment(frame: &[u8], id: u16, parts: &[Range<usize>]) -> Result<Vec<Vec<u8>>> {
    match frame.get(ETHERNET).map(|first| first >> 4) {
        Some(4) => fragment_v4(frame, id, parts),
        Some(6) => fragment_v6(frame, id, parts),
        _ => bail!("no IP header"),
    }
}

fn fragment_v4(frame: &[u8], id: u16, parts: &[Range<usize>]) -> Result<Vec<Vec<u8>>> {
    let header = usize::from(frame[ETHERNET] & 0xF) * 4;
    let (front, carried) = frame.split_at_checked(ETHERNET + header).context("no IPv4 header")?;
    let one = |part: &Range<usize>| {
        let bytes = carried.get(part.clone()).with_context(|| format!("no bytes {part:?}"))?;
        let more = part.end < carried.len();
        let mut fragment = front.to_vec();
        let ip = &mut fragment[ETHERNET..];
        ip[2..4].copy_from_slice(&((header + bytes.len()) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        let place = (offset(part, more)? / 8) | (u16::from(more) << 13);
        ip[6..8].copy_from_slice(&place.to_be_bytes());
        ip[10..12].fill(0);
        // The library's sums are in the byte order of memory.
        let sum = Sum16BitWords::new().add_slice(ip).ones_complement();
        ip[10..12].copy_from_slice(&sum.to_ne_bytes());
        fragment.extend(bytes);
        Ok(fragment)
    };
    parts.iter().map(one).collect()
}

fn fragment_v6(frame: &[u8], id: u16, parts: &[Range<usize>]) -> Result<Vec<Vec<u8>>> {
    let (front, carried) = frame.split_at_checked(ETHERNET + IPV6).context("no IPv6 header")?;
    let one = |part: &Range<usize>| {
        let bytes = carried.get(part.clone()).with_context(|| format!("no bytes {part:?}"))?;
        let more = part.end < carried.len();
        let mut whole = front.to_vec();
        whole.extend(bytes);
        let mut fragment = extend(&whole, &[(header::FRAGMENT, 8)])?;
        let place = offset(part, more)? | u16::from(more);
        fragment[ETHERNET + IPV6 + 2..][..2].copy_from_slice(&place.to_be_bytes());
        fragment[ETHERNET + IPV6 + 6..][..2].copy_from_slice(&id.to_be_bytes());
        Ok(fragment)
    };
    parts.iter().map(one).collect()
}

/// Return a fragment's offset in bytes.
fn offset(part: &Range<usize>, more: bool) -> Result<u16> {
    ensure!(
        part.start.is_multiple_of(8),
        "a fragment starts at a multiple of 8, not at {}",
        part.start
    );
    ensure!(
        !more || part.end.is_multiple_of(8),
        "a fragment ends at a multiple of 8, not at {}",
        part.end
    );
    u16::try_from(part.start).context("too far for a fragment")
}

/// Return the number of bytes after a frame's IP header.
pub fn carried(frame: &[u8]) -> Result<usize> {
    let header = match frame.get(ETHERNET) {
        Some(first) if first >> 4 == 4 => usize::from(first & 0xF) * 4,
        Some(first) if first >> 4 == 6 => IPV6,
        _ => bail!("no IP header"),
    };
    frame.len().checked_sub(ETHERNET + header).context("cut short")
}

/// Break the header checksum of an IPv4 frame, so that IP discards it.
pub fn break_header(frame: &mut [u8]) -> Result<()> {
    ensure!(frame.get(ETHERNET).is_some_and(|first| first >> 4 == 4), "only IPv4 has one");
    frame[ETHERNET + 10] ^= 0x55;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{Packet, checksum_is_right};

    fn frame(from: &str, to: &str) -> Vec<u8> {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Packet::new(from, to, 1, 2, b"some bytes to cut".to_vec()).build().unwrap()
    }

    /// The library reassembles the original packet from the parts.
    #[test]
    fn fragments_are_the_packet() {
        for (from, to) in [("10.1.0.1:1", "10.1.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let whole = frame(from, to);
            let all = carried(&whole).unwrap();
            let parts = fragment(&whole, 7, &[0..8, 8..24, 24..all]).unwrap();
            let mut together: Vec<u8> = Vec::new();
            for (n, part) in parts.iter().enumerate() {
                let sliced = etherparse::SlicedPacket::from_ethernet(part).unwrap();
                let payload = sliced.net.as_ref().unwrap().ip_payload_ref().unwrap();
                assert!(payload.fragmented, "{from}, part {n}");
                together.extend(payload.payload);
            }
            assert_eq!(together, whole[whole.len() - all..], "{from}");
        }
    }

    #[test]
    fn extension_headers_leave_the_segment_as_it_is() {
        let whole = frame("[fd00::1]:1", "[fd00::2]:2");
        let chain = [(header::HOP_BY_HOP, 8), (header::DESTINATION, 512), (header::FRAGMENT, 8)];
        let extended = extend(&whole, &chain).unwrap();
        assert_eq!(extended.len(), whole.len() + 528);
        assert!(checksum_is_right(&extended).unwrap());
    }

    #[test]
    fn tags_stand_before_the_type() {
        let whole = frame("10.1.0.1:1", "10.1.0.2:2");
        let tagged = tag(&whole, &[(0x88A8, 5), (0x8100, 6)]).unwrap();
        assert_eq!(tagged[12..22], [0x88, 0xA8, 0, 5, 0x81, 0, 0, 6, 8, 0]);
        assert!(checksum_is_right(&tagged).unwrap());
    }
}
