//! The canary of a shard, and what it sets off.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    shard::Shard,
    stall::{Level, Monitor},
};

/// How long the canary sleeps.
const NAP: Duration = Duration::from_millis(10);
/// Connections that are closed at a time: one in so many, and at least one.
const SHARE: usize = 20;
/// Pause between two such times.
const BETWEEN: Duration = Duration::from_secs(1);

impl Shard {
    /// Watch this thread for stalls, for ever.
    pub async fn watch_stalls(self: Rc<Shard>) {
        let mut monitor = Monitor::new(Instant::now());
        self.service.metrics.threads.with_label_values(&[monitor.level().name()]).inc();
        let mut rate = Rate { since: Instant::now(), opened: self.opened_here(), per_second: 0.0 };
        let mut shed = None;
        loop {
            let slept = Instant::now();
            sleep(NAP).await;
            let now = Instant::now();
            let delay = now.saturating_duration_since(slept).saturating_sub(NAP);
            self.service.metrics.scheduling_delay.observe(delay.as_secs_f64());
            rate.update(now, self.opened_here());
            let before = monitor.level();
            if let Some(level) = monitor.observe(delay, now, &self.service.config.stalls) {
                self.service.metrics.threads.with_label_values(&[before.name()]).dec();
                self.change_level(level, delay, rate.per_second);
            }
            let rested = shed.is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN);
            if monitor.level() == Level::Shed && rested {
                shed = Some(now);
                self.shed(now);
            }
        }
    }

    /// Say what happened, and what was going on beside it: a stall without new connections is this
    /// machine's, one with many may be theirs.
    fn change_level(&self, level: Level, delay: Duration, per_second: f64) {
        self.set_level(level);
        let metrics = &self.service.metrics;
        metrics.threads.with_label_values(&[level.name()]).inc();
        metrics.stalls.with_label_values(&[level.name()]).inc();
        tracing::warn!(
            level = level.name(),
            delay_ms = delay.as_millis() as u64,
            new_connections_per_second = per_second as u64,
            handshakes = self.service.admission.handshaking(),
            connections = self.wheel.len(),
            "stall level changed"
        );
    }

    /// Close some of the connections that nobody uses.
    fn shed(&self, now: Instant) {
        let Some(before) = now.checked_sub(self.service.config.stalls.idle) else { return };
        self.wheel.shed(before, self.wheel.len().div_ceil(SHARE));
    }
}

/// New connections a second, over the last one.
struct Rate {
    since: Instant,
    opened: u64,
    per_second: f64,
}

impl Rate {
    fn update(&mut self, now: Instant, opened: u64) {
        let time = now.saturating_duration_since(self.since);
        if time >= Duration::from_secs(1) {
            self.per_second = (opened - self.opened) as f64 / time.as_secs_f64();
            (self.since, self.opened) = (now, opened);
        }
    }
}
