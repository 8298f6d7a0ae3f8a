//! TCP checksum of a changed segment.

use ws_guard_common::maps::Address;

use crate::packet::Segment;

const IPPROTO_TCP: u32 = 6;

/// New value of a checksum field that held `old`, after the sum of the segment's 16-bit words grew
/// by `added`; `None` to leave it alone.
///
/// An outer checksum, of a tunnel around the segment, stays right: the change of this field cancels
/// that of the data.
#[inline(always)]
pub fn updated(old: u16, segment: &Segment, added: u32) -> Option<u16> {
    // Only the pseudo header's sum: hardware or a later step completes it.
    if old == pseudo_sum(segment) {
        return None;
    }
    // RFC 1624, equation 3.
    Some(!fold(u32::from(!old) + added))
}

/// Growth of the sum after `even` and `odd` bytes at such offsets were raised by one: 0x9 became
/// 0xA.
#[inline(always)]
pub const fn raised(even: u32, odd: u32) -> u32 {
    (even << 8) + odd
}

/// Growth of the sum, in ones' complement, after a word changed from `old` to `new`.
#[inline(always)]
pub const fn changed(old: u16, new: u16) -> u32 {
    !old as u32 + new as u32
}

/// Sum of a segment's pseudo header, folded, not complemented: the content of the checksum field
/// until hardware or a segmentation step completes it.
#[inline(always)]
fn pseudo_sum(segment: &Segment) -> u16 {
    let words = |address: &Address| {
        let mut sum = 0;
        let mut i = 0;
        // Of a mapped IPv4 address only the last word is in the real pseudo header.
        while i < 4 {
            let word = u32::from_be(address.0[i]);
            sum += if i == 3 || !address.is_v4() { (word >> 16) + (word & 0xFFFF) } else { 0 };
            i += 1;
        }
        sum
    };
    fold(words(&segment.key.client) + words(&segment.key.server) + IPPROTO_TCP + segment.tcp_len())
}

/// Ones' complement sum of the halves.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xFFFF);
    ((sum >> 16) + (sum & 0xFFFF)) as u16
}
