//! Peers that may be proxies: their requests name many clients.

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
