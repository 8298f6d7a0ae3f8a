//! Guard between a client and a server's TCP.

use ws_guard_common::{
    flow::Flow,
    replay::{Budget, Mode, Replay, Verdict},
};

/// Tracker of one connection's frames: on the host ([`OnHost`]), or in the kernel.
pub trait Guard {
    /// Process a segment of the client.
    ///
    /// If it passes, its pings over the budget are rewritten in `payload`.
    /// `taken`: whether the server's TCP will take it. The guard must not know.
    fn client(&mut self, seq: u32, payload: &mut [u8], taken: bool) -> Verdict;

    /// Process the server's acknowledgement of the client's bytes up to `ack`.
    fn acknowledge(&mut self, ack: u32);

    /// Let time pass until the server has acknowledged all in-order data that it holds
    /// ([`ws_guard_common::flow::SETTLED_NS`]).
    fn rest(&mut self);

    /// Let that time pass without anything from the server, and without a segment that passes.
    fn fall_silent(&mut self);

    /// Record the number of bytes that the server has sent since the client's frames began.
    fn server_sends(&mut self, _end: u32) {}

    /// Process a client's acknowledgement; `false` if it is taken for a forged one.
    fn hears(&mut self, _ack: u32) -> bool {
        true
    }
}

/// Guard whose state of the connection is visible, for targeted lies.
pub trait Watched: Guard {
    fn flow(&self) -> &Flow;
}

/// Tracker on the host.
#[derive(Clone, Debug)]
pub struct OnHost {
    pub replay: Replay,
    pub allowance: Allowance,
}

impl OnHost {
    /// Create the tracker for frames from `base` on, with a budget of `allowed` pings.
    pub fn new(base: u32, mode: Mode, allowed: u32) -> OnHost {
        OnHost { replay: Replay::open(base, 0, 0, mode), allowance: Allowance::new(allowed) }
    }
}

impl Guard for OnHost {
    fn client(&mut self, seq: u32, payload: &mut [u8], _taken: bool) -> Verdict {
        let verdict = self.replay.client(seq, payload, &mut self.allowance);
        self.replay.settled &= verdict != Verdict::Pass;
        self.replay.silent &= verdict != Verdict::Pass;
        verdict
    }

    fn acknowledge(&mut self, ack: u32) {
        self.replay.acknowledge(ack);
    }

    fn rest(&mut self) {
        self.replay.settled = true;
    }

    fn fall_silent(&mut self) {
        self.replay.silent = true;
    }

    fn server_sends(&mut self, end: u32) {
        self.replay.flow.server_high = end;
    }

    fn hears(&mut self, ack: u32) -> bool {
        let flow = &mut self.replay.flow;
        let credible = flow.is_credible(ack);
        if credible {
            flow.hear(ack);
        }
        credible
    }
}

impl Watched for OnHost {
    fn flow(&self) -> &Flow {
        &self.replay.flow
    }
}

/// Budget of a fixed number of pings.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub left: u32,
    /// Number of pings charged, passed or not.
    pub charged: u64,
    pub passed: u64,
    /// Throttling of the source, whatever is left: nothing may pass behind a gap.
    pub throttled: bool,
}

impl Allowance {
    pub fn new(left: u32) -> Allowance {
        Allowance { left, charged: 0, passed: 0, throttled: false }
    }
}

impl Budget for Allowance {
    fn room(&mut self) -> u32 {
        self.left
    }

    fn charge(&mut self, pings: u32, passed: u32) {
        assert!(passed <= pings && passed <= self.left, "{passed} of {pings} passed: {self:?}");
        self.left -= passed;
        self.charged += u64::from(pings);
        self.passed += u64::from(passed);
    }

    fn is_over_limit(&mut self) -> bool {
        self.throttled || self.left == 0
    }

    fn charge_whole(&mut self, pings: u32) -> bool {
        let may = !self.throttled && pings <= self.left;
        if may {
            self.charge(pings, pings);
        }
        may
    }
}
