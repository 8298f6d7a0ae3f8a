//! Limits of a connection: whether it is over one, how it is treated then, and its own windows.
use super::{Flow, limited, paced};
use crate::{verifier::forget, window::Rate};

impl Flow {
    /// Mark the connection as over the limit until `until`. `true` when it was not before.
    #[inline(always)]
    pub fn exceeds(&mut self, now: u64, until: u64) -> bool {
        let new = self.over_until <= now;
        self.limited = limited::ONCE;
        self.over_until = if until > self.over_until { until } else { self.over_until };
        new
    }

    /// Set the treatment of that, by the policy of `generation`. `true` when pacing begins.
    #[inline(always)]
    pub fn treat(&mut self, drops: bool, paces: bool, generation: u32, now_ms: u32) -> bool {
        self.limited = limited::ONCE;
        self.drops = drops as u16;
        self.over_generation = generation;
        let begins = paces && self.paced == paced::NO;
        if begins {
            let (start, acked) = (self.began.client_next, self.acked);
            self.hold.begin(now_ms, self.high, self.frames_in as u32, start, acked);
        }
        let otherwise = if self.paced == paced::NO { paced::NO } else { paced::ENDING };
        self.paced = if paces { paced::YES } else { otherwise };
        begins
    }

    /// Check whether its window is to be held now.
    #[inline(always)]
    pub const fn is_paced(&self, now: u64) -> bool {
        self.paced == paced::YES && self.is_over_limit(now)
    }

    /// Check whether the connection is over the limit now.
    #[inline(always)]
    pub const fn is_over_limit(&self, now: u64) -> bool {
        self.over_until > now
    }

    /// Check whether it may be, or may be paced: `false` without a look at what tells.
    #[inline(always)]
    pub fn may_be_limited(&self) -> bool {
        self.limited != limited::NEVER
    }

    /// Number of the next `pings` within the connection's share.
    #[inline(always)]
    pub fn share_room(&self, now_ms: u32, share: u32, window_ms: u32, pings: u32) -> u32 {
        if share == 0 {
            return 0;
        }
        let rate = Rate { limit: share, window_ms, shift: 0 };
        forget(self.window.room(now_ms, rate, pings), now_ms)
    }

    /// Log the pings of a segment against this connection's own limit, and return how many are
    /// within it.
    #[inline(always)]
    pub fn charge(&mut self, now_ms: u32, rate: Rate, pings: u32) -> u32 {
        forget(self.window.charge(now_ms, rate, pings), now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::ROOM,
        maps::Beginning,
        pace::scale,
        tracker::{FROM_CLIENT, Tracker},
    };

    #[test]
    fn what_was_over_a_limit_is_known() {
        let mut flow = Flow::default();
        flow.open(1, 1, 0, 0);
        assert_eq!(flow.limited, limited::NEVER);
        assert!(!flow.may_be_limited());
        let mut treated = flow;
        assert!(flow.exceeds(0, 10) && flow.may_be_limited());
        assert!(treated.treat(false, true, 1, 0) && treated.may_be_limited());
    }

    #[test]
    fn what_earlier_programs_wrote_counts() {
        let mut flow = Flow { over_until: 10, paced: paced::YES, ..Flow::default() };
        flow.client = Tracker::new(1, FROM_CLIENT);
        flow.began = Beginning { client_scale: scale::of(7) as u8, ..Beginning::default() };
        assert!(flow.may_be_limited() && flow.is_paced(9));
        let near = |mut flow: Flow| {
            flow.begins_as(flow.began);
            flow
        };
        for window in [1, 31, 32, 33, 0xFFFF] {
            assert_eq!(flow.has_room(window), window << 7 >= ROOM);
            assert_eq!(flow.has_room(window), near(flow).has_room(window));
        }
        assert_ne!(near(flow).near_scale, 0);
        assert_ne!(near(Flow::default()).near_scale, 0, "an unknown scale is known to be that");
    }
}
