//! Connections without a flow: requests without an answer, and candidates for midstream pickup.

use crate::{
    handshake,
    seq::{after, later},
};

/// [`Pending::flags`]: the request's head is longer than [`crate::handshake::MAX_HEAD`], so that
/// its end is unknown.
pub const LOST: u8 = 1 << 0;

/// [`Pending::flags`]: on a TLS port, the header of the PROXY protocol is incomplete.
pub const PREFACE: u8 = 1 << 1;

/// [`Pending::flags`]: the request took too long to read ([`Pending::patience`]): from then on only
/// the end of its head is read, not its client.
pub const HEAD_ONLY: u8 = 1 << 2;

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
    /// [`LOST`], [`PREFACE`], [`HEAD_ONLY`].
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
}

impl Pending {
    /// End the request. The preface of the first one is kept.
    #[inline(always)]
    pub fn end(&mut self) {
        self.begin();
        self.answer_length = 0;
    }

    /// Begin a request.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.head = Default::default();
        self.length = 0;
        self.flags = 0;
        self.client.next_request();
    }

    /// Take the next eight bytes of the request's head at once, the first one in the high byte, if
    /// they are irrelevant. `false` where they have to be taken one by one.
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

    /// [`Pending::skip`] where only the head's end matters.
    #[inline(always)]
    pub const fn skip_head(&mut self, word: u64) -> bool {
        let folded = word | handshake::FOLD;
        let skips = !handshake::has_line_end(word) && self.head.skips(folded);
        if skips {
            self.head.skip();
        }
        skips
    }

    /// Stop reading the client's identity.
    /// `false` where the beginning of the request is not certain.
    #[inline(always)]
    pub fn give_up_client(&mut self) -> bool {
        self.flags |= HEAD_ONLY;
        self.client.spoil();
        self.client.preface.is_over()
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

/// Beginning of a connection, by the server's SYN-ACK.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Beginning {
    /// Sequence number of the client's first byte.
    pub client_next: u32,
    /// Sequence number of the server's first byte.
    pub server_next: u32,
    /// Scale of the server's windows, encoded as in [`crate::pace::scale`].
    pub scale: u8,
    pub _pad: [u8; 3],
}

/// Stage of a connection without a flow.
pub mod stage {
    /// The server has sent no data.
    pub const SILENT: u8 = 0;
    /// It has.
    pub const SPOKEN: u8 = 1;
    /// Its 101 was dropped: the client has no answer yet, and nothing to say.
    pub const REFUSED: u8 = 2;
}

/// Connection without a flow, since its beginning: value of [`super::name::BEGINNINGS`].
///
/// The client's bytes are followed far enough to know that nothing has passed ahead of a request.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Unopened {
    pub began: Beginning,
    /// End of the client's bytes that the server has acknowledged.
    pub acked: u32,
    /// The same when the server last sent data: the next request begins there or later.
    pub answered: u32,
    /// End of the client's bytes that passed.
    pub high: u32,
    /// End of the server's bytes that were sent.
    pub server_high: u32,
    /// Generation of the policy under which the connection was followed last.
    pub generation: u32,
    /// One of [`stage`].
    pub stage: u8,
    pub _pad: [u8; 3],
}

/// Distance that honest segments and acknowledgements keep within.
const FAR: u32 = 1 << 24;

/// Answers of [`Unopened::judge`].
pub mod judged {
    /// The segment must not pass.
    pub const REFUSED: u32 = 0;
    /// It passes.
    pub const PASSES: u32 = 1;
    /// It passes, and a request may begin with it.
    pub const BEGINS: u32 = 2;
}

impl Unopened {
    #[inline(always)]
    pub const fn new(began: Beginning, generation: u32) -> Unopened {
        let (first, server_high) = (began.client_next, began.server_next);
        let (acked, answered, high) = (first, first, first);
        let (stage, _pad) = (stage::SILENT, [0; 3]);
        Unopened { began, acked, answered, high, server_high, generation, stage, _pad }
    }

