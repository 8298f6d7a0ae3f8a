//! Readings for the page, and the streams of its viewers.
//!
//! Counters are read each second. Tables are read only while there is a viewer, for one picture
//! that is shared by all. A viewer gets the latest picture after taking the previous one: a slow
//! one sees fewer, and nothing waits for it.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::Router;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    history::History,
    names::Names,
    picture::{Connections, Picture},
};
use crate::{
    domain::{source::SourceView, status::Status},
    guard::GuardError,
    state::{State, survey::Survey},
};

/// Maximum number of viewers.
pub const VIEWERS: usize = 16;
const INTERVAL: Duration = Duration::from_secs(1);
/// Inverse share of time for reading tables and asking the companion server.
const PATIENCE: u32 = 20;
/// Pause between two requests to the companion server.
const ASKED: Duration = Duration::from_secs(2);

/// State shared by the readings and the viewers. Cheap to clone.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    places: Arc<Semaphore>,
    /// Latest picture, as a frame of the stream; none without a viewer.
    latest: watch::Sender<Option<Bytes>>,
    /// Notice of a viewer that has no picture yet.
    wanted: Notify,
    history: Mutex<History>,
}

impl Default for Live {
    fn default() -> Live {
        Live(Arc::new(Inner {
            places: Arc::new(Semaphore::new(VIEWERS)),
            latest: watch::Sender::new(None),
            wanted: Notify::new(),
            history: Mutex::default(),
        }))
    }
}

impl Live {
    /// Return the stream of a viewer; none if there are too many.
    pub fn frames(&self) -> Option<impl Stream<Item = Result<Bytes, Infallible>> + Send + use<>> {
        let place = self.0.places.clone().try_acquire_owned().ok()?;
        let mut pictures = self.0.latest.subscribe();
        if pictures.borrow().is_none() {
            self.0.wanted.notify_one();
        }
        pictures.mark_changed();
        let past = frame("history", &self.history().points().collect::<Vec<_>>());
        let to_come = stream::unfold((place, pictures), |(place, mut pictures)| async {
            loop {
                pictures.changed().await.ok()?;
                let picture = pictures.borrow_and_update().clone();
                if let Some(picture) = picture {
                    return Some((picture, (place, pictures)));
                }
            }
        });
        Some(stream::iter([past]).chain(to_come).map(Ok))
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Read until dropped.
    pub async fn run(&self, state: &State, names: &Names, companion: Option<&Router>) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = companion.map(Asked::new);
        let mut tables = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.0.wanted.notified() => {}
            }
            if let Err(error) = self.count(state) {
                tracing::debug!("the page has no counters: {error}");
                continue;
            }
            if self.0.latest.receiver_count() == 0 {
                self.0.latest.send_replace(None);
                continue;
            }
            let connections = match &mut asked {
                Some(asked) => asked.now(names).await,
                None => None,
            };
            match Tables::read(state, tables.take()).await {
                Ok(read) => {
                    let frame = self.picture(state, names, &read, connections);
                    self.0.latest.send_replace(Some(frame));
                    tables = Some(read);
                }
                Err(error) => tracing::warn!("the page cannot be drawn: {error}"),
            }
        }
    }

    fn count(&self, state: &State) -> Result<(), GuardError> {
        let counters = state.reader.maps.counters()?;
        self.history().add(&counters, Instant::now());
        Ok(())
    }

    fn picture(
        &self,
        state: &State,
        names: &Names,
        tables: &Tables,
        connections: Option<Connections>,
    ) -> Bytes {
        let Tables { status, survey, clients } = tables;
        let mut picture = Picture::new(state, names, status, survey, clients);
        picture.connections = connections;
        let mut history = self.history();
        history.beat(picture.all_servers.p50_ms, picture.all_servers.p99_ms);
        picture.point = history.latest();
        drop(history);
        frame("picture", &picture)
    }
}

/// Reading of the tables.
struct Tables {
    status: Status,
    survey: Arc<Survey>,
    clients: Vec<SourceView>,
}

impl Tables {
    /// Read the tables, off the threads that serve connections.
    /// Clients are the survey's: they are reread only after the next one.
    async fn read(state: &State, before: Option<Tables>) -> anyhow::Result<Tables> {
        let state = state.clone();
        let read = move || {
            let survey = state.surveys.within(&state.reader, PATIENCE)?;
            let status = state.status_with(&survey)?;
            let clients = match before {
                Some(before) if Arc::ptr_eq(&before.survey, &survey) => before.clients,
                _ => state.reader.sources_of(&Picture::chosen(&survey))?,
            };
            Ok::<_, GuardError>(Tables { status, survey, clients })
        };
        Ok(tokio::task::spawn_blocking(read).await??)
    }
}

/// Format an event of the stream. JSON contains no line breaks.
fn frame(event: &str, data: &impl Serialize) -> Bytes {
    // The data holds nothing that JSON cannot represent.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {event}\ndata: {data}\n\n").into()
}

/// The companion server's connections, requested at intervals.
struct Asked<'a> {
    companion: &'a Router,
    latest: Option<Connections>,
    next: Instant,
}

impl<'a> Asked<'a> {
    fn new(companion: &'a Router) -> Asked<'a> {
        Asked { companion, latest: None, next: Instant::now() }
    }

    async fn now(&mut self, names: &Names) -> Option<Connections> {
        let began = Instant::now();
        if began >= self.next {
            self.latest = Some(Connections::ask(self.companion, names).await);
            self.next = Instant::now() + ASKED.max(began.elapsed() * PATIENCE);
        }
        self.latest.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(frames: &mut (impl Stream<Item = Result<Bytes, Infallible>> + Unpin)) -> Bytes {
        frames.next().await.expect("the stream goes on").expect("it does not fail")
    }

    #[tokio::test]
    async fn a_slow_viewer_gets_the_latest_and_holds_nothing_up() {
        let live = Live::default();
        let mut frames = Box::pin(live.frames().expect("a place"));
        assert!(next(&mut frames).await.starts_with(b"event: history\ndata: []\n\n"));
        for n in 0..100_000 {
            live.0.latest.send_replace(Some(frame("picture", &n)));
        }
        assert_eq!(next(&mut frames).await, "event: picture\ndata: 99999\n\n");
        live.0.latest.send_replace(Some(frame("picture", &"next")));
        assert_eq!(next(&mut frames).await, "event: picture\ndata: \"next\"\n\n");
    }

    #[tokio::test]
    async fn places_are_few_and_free_again_when_a_viewer_leaves() {
        let live = Live::default();
        let mut viewers: Vec<_> = (0..VIEWERS).map(|_| live.frames().expect("a place")).collect();
        assert!(live.frames().is_none());
        assert_eq!(live.0.latest.receiver_count(), VIEWERS);
        viewers.pop();
        assert!(live.frames().is_some());
    }
}
