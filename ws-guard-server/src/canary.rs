//! Canary of a shard, and the reaction to its delays.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    charges::{Charges, thread_time},
    shard::Shard,
    stall::{Circumstances, Level, Monitor},
};
use crate::seldom::Seldom;

/// Duration of the canary's sleep.
const NAP: Duration = Duration::from_millis(10);
/// Share of connections closed at a time: one in this number, and at least one.
const SHARE: usize = 20;
/// Pause between two such closures.
const BETWEEN: Duration = Duration::from_secs(1);

impl Shard {
    /// Watch this thread for stalls, for ever.
    pub async fn watch_stalls(self: Rc<Shard>) {
        let mut monitor = Monitor::new(Instant::now());
        self.service.metrics.threads.with_label_values(&[monitor.level().name()]).inc();
        let mut rate = Rate::new(Instant::now(), self.came_here());
        let (mut shed, mut charges, mut said) = (None, Charges::default(), Seldom::default());
        loop {
            let (slept, before) = (Instant::now(), thread_time());
            self.turns.begin(slept + NAP);
            sleep(NAP).await;
            let now = Instant::now();
            let delay = now.saturating_duration_since(slept).saturating_sub(NAP);
            self.service.metrics.scheduling_delay.observe(delay.as_secs_f64());
            rate.update(now, self.came_here());
            let worked = thread_time().saturating_sub(before);
            let charge = self.charge(delay, worked, &mut charges, &mut said);
            let pong = charges.left_of(self.take_slowest_pong(), now);
            let (before, delay) = (monitor.level(), delay.saturating_sub(charge));
            if let Some(level) = monitor.observe(delay.max(pong), now, &self.service.config.stalls)
            {
                self.service.metrics.threads.with_label_values(&[before.name()]).dec();
                self.change_level(level, delay, pong, rate.now(self.came_here()));
            }
            let rested = shed.is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN);
            if monitor.level() == Level::Shed && rested {
                shed = Some(now);
                self.shed(now);
            }
        }
    }

    /// Charge the connection that took most of a delay, and return the charge.
    /// Where the delay would have refused others, that is logged.
    fn charge(
        &self,
        delay: Duration,
        worked: Duration,
        charges: &mut Charges,
        said: &mut Seldom,
    ) -> Duration {
        let Some((connection, took)) = self.turns.most() else { return Duration::ZERO };
        let now = Instant::now();
        let charge = charges.charge(took, worked, now).min(delay);
        self.service.metrics.charge(connection, charge.as_secs_f64());
        if charge > self.service.config.stalls.refuse
            && let Some(before) = said.say(now)
        {
            tracing::warn!(
                connection,
                took_ms = charge.as_millis() as u64,
                more = before,
                "a connection kept a thread, and all others on it, waiting"
            );
        }
        charge
    }

    /// Report a change of level and its circumstances.
    /// A stall without new connections is this machine's, one with many may be theirs.
    fn change_level(&self, level: Level, delay: Duration, pong: Duration, came: (f64, f64)) {
        self.set_level(level);
        let service = &self.service;
        let during = Circumstances {
            new_per_second: came.0,
            reconnects_per_second: came.1,
            connections: self.wheel.len(),
            queued: service.held(),
            budget: service.config.memory_budget,
        };
        service.metrics.threads.with_label_values(&[level.name()]).inc();
        service.metrics.stalls.with_label_values(&[level.name(), during.name()]).inc();
        tracing::warn!(
            level = level.name(),
            during = during.name(),
            delay_ms = delay.as_millis() as u64,
            pong_ms = pong.as_millis() as u64,
            new_connections_per_second = during.new_per_second as u64,
            reconnects_per_second = during.reconnects_per_second as u64,
            queued_bytes = during.queued,
            handshakes = service.admission.handshaking(),
            connections = during.connections,
            "stall level changed"
        );
    }

    /// Close some of the idle connections.
    fn shed(&self, now: Instant) {
        let Some(before) = now.checked_sub(self.service.config.stalls.idle) else { return };
        self.wheel.shed(before, self.wheel.len().div_ceil(SHARE));
    }
}

/// Rates of new connections a second, and of reconnecting clients.
struct Rate {
    since: Instant,
    /// Counts at time `since`.
    then: (u64, u64),
    /// Rates of the last whole second.
    last: (f64, f64),
}

impl Rate {
    fn new(now: Instant, counts: (u64, u64)) -> Rate {
        Rate { since: now, then: counts, last: (0.0, 0.0) }
    }

    fn update(&mut self, now: Instant, counts: (u64, u64)) {
        let time = now.saturating_duration_since(self.since).as_secs_f64();
        if time >= 1.0 {
            let (new, back) = self.grown(counts);
            *self = Rate { since: now, then: counts, last: (new / time, back / time) };
        }
    }

    /// Return the rates of the last whole second, or of the current one if higher.
    fn now(&self, counts: (u64, u64)) -> (f64, f64) {
        let (new, back) = self.grown(counts);
        (self.last.0.max(new), self.last.1.max(back))
    }

    fn grown(&self, counts: (u64, u64)) -> (f64, f64) {
        ((counts.0 - self.then.0) as f64, (counts.1 - self.then.1) as f64)
    }
}
