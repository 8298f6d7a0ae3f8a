//! Connections that are no flows yet: requests without an answer, and streams that nobody saw begin.

/// [`Pending::flags`]: the request's head is longer than [`crate::handshake::MAX_HEAD`], so that
/// nobody knows where it ends.
pub const LOST: u8 = 1 << 0;

/// A request whose answer has not been seen: value of [`super::name::PENDING`] and
/// [`super::name::PROVEN`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Pending {
    /// How far the request's head was read.
    pub head: crate::handshake::HeadScanner,
    /// How far the head of a 101 was read that one segment does not hold.
    pub answer: crate::handshake::HeadScanner,
    /// Sequence number of the next byte to read.
    pub next: u32,
    /// Bytes of the head so far.
    pub length: u32,
    /// [`LOST`] or 0.
    pub flags: u8,
    /// Whose programs read the request, one of [`owner`](crate::flow::owner).
    pub owner: u8,
    pub _pad: [u8; 2],
    /// Bytes of the 101's head so far; 0 when there is no unfinished one.
    pub answer_length: u32,
    /// Sequence number of its next byte.
    pub answer_next: u32,
    /// Acknowledgement number of the latest segment that was read of the request.
    pub claimed: u32,
    /// On a TLS port: where the client's records stand, as far as they were followed.
    pub records: crate::tracker::Tracker,
}

impl Pending {
    /// There is a request, or the beginning of an answer. A connection without either keeps its place
    /// only.
    #[inline(always)]
    pub const fn is_under_way(&self) -> bool {
        self.length | self.answer_length != 0
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
