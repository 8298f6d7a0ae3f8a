//! Changes that a benchmark program makes to its packet before each run.

/// `BPF_PROG_TEST_RUN` repeats a program on one packet. Without a change the second run would see a
/// retransmission; and what the program itself changed must be put back, so that each run has the
/// same work. All numbers in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Patch {
    /// Sequence number of the next run, and what it advances by.
    pub seq: u32,
    pub seq_step: u32,
    /// Acknowledgement number of the next run, and what it advances by.
    pub ack: u32,
    pub ack_step: u32,
    /// The checksum field and the window.
    pub check: u16,
    pub window: u16,
    /// The first byte behind the TCP header.
    pub first: u8,
    /// Bytes of a tunnel around the packet: its Ethernet header begins there.
    pub around: u8,
    pub _pad: u16,
    /// Runs after which the server acknowledges all that came, and how many of them are left; 0: never.
    pub batch: u32,
    pub left: u32,
    /// Not 0: what is known of the connection's request is forgotten before each run.
    pub forget: u32,
    /// Side that asks before each run with a ping of this digest, which the packet is to answer; 0: none.
    pub digest: u32,
    pub asks: u32,
    /// Number of the last flow, a power of two less 1, and of the next run's; 0: there is one flow.
    pub last: u32,
    pub flow: u32,
    /// The number of the flow after it: its own times `factor`, plus `step`.
    pub factor: u32,
    pub step: u32,
    /// Address of the client of flow 0. Those of the others follow it.
    pub client: u32,
    /// Not 0: the packet is the server's, and goes to that address.
    pub to_client: u32,
}

impl Patch {
    /// The number of the flow after the next run's.
    ///
    /// Each flow has its turn once in as many runs as there are flows, if `step` is odd and `factor`
    /// one more than a multiple of 4 (the theorem of Hull and Dobell).
    #[inline(always)]
    pub const fn following(&self) -> u32 {
        self.flow.wrapping_mul(self.factor).wrapping_add(self.step) & self.last
    }
}
