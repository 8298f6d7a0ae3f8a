//! Updates while the view is open: readings and events.

use std::{thread, time::Duration};

use tokio::sync::mpsc::UnboundedSender;

use super::sample::Sample;
use crate::{
    api::events::EventQuery,
    cli::{Global, backend::daemon},
    domain::event::EventView,
};

/// Update of the view.
pub enum Update {
    Sample(Box<Sample>),
    /// A reading failed.
    Failed(String),
    Event(Box<EventView>),
    /// Another daemon answers, with events of its own.
    OtherDaemon,
    /// A change was made, or refused.
    Done(Result<String, String>),
    /// A feed has failed; none ends by itself.
    Ended,
}

/// Notice to the view that a feed has ended, also by a panic.
struct Alive(UnboundedSender<Update>);

impl Drop for Alive {
    fn drop(&mut self) {
        // The view may have ended first.
        let _ = self.0.send(Update::Ended);
    }
}

/// Pause before looking again for a daemon that is gone.
const PAUSE: Duration = Duration::from_secs(1);

/// Read the guard every `interval`, in a thread of its own.
/// With large tables a reading takes long, and keys must not wait for it.
pub fn read(global: Global, interval: Duration, to: UnboundedSender<Update>) {
    thread::spawn(move || {
        let _alive = Alive(to.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime.inspect_err(|error| {
            let _ = to.send(Update::Failed(error.to_string()));
        }) else {
            return;
        };
        runtime.block_on(async {
            loop {
                tokio::time::sleep(interval).await;
                let update = match Sample::take(&global).await {
                    Ok(sample) => Update::Sample(Box::new(sample)),
                    Err(error) => Update::Failed(format!("{error:#}")),
                };
                if to.send(update).is_err() {
                    return;
                }
            }
        });
    });
}

/// Follow the events of the current daemon until the view is closed.
pub async fn follow(global: Global, to: UnboundedSender<Update>) {
    let _alive = Alive(to.clone());
    let mut known = None;
    let mut since = 0;
    while !to.is_closed() {
        // Readings report a missing daemon.
        let _ = stream(&global, &to, &mut known, &mut since).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stream(
    global: &Global,
    to: &UnboundedSender<Update>,
    known: &mut Option<u32>,
    since: &mut u64,
) -> anyhow::Result<()> {
    let client = daemon(global).await?;
    let pid = client.info().await?.pid;
    if known.replace(pid) != Some(pid) {
        *since = 0;
        to.send(Update::OtherDaemon)?;
    }
    let query = EventQuery { since: *since, follow: true, ..EventQuery::default() };
    let mut lines = client.lines(&query.path()).await?;
    while let Some(line) = lines.next().await? {
        let event: EventView = serde_json::from_str(&line)?;
        *since = event.seq.max(*since);
        to.send(Update::Event(Box::new(event)))?;
    }
    Ok(())
}