    /// Judge a client's segment: one of [`judged`].
    ///
    /// It has to acknowledge what the server sent not long ago, and to end not far past what the server
    /// has. The first bytes after the server's data come in order: past a gap, the server would get
    /// frames ahead of the request that fills it. And a request begins at the first byte that the
    /// server does not have, or that has not passed.
    #[inline(always)]
    pub const fn judge(&self, seq: u32, len: u32, ack: u32) -> u32 {
        let sent = self.server_high.wrapping_sub(self.began.server_next);
        let back = if sent < FAR { sent } else { FAR };
        let forged = self.server_high.wrapping_sub(ack) > back;
        let far = seq.wrapping_add(len).wrapping_sub(self.acked) as i32 > FAR as i32;
        let ahead = after(seq, self.acked) && !after(self.high, self.answered);
        if forged || far || ahead || self.stage == stage::REFUSED {
            judged::REFUSED
        } else if seq == self.acked || seq == self.high {
            judged::BEGINS
        } else {
            judged::PASSES
        }
    }

    /// Note that a segment passes.
    #[inline(always)]
    pub const fn pass(&mut self, seq: u32, len: u32) {
        self.high = later(self.high, seq.wrapping_add(len));
    }

    /// Check whether more has passed than a request that ends at `end`: frames, before any answer.
    #[inline(always)]
    pub const fn passed_beyond(&self, end: u32) -> bool {
        after(self.high, end)
    }

    /// Take over a server's segment that ends at `end`; it `speaks` where it has data or a FIN.
    /// What passed under another policy was not followed: the connection is followed anew from here.
    #[inline(always)]
    pub const fn acknowledge(&mut self, ack: u32, end: u32, speaks: bool, generation: u32) {
        if self.generation != generation {
            self.generation = generation;
            (self.acked, self.high, self.server_high) = (ack, ack, end);
        }
        self.acked = later(self.acked, ack);
        self.server_high = later(self.server_high, end);
        if !speaks {
            return;
        }
        self.answered = self.acked;
        if self.stage == stage::SILENT {
            self.stage = stage::SPOKEN;
        }
    }
}

/// Maximum of [`Unopened`]s.
pub const BEGINNINGS: u32 = 16_384;

/// An untrusted peer whose requests carry forwarding headers: value of [`super::name::SUSPECTS`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Suspect {
    /// Time of the latest such request, ns of CLOCK_MONOTONIC (coarse).
    pub last_ns: u64,
    /// Time when the suspicion was reported, the same clock; 0 if it was not.
    pub told_ns: u64,
    /// Bit `n`: a client whose address hashes to `n` was named.
    pub clients: u64,
    /// Such requests so far.
    pub requests: u64,
    /// Scope of the latest one.
    pub scope: u32,
    pub _pad: u32,
}

/// Maximum of [`Suspect`]s.
pub const SUSPECTS: u32 = 1024;

/// Number of clients that make a peer a suspected proxy.
pub const SUSPICIOUS_CLIENTS: u32 = 8;

impl Suspect {
    /// Record that a request named `client`. `true` when the peer becomes suspected.
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

    /// Minimum number of clients named; without a loop, for the kernel's verifier.
    #[inline(always)]
    pub const fn count(&self) -> u32 {
        let mut bits = self.clients;
        bits -= bits >> 1 & 0x5555_5555_5555_5555;
        bits = (bits & 0x3333_3333_3333_3333) + (bits >> 2 & 0x3333_3333_3333_3333);
        bits = (bits + (bits >> 4)) & 0x0F0F_0F0F_0F0F_0F0F;
        (bits.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
    }
}

/// Maximum of requests of proven connections.
pub const PROVEN: u32 = 16_384;

/// Maximum of [`Stranger`]s.
pub const STRANGERS: u32 = 16_384;

/// Candidate for midstream pickup, after data of the server without a flow: value of
/// [`super::name::STRANGERS`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Stranger {
    /// Candidate for the client's next header.
    pub candidate: crate::search::Candidate,
    /// End of the client's bytes that the server has acknowledged.
    pub acked: u32,
    /// End of the server's bytes that were sent.
    pub server_high: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u32 = u32::MAX - 50;

