//! Feeds the event log: from the kernel's ring buffer, and from the source table, which knows of
//! releases before the kernel tells them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Receiver;
use ws_guard_common::maps::{Event, EventKind, SourceKey};
use ws_guard_server::source::Prefixes;

use super::{
    releases::{News, Releases},
    state::State,
};
use crate::{
    domain::{
        address::{prefixes_of, source_text},
        clock::Clock,
        event::EventView,
        source::SourceState,
    },
    guard::GuardError,
};

/// How often the source table is read.
const INTERVAL: Duration = Duration::from_secs(1);
/// A reading waits for this many times what the last one took, so that a huge table costs at most
/// a twentieth of a CPU.
const PATIENCE: u32 = 20;

/// Runs until it is dropped.
pub async fn run(state: State, mut kernel: Receiver<Event>) {
    let mut releases = Releases::default();
    // Sources throttled at the start were reported by the previous daemon.
    if let Err(error) = throttled(&state).map(|now| releases.seen(&now)) {
        tracing::warn!("cannot read the source table: {error}");
    }
    let mut pause = INTERVAL;
    let mut kernel_lives = true;
    let mut tick = Box::pin(tokio::time::sleep(pause));
    loop {
        tokio::select! {
            event = kernel.recv(), if kernel_lives => match event {
                Some(event) => from_kernel(&state, &mut releases, &event),
                None => {
                    kernel_lives = false;
                    tracing::error!("the event reader has ended: throttles are still reported from the table");
                }
            },
            () = &mut tick => {
                let began = Instant::now();
                from_table(&state, &mut releases);
                pause = INTERVAL.max(began.elapsed() * PATIENCE);
                tick = Box::pin(tokio::time::sleep(pause));
            }
        }
    }
}

fn prefixes(state: &State) -> Prefixes {
    state.reader.maps.policy().map_or(Prefixes { v4: 32, v6: 64 }, |policy| prefixes_of(&policy))
}

fn from_kernel(state: &State, releases: &mut Releases, event: &Event) {
    let source = event.source;
    let news = match EventKind::ALL.get(usize::from(event.kind)) {
        Some(EventKind::Throttled) => releases.throttled(source, event.time),
        Some(EventKind::Released) => releases.released(&source, event.time),
        // Told by whoever knows what else speaks for it, and what to set.
        Some(EventKind::ProxySuspected) => {
            state.suspicion().notify_one();
            false
        }
        _ => true,
    };
    if news && let Some(view) = EventView::from_kernel(event, prefixes(state), &Clock::now()) {
        state.events.record(view);
    }
}

fn from_table(state: &State, releases: &mut Releases) {
    let now = match throttled(state) {
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
        state.events.record(EventView { source: Some(source_text(&prefixes, &source)), ..view });
    }
}

/// Sources throttled now, and since when.
fn throttled(state: &State) -> Result<HashMap<SourceKey, u64>, GuardError> {
    let views = state.reader.source_views()?;
    let sources = state.reader.maps.sources()?.into_iter();
    let throttled =
        sources.filter(|(key, source)| views.state(key, source) == SourceState::Throttled);
    Ok(throttled.map(|(key, source)| (key, source.throttled_since)).collect())
}
