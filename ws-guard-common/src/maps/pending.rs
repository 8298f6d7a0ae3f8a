//! Requests without an answer.

use crate::{
    frame::{FIN, MASK, OPCODE, RSV, RSV1, opcode},
    handshake,
};

mod pieces;

pub use pieces::{Digest, PIECES, Piece, Pieces};

/// [`Pending::flags`]: the request's head is longer than [`crate::handshake::MAX_HEAD`], so that
/// its end is unknown.
pub const LOST: u8 = 1 << 0;

/// [`Pending::flags`]: on a TLS port, the header of the PROXY protocol is incomplete.
pub const PREFACE: u8 = 1 << 1;

/// [`Pending::flags`]: the request took too long to read ([`Pending::patience`]): from then on only
/// the end of its head is read, not its client.
pub const HEAD_ONLY: u8 = 1 << 2;

/// [`Pending::flags`]: the server has answered something since the request for an upgrade is whole. It
/// may have refused it, or be answering an earlier request: the client's next bytes tell
/// ([`is_frame`]).
pub const ANSWERED: u8 = 1 << 3;

/// [`Pending::flags`]: it begins anew, in other cuts. If the server has some of its former bytes after all,
/// it reads another request.
pub const RESTARTED: u8 = 1 << 4;

/// Budget for the head of a request that may be spoofed, once its client is no longer read.
const SPOOFED_HEAD: u32 = 300;

/// Check whether a client's frame may begin with these two bytes (RFC 6455, 5.2), the first one in
/// the high byte. No method of HTTP does (RFC 9110, 9.1).
#[inline(always)]
pub const fn is_frame(word: u16) -> bool {
    let (first, second) = ((word >> 8) as u8, word as u8);
    let control = opcode::is_control(first & OPCODE);
    let allowed = if control { 0 } else { RSV1 };
    second & MASK != 0
        && !opcode::is_reserved(first & OPCODE)
        && first & RSV & !allowed == 0
        && (!control || first & FIN != 0)
}

/// Request without an answer so far: value of [`super::name::PENDING`] and [`super::name::PROVEN`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Pending {
    /// Scanner of the request's head.
    pub head: handshake::HeadScanner,
    /// Scanner of a 101's head that spans segments.
    pub answer: handshake::HeadScanner,
    /// Sequence number of the next byte to read.
    pub next: u32,
    /// Bytes of the head so far.
    pub length: u32,
    /// [`LOST`], [`PREFACE`], [`HEAD_ONLY`], [`ANSWERED`], [`RESTARTED`].
    pub flags: u8,
    /// Programs that read the request, one of [`owner`](crate::flow::owner).
    pub owner: u8,
    /// Not 0: the client has answered the server's SYN-ACK or the server has sent data, so that the
    /// client's address is not spoofed.
    pub real: u8,
    pub _pad: u8,
    /// Bytes of the 101's head so far; 0 when there is no unfinished one.
    pub answer_length: u32,
    /// Sequence number of its next byte.
    pub answer_next: u32,
    /// Acknowledgement number of the request's latest segment that was read.
    pub claimed: u32,
    /// Reader for the identity of the request's client.
    pub client: crate::forwarded::ClientReader,
    /// On a TLS port: tracker of the client's records.
    pub records: crate::tracker::Tracker,
    /// Its latest segments, or those of the one before.
    pub pieces: Pieces,
}

impl Pending {
    /// End the request. The preface of the first one is kept, and so are the latest one's segments.
    #[inline(always)]
    pub fn end(&mut self) {
        self.head = Default::default();
        self.length = 0;
        self.answer_length = 0;
        self.flags = 0;
        self.client.next_request();
    }

    /// Begin a request.
    #[inline(always)]
    pub fn begin(&mut self) {
        let answer_length = self.answer_length;
        self.end();
        self.answer_length = answer_length;
        self.pieces.count = 0;
    }

    /// Begin another request in the same segment. Where the latest one took too long to read, neither
    /// is the client of this one read.
    #[inline(always)]
    pub fn begin_next(&mut self) {
        let gave_up = self.flags & HEAD_ONLY != 0;
        let restarted = self.flags & RESTARTED;
        self.begin();
        self.flags |= restarted;
        if gave_up {
            self.give_up_client();
        }
    }

    /// Take the next eight bytes of the request's head at once, the first one in the high byte, if
    /// they are irrelevant. `false` where they have to be taken one by one.
    #[inline(always)]
    pub const fn skip(&mut self, word: u64, names: &crate::forwarded::names::HeaderNames) -> bool {
        if !self.client.preface.is_over() {
            return false;
        }
        let folded = word | handshake::FOLD;
        let skips = !handshake::has_control(word)
            && self.head.skips(word, folded)
            && self.client.skips(word, folded, names);
        if skips {
            self.head.skip(word);
            self.client.skip();
        }
        skips
    }

    /// [`Pending::skip`] where only the head's end matters.
    #[inline(always)]
    pub const fn skip_head(&mut self, word: u64) -> bool {
        let folded = word | handshake::FOLD;
        let skips = !handshake::has_control(word) && self.head.skips(word, folded);
        if skips {
            self.head.skip(word);
        }
        skips
    }

    /// Stop reading the client's identity. Returns the budget for the rest of the segment, as
    /// [`Pending::patience`]; 0 where the request is not to be read further: its beginning is not
    /// certain, or it takes too long again and may be spoofed.
    #[inline(always)]
    pub fn give_up_client(&mut self) -> u32 {
        let again = self.flags & HEAD_ONLY != 0;
        self.flags |= HEAD_ONLY;
        self.client.spoil();
        match (self.real != 0, again) {
            _ if !self.client.preface.is_over() => 0,
            (true, _) => u32::MAX,
            (false, false) => SPOOFED_HEAD,
            (false, true) => 0,
        }
    }

    /// Budget of bytes of a segment's `length` to be read one by one for the client's identity; up
    /// to 64 that are skipped at once count as two. Reading one takes longer than most packets take
    /// altogether, and a spoofed request costs its sender nothing. The budget for a `trusted` proxy
    /// covers two lists of twenty hops.
    #[inline(always)]
    pub const fn patience(&self, length: u32, trusted: bool) -> u32 {
        let most = if trusted { 2048 } else { 512 };
        if self.real != 0 { most + length / 32 } else { 200 }
    }

    /// Check whether the `len` bytes at `seq` repeat a part of the unfinished 101's head.
    #[inline(always)]
    pub const fn has_of_answer(&self, seq: u32, len: u32) -> bool {
        let back = self.answer_next.wrapping_sub(seq);
        back <= self.answer_length && len <= back
    }

    /// Check whether there is a request, or the beginning of an answer.
    /// A connection without either only keeps its entry.
    #[inline(always)]
    pub const fn is_under_way(&self) -> bool {
        self.length | self.answer_length != 0
    }
}

/// Maximum of requests of proven connections.
pub const PROVEN: u32 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_method_is_a_frame() {
        for method in ["GET ", "HEAD", "POST", "PUT ", "DELETE", "OPTIONS", "PATCH", "ACL", "\r\n"]
        {
            let bytes = method.as_bytes();
            assert!(!is_frame(u16::from_be_bytes([bytes[0], bytes[1]])), "{method}");
        }
        for frame in [0x8980, 0x81FE, 0xC180, 0x0180, 0x0080, 0x8A85] {
            assert!(is_frame(frame), "{frame:#x}");
        }
        for none in [0x8900, 0x0980, 0xC980, 0xA180, 0x8380] {
            assert!(!is_frame(none), "{none:#x}");
        }
    }
}