    fn began() -> Unopened {
        let began = Beginning { client_next: FIRST, server_next: 7, ..Beginning::default() };
        Unopened::new(began, 1)
    }

    fn at(offset: u32) -> u32 {
        FIRST.wrapping_add(offset)
    }

    impl Unopened {
        fn refuses(&self, seq: u32, ack: u32) -> bool {
            self.judge(seq, 10, ack) == judged::REFUSED
        }
    }

    #[test]
    fn before_the_server_speaks_the_first_bytes_come_first() {
        let mut began = began();
        assert!(began.refuses(at(138), 7), "a gap in front");
        assert!(began.refuses(FIRST, 6) && began.refuses(FIRST, 8), "another acknowledgement");
        assert!(!began.refuses(FIRST, 7));
        began.pass(FIRST, 100);
        assert!(!began.refuses(at(200), 7), "an upload may come out of order");
        began.acknowledge(at(100), 7, false, 1);
        assert!(!began.refuses(at(200), 7), "also after a pure acknowledgement");
    }

    #[test]
    fn after_the_server_has_spoken_the_next_bytes_come_first_again() {
        let mut began = began();
        began.pass(FIRST, 100);
        began.acknowledge(at(100), 9, true, 1);
        assert!(began.refuses(at(101), 9), "a gap in front of the next request");
        assert!(
            began.refuses(at(100), 10) && began.refuses(at(100), 6),
            "never sent by the server"
        );
        assert!(!began.refuses(at(100), 7) && !began.refuses(at(50), 9));
        began.acknowledge(at(120), 9, false, 1);
        assert!(!began.refuses(at(120), 9), "the server has what is missing here");
        began.pass(at(100), 20);
        began.pass(at(120), 80);
        began.acknowledge(at(120), 11, true, 1);
        assert!(!began.refuses(at(200), 11), "under way while the server spoke");
        assert!(began.refuses(at(1 << 30), 11) && began.refuses(at(120 + FAR), 11), "too far");
    }

    #[test]
    fn a_request_begins_where_the_stream_goes_on() {
        let mut began = began();
        assert_eq!(began.judge(FIRST, 10, 7), judged::BEGINS);
        began.pass(FIRST, 100);
        assert_eq!(began.judge(at(100), 10, 7), judged::BEGINS);
        assert_eq!(began.judge(at(90), 10, 7), judged::PASSES);
        assert_eq!(began.judge(at(0u32.wrapping_sub(1 << 20)), 10, 7), judged::PASSES);
    }

    #[test]
    fn under_a_new_policy_a_connection_is_followed_anew() {
        let mut began = began();
        began.pass(FIRST, 100);
        began.acknowledge(at(100), 9, true, 1);
        began.acknowledge(at(5000), 800, true, 2);
        assert!(!began.refuses(at(5000), 800) && began.refuses(at(5001), 800));
    }

    #[test]
    fn a_request_is_late_behind_what_passed_beyond_it() {
        let mut began = began();
        began.pass(FIRST, 138);
        assert!(!began.passed_beyond(at(138)));
        assert!(began.passed_beyond(at(137)));
        began.pass(at(10), 5);
        assert_eq!(began.high, at(138));
        began.acknowledge(at(138), 9, true, 1);
        began.pass(at(138), 1 << 20);
        assert!(began.passed_beyond(at(1 << 20)));
    }

    #[test]
    fn a_refused_connection_passes_nothing() {
        let mut began = began();
        began.stage = stage::REFUSED;
        began.acknowledge(at(10), 9, true, 1);
        assert!(began.refuses(at(10), 9));
    }
}
