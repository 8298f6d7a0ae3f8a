//! Reports of suspected proxies, repeated at intervals while the suspicion lasts.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    domain::{event::EventView, suspects::SuspectedProxy},
    state::State,
};

/// Interval of checks, unless the kernel reports a suspect.
const INTERVAL: Duration = Duration::from_secs(30);
/// Pause after a check, as a multiple of its duration; huge tables cost little.
const PATIENCE: u32 = 100;
/// Time after which a lasting suspicion is reported again.
const AGAIN: Duration = Duration::from_secs(3600);

/// Reported suspects with the time of the report.
#[derive(Default)]
struct Told(HashMap<IpAddr, Instant>);

impl Told {
    /// Return the suspects to report now.
    fn news(&mut self, suspects: Vec<SuspectedProxy>, now: Instant) -> Vec<SuspectedProxy> {
        self.0.retain(|_, told| now.duration_since(*told) < AGAIN);
        let new = |suspect: &SuspectedProxy| !self.0.contains_key(&suspect.peer);
        let news: Vec<SuspectedProxy> = suspects.into_iter().filter(new).collect();
        self.0.extend(news.iter().map(|suspect| (suspect.peer, now)));
        news
    }
}

/// Report suspects until dropped.
pub async fn run(state: State) {
    let (mut told, mut failed, mut pause) = (Told::default(), None, INTERVAL);
    loop {
        // Wait for the kernel's notice, or the next check.
        let _ = tokio::time::timeout(pause, state.suspicion().notified()).await;
        // Huge tables take a while: not on a thread that serves connections.
        let reading = state.clone();
        let read =
            tokio::task::spawn_blocking(move || reading.surveys.renew(&reading.reader)).await;
        let error = match read.map_err(anyhow::Error::from).and_then(|survey| Ok(survey?)) {
            Ok(survey) => {
                pause = INTERVAL.max(survey.took() * PATIENCE);
                let news = told.news(survey.proxies_suspected.clone(), Instant::now());
                news.iter().for_each(|suspect| state.events.record(event(suspect)));
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|_| failed != error) {
            tracing::warn!("cannot search the tables for proxies: {error}");
        }
        failed = error;
    }
}

fn event(suspect: &SuspectedProxy) -> EventView {
    let message = format!("{suspect}: {}", suspect.remedy());
    let source = Some(suspect.peer.to_string());
    EventView { source, ..EventView::message("proxy_suspected", message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_of_once_an_hour() {
        let (mut told, start) = (Told::default(), Instant::now());
        let both =
            || vec![SuspectedProxy::sample("203.0.113.7"), SuspectedProxy::sample("fd77::1")];
        assert_eq!(told.news(vec![SuspectedProxy::sample("203.0.113.7")], start).len(), 1);
        assert_eq!(told.news(both(), start), [SuspectedProxy::sample("fd77::1")]);
        // Not repeated while it comes and goes.
        assert!(told.news(Vec::new(), start + AGAIN / 2).is_empty());
        assert!(told.news(both(), start + AGAIN / 2).is_empty());
        assert_eq!(told.news(both(), start + AGAIN).len(), 2);
    }

    #[test]
    fn an_event_says_what_to_set() {
        let text = event(&SuspectedProxy::sample("203.0.113.7")).to_string();
        for part in ["203.0.113.7 · its requests name 9 clients", "trusted-proxy = [", "--trusted"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
