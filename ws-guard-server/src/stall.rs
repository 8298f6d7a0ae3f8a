//! Detection of late threads, by a canary that sleeps briefly and checks its delay.
//!
//! The cost of a pause is not the pause: it is the clients that time out, all reconnect at once,
//! and cause the next one. So above the first threshold new connections are refused for a while,
//! and above the second idle connections are closed, a few at a time.

use std::time::{Duration, Instant};

/// Thresholds of delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Delay above which new connections are refused with 503.
    pub refuse: Duration,
    /// Delay above which idle connections are also closed with 1013.
    pub shed: Duration,
    /// Time without a delay over half the threshold, after which a level is left.
    pub hold: Duration,
    /// Time without a message after which a connection is idle.
    pub idle: Duration,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            refuse: Duration::from_millis(50),
            shed: Duration::from_millis(120),
            hold: Duration::from_secs(1),
            idle: Duration::from_secs(30),
        }
    }
}

/// Reaction to delays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Calm,
    /// Refusal of new connections.
    Refuse,
    /// Refusal, and closing of idle connections.
    Shed,
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Calm, Level::Refuse, Level::Shed];

    /// Return the name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Calm => "calm",
            Level::Refuse => "refuse",
            Level::Shed => "shed",
        }
    }
}

/// Level of one thread, by its delays.
#[derive(Clone, Copy, Debug)]
pub struct Monitor {
    level: Level,
    /// Time at which a delay last came near the current level's threshold.
    near: Instant,
}

impl Monitor {
    pub fn new(now: Instant) -> Monitor {
        Monitor { level: Level::Calm, near: now }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Process a delay, and return a changed level: up at once, down by one at a time.
    pub fn observe(
        &mut self,
        delay: Duration,
        now: Instant,
        thresholds: &Thresholds,
    ) -> Option<Level> {
        let reached = match delay {
            delay if delay > thresholds.shed => Level::Shed,
            delay if delay > thresholds.refuse => Level::Refuse,
            _ => Level::Calm,
        };
        let threshold = match self.level {
            Level::Calm => Duration::MAX,
            Level::Refuse => thresholds.refuse,
            Level::Shed => thresholds.shed,
        };
        if reached > self.level || delay > threshold / 2 {
            self.near = now;
        }
        let held = now.saturating_duration_since(self.near) < thresholds.hold;
        let next = match self.level {
            level if reached > level => reached,
            Level::Shed if !held => Level::Refuse,
            Level::Refuse if !held => Level::Calm,
            level => level,
        };
        if next == self.level {
            return None;
        }
        self.near = now;
        self.level = next;
        Some(next)
    }
}

/// Circumstances of a stall: a pause of this machine, or a surge of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Circumstances {
    /// Accepted TCP connections and reconnecting clients' handshakes, per second.
    pub new_per_second: f64,
    pub reconnects_per_second: f64,
    /// Number of open connections of the thread.
    pub connections: usize,
    /// Bytes that connections hold in buffers, and their limit.
    pub queued: usize,
    pub budget: usize,
}

/// Minimum rate of new connections in a surge.
const SURGE: f64 = 20.0;

impl Circumstances {
    /// Possible values of [`Circumstances::name`].
    pub const NAMES: [&str; 4] = ["quiet", "surge", "reconnects", "queues"];

    /// Return the name in metrics and logs: `quiet`, `surge`, `reconnects` or `queues`.
    pub fn name(&self) -> &'static str {
        let surge = self.new_per_second > SURGE.max(self.connections as f64 / 10.0);
        match surge {
            true if self.reconnects_per_second * 2.0 >= self.new_per_second => "reconnects",
            true => "surge",
            false if self.queued > self.budget / 4 => "queues",
            false => "quiet",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn up_at_once_down_after_a_while_and_a_level_at_a_time() {
        let (start, thresholds) = (Instant::now(), Thresholds::default());
        let mut monitor = Monitor::new(start);
        let mut observe =
            |at: u32, delay: u32| monitor.observe(delay * MS, start + at * MS, &thresholds);
        assert_eq!(observe(0, 50), None);
        assert_eq!(observe(10, 51), Some(Level::Refuse));
        assert_eq!(observe(20, 121), Some(Level::Shed));
        assert_eq!(observe(900, 0), None);
        // Between half a threshold and the whole, nothing changes: no flapping.
        assert_eq!(observe(1000, 70), None);
        assert_eq!(observe(1990, 0), None);
        assert_eq!(observe(2000, 0), Some(Level::Refuse));
        assert_eq!(observe(2990, 30), None);
        assert_eq!(observe(3980, 0), None);
        assert_eq!(observe(3990, 0), Some(Level::Calm));
        assert_eq!(observe(9000, 500), Some(Level::Shed));
    }

    #[test]
    fn circumstances_are_named() {
        let name = |new, back, connections, queued| {
            let (new_per_second, reconnects_per_second) = (new, back);
            let budget = 1000;
            Circumstances { new_per_second, reconnects_per_second, connections, queued, budget }
                .name()
        };
        assert_eq!(name(0.0, 0.0, 5000, 0), "quiet");
        assert_eq!(name(20.0, 20.0, 0, 0), "quiet");
        assert_eq!(name(100.0, 49.0, 900, 0), "surge");
        assert_eq!(name(100.0, 50.0, 900, 0), "reconnects");
        assert_eq!(name(100.0, 90.0, 1000, 0), "quiet");
        assert_eq!(name(5.0, 5.0, 10, 251), "queues");
    }
}
