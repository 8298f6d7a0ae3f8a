//! Connections that are no flows yet: requests without an answer, and streams that nobody saw begin.

use crate::handshake;

/// [`Pending::flags`]: the request's head is longer than [`crate::handshake::MAX_HEAD`], so that it is not
/// known where it ends.
pub const LOST: u8 = 1 << 0;

/// [`Pending::flags`]: on a TLS port: the header of the PROXY protocol has not come to its end.
pub const PREFACE: u8 = 1 << 1;

/// [`Pending::flags`]: the request took too long to read ([`Pending::patience`]): only where its head ends is
/// read from then on, and not who its client is.
pub const HEAD_ONLY: u8 = 1 << 2;

/// A request whose answer has not been seen: value of [`super::name::PENDING`] and
/// [`super::name::PROVEN`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Pending {
    /// How far the request's head was read.
    pub head: handshake::HeadScanner,
    /// How far the head of a 101 was read that one segment does not hold.
    pub answer: handshake::HeadScanner,
    /// Sequence number of the next byte to read.
    pub next: u32,
    /// Bytes of the head so far.
    pub length: u32,
    /// [`LOST`], [`PREFACE`], [`HEAD_ONLY`].
    pub flags: u8,
    /// Whose programs read the request, one of [`owner`](crate::flow::owner).
    pub owner: u8,
    /// Not 0: the client has answered the server's SYN-ACK or the server has sent data, so that the
    /// client's address is no made up one.
    pub real: u8,
    pub _pad: u8,
    /// Bytes of the 101's head so far; 0 when there is no unfinished one.
    pub answer_length: u32,
    /// Sequence number of its next byte.
    pub answer_next: u32,
    /// Acknowledgement number of the latest segment that was read of the request.
    pub claimed: u32,
    /// Who the request comes from, as far as it was read.
    pub client: crate::forwarded::ClientReader,
    /// On a TLS port: where the client's records stand, as far as they were followed.
    pub records: crate::tracker::Tracker,
}

impl Pending {
    /// There is no request any more. What came in front of the first one is kept.
    #[inline(always)]
    pub fn end(&mut self) {
        self.begin();
        self.answer_length = 0;
    }

    /// A request begins.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.head = Default::default();
        self.length = 0;
        self.flags = 0;
        self.client.next_request();
    }

    /// Take the next eight bytes of the request's head at once, the first one in the high byte, where
    /// nothing in them matters. `false` where they have to be taken one by one.
    #[inline(always)]
    pub const fn skip(&mut self, word: u64, names: &crate::forwarded::names::HeaderNames) -> bool {
        if !self.client.preface.is_over() {
            return false;
        }
        let folded = word | handshake::FOLD;
        let skips = !handshake::has_line_end(word)
            && self.head.skips(folded)
            && self.client.skips(word, folded, names);
        if skips {
            self.head.skip();
            self.client.skip();
        }
        skips
    }

    /// [`Pending::skip`] where only the head's end is looked for.
    #[inline(always)]
    pub const fn skip_head(&mut self, word: u64) -> bool {
        let folded = word | handshake::FOLD;
        let skips = !handshake::has_line_end(word) && self.head.skips(folded);
        if skips {
            self.head.skip();
        }
        skips
    }

    /// Who the client is is not read any more. `false` where the beginning of the request is not certain.
    #[inline(always)]
    pub fn give_up_client(&mut self) -> bool {
        self.flags |= HEAD_ONLY;
        self.client.spoil();
        self.client.preface.is_over()
    }

    /// How many bytes of a segment's `length` are read one by one at most to know the client; up to 64 that
    /// are skipped at once count as two. Reading one takes longer than most packets take altogether, and a
    /// request in a made-up name costs its sender nothing. Of a `trusted` proxy there is room for two lists of
    /// twenty hops.
    #[inline(always)]
    pub const fn patience(&self, length: u32, trusted: bool) -> u32 {
        let most = if trusted { 1536 } else { 480 };
        if self.real != 0 { most + length / 32 } else { 96 }
    }

    /// The `len` bytes at `seq` are some of the unfinished 101's head that came already.
    #[inline(always)]
    pub const fn has_of_answer(&self, seq: u32, len: u32) -> bool {
        let back = self.answer_next.wrapping_sub(seq);
        back <= self.answer_length && len <= back
    }

    /// There is a request, or the beginning of an answer. A connection without either keeps its place
    /// only.
    #[inline(always)]
    pub const fn is_under_way(&self) -> bool {
        self.length | self.answer_length != 0
    }
}

/// Where a connection begins, by the server's SYN-ACK: value of [`super::name::BEGINNINGS`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Beginning {
    /// Sequence number of the client's first byte.
    pub client_next: u32,
    /// Sequence number of the server's first byte.
    pub server_next: u32,
    /// What shifts the server's windows, as [`crate::pace::scale`] keeps it.
    pub scale: u32,
}

/// How many [`Beginning`]s are kept at most.
pub const BEGINNINGS: u32 = 16_384;

/// An untrusted peer whose requests carry forwarding headers: value of [`super::name::SUSPECTS`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Suspect {
    /// When the latest such request came, nanoseconds of CLOCK_MONOTONIC (coarse).
    pub last_ns: u64,
    /// When it was told of as suspected, the same clock; 0 while it is not.
    pub told_ns: u64,
    /// Bit `n`: a client whose address hashes to `n` was named.
    pub clients: u64,
    /// Such requests so far.
    pub requests: u64,
    /// The scope of the latest one.
    pub scope: u32,
    pub _pad: u32,
}

/// How many [`Suspect`]s are kept at most.
pub const SUSPECTS: u32 = 1024;

/// So many clients make a peer a suspected proxy.
pub const SUSPICIOUS_CLIENTS: u32 = 8;

impl Suspect {
    /// A request named `client`. `true` when the peer is suspected from now on.
    #[inline(always)]
    pub fn named(&mut self, client: &super::Address, now: u64) -> bool {
        let [a, b, c, d] = client.0;
        let mixed = (a ^ b.rotate_left(11) ^ c.rotate_left(22) ^ d).wrapping_mul(0x9E37_79B1);
        self.clients |= 1 << (mixed >> 26);
        self.requests += 1;
        self.last_ns = now;
        let new = self.told_ns == 0 && self.count() >= SUSPICIOUS_CLIENTS;
        if new {
            self.told_ns = now;
        }
        new
    }

    /// How many clients were named, at least; by loops of a fixed length, for the kernel's verifier.
    #[inline(always)]
    pub const fn count(&self) -> u32 {
        let mut bits = self.clients;
        bits -= bits >> 1 & 0x5555_5555_5555_5555;
        bits = (bits & 0x3333_3333_3333_3333) + (bits >> 2 & 0x3333_3333_3333_3333);
        bits = (bits + (bits >> 4)) & 0x0F0F_0F0F_0F0F_0F0F;
        (bits.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
    }
}

/// How many requests of connections are kept at most that the server has spoken on.
pub const PROVEN: u32 = 16_384;

/// How many [`Stranger`]s there are at most.
pub const STRANGERS: u32 = 16_384;

/// A connection without a flow on which the server sent data: value of the strangers' table.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Stranger {
    /// Where the client's next header may be.
    pub candidate: crate::search::Candidate,
    /// The client's bytes up to here were acknowledged by the server.
    pub acked: u32,
    /// The server's bytes up to here were sent.
    pub server_high: u32,
}
