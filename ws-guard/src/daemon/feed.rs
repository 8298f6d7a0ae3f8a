//! Input of the event log: the kernel's ring buffer, and the source table.
//! The table shows releases before the kernel reports them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Receiver;
use ws_guard_common::maps::{Counter, Counters, Event, EventKind, SourceKey};
use ws_guard_server::source::Prefixes;

use super::{
    reasons::Reasons,
    releases::{News, Releases},
};
use crate::{
    domain::{
        address::{prefixes_of, source_text},
        clock::Clock,
        event::EventView,
        source::SourceState,
        status::counter,
    },
    guard::GuardError,
    state::State,
};

/// Interval of looking at the throttled sources.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval of reading the whole source table if no event is missing.
const WHOLE: Duration = Duration::from_secs(30);
/// Pause after a reading, as a multiple of its duration.
/// A huge table costs at most a twentieth of a CPU.
pub(super) const PATIENCE: u32 = 20;

/// Feed the event log until dropped.
pub async fn run(state: State, mut kernel: Receiver<Event>) {
    let mut releases = Releases::default();
    let mut reasons = Reasons::default();
    // Sources throttled at the start were reported by the previous daemon.
    if let Err(error) = throttled(&state).map(|now| releases.seen(&now)) {
        tracing::warn!("cannot read the source table: {error}");
    }
    let mut table = TableReading { losses: losses(&state), at: Instant::now() };
    let mut pause = INTERVAL;
    let mut kernel_lives = true;
    let mut tick = Box::pin(tokio::time::sleep(pause));
    loop {
        tokio::select! {
            event = kernel.recv(), if kernel_lives => match event {
                Some(event) => from_kernel(&state, &mut releases, &mut reasons, &event),
                None => {
                    kernel_lives = false;
                    tracing::error!("the event reader has ended: throttles are still reported from the table");
                }
            },
            () = &mut tick => {
                let began = Instant::now();
                from_table(&state, &mut releases, &mut reasons, &mut table);
                pause = INTERVAL.max(began.elapsed() * PATIENCE);
                tick = Box::pin(tokio::time::sleep(pause));
            }
        }
    }
}

fn prefixes(state: &State) -> Prefixes {
    state.reader.maps.policy().map_or(Prefixes { v4: 32, v6: 64 }, |policy| prefixes_of(&policy))
}

fn from_kernel(state: &State, releases: &mut Releases, reasons: &mut Reasons, event: &Event) {
    let source = event.source;
    let news = match EventKind::ALL.get(usize::from(event.kind)) {
        Some(EventKind::Throttled) => releases.throttled(source, event.time),
        Some(EventKind::Released) => releases.released(&source, event.time),
        // Reported by `suspects`, which knows other evidence, and the setting to change.
        Some(EventKind::ProxySuspected) => {
            state.suspicion().notify_one();
            false
        }
        _ => true,
    };
    if news && let Some(view) = EventView::from_kernel(event, prefixes(state), &Clock::now()) {
        state.events.record(reasons.told(state, event, view));
    }
}

/// Latest reading of the whole source table.
struct TableReading {
    /// Events lost by then.
    losses: u64,
    at: Instant,
}

/// Count lost events: ring full, held back by the kernel, or the daemon too slow.
fn losses(state: &State) -> u64 {
    let missing = |counters: &Counters| {
        [Counter::EventsLost, Counter::EventsSuppressed].map(|which| counter(counters, which))
    };
    let of_kernel = state.reader.maps.counters().map_or([0; 2], |counters| missing(&counters));
    of_kernel.iter().sum::<u64>() + state.events_dropped()
}

/// Report from the table what events do not.
/// It is read as a whole only if events are missing, and at long intervals.
fn from_table(
    state: &State,
    releases: &mut Releases,
    reasons: &mut Reasons,
    table: &mut TableReading,
) {
    let losses = losses(state);
    let missing = losses != table.losses || state.take_throttle();
    let now = if missing || table.at.elapsed() >= WHOLE {
        *table = TableReading { losses, at: Instant::now() };
        throttled(state)
    } else {
        still_throttled(state, releases)
    };
    let now = match now {
        Ok(now) => now,
        Err(error) => {
            tracing::warn!("cannot read the source table: {error}");
            return;
        }
    };
    let (prefixes, clock) = (prefixes(state), Clock::now());
    for news in releases.seen(&now) {
        let (kind, source, time) = match news {
            News::Throttled(source, since) => ("throttled", source, clock.at(since)),
            News::Released(source) => ("released", source, None),
        };
        let time = time.unwrap_or(crate::domain::clock::Timestamp(clock.wall));
        let view = EventView::bare(kind, time);
        let why = (kind == "throttled").then(|| reasons.why(state, &source, None)).flatten();
        let source = Some(source_text(&prefixes, &source));
        state.events.record(EventView { source, why, ..view });
    }
}

/// Return those of the known throttles that are still in force, with their start.
fn still_throttled(
    state: &State,
    releases: &Releases,
) -> Result<HashMap<SourceKey, u64>, GuardError> {
    let mut known = releases.open().peekable();
    if known.peek().is_none() {
        return Ok(HashMap::new());
    }
    let views = state.reader.source_views()?;
    let mut throttled = HashMap::new();
    for key in known {
        if let Some(source) = state.reader.maps.source(key)?
            && views.state(key, &source) == SourceState::Throttled
        {
            throttled.insert(*key, source.throttled_since);
        }
    }
    Ok(throttled)
}

/// Return the throttled sources with the start of their throttle.
fn throttled(state: &State) -> Result<HashMap<SourceKey, u64>, GuardError> {
    let views = state.reader.source_views()?;
    let mut throttled = HashMap::new();
    state.reader.maps.each_source(|key, source| {
        if views.state(key, source) == SourceState::Throttled {
            throttled.insert(*key, source.throttled_since);
        }
    })?;
    Ok(throttled)
}
