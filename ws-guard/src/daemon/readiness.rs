//! What the log says of readiness: the same as `/readyz`, in the same word.

use crate::state::State;
use std::time::Duration;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether the daemon is ready, as far as the log has it.
#[derive(Default)]
struct Told(Option<Result<(), String>>);

impl Told {
    /// Take note of how it is now; whether that is news.
    fn is_news(&mut self, now: &Result<(), String>) -> bool {
        let news = self.0.as_ref() != Some(now);
        self.0 = Some(now.clone());
        news
    }
}

/// Runs until it is dropped.
pub async fn run(state: State) {
    let mut told = Told::default();
    loop {
        let now = state.ready();
        if told.is_news(&now) {
            match now {
                Ok(()) => tracing::info!("ready"),
                Err(why) => tracing::warn!("not ready: {why}"),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let (mut told, waits) = (Told::default(), Err("not attached: eth0".to_owned()));
        let changes = [&waits, &waits, &Ok(()), &Ok(()), &waits];
        assert_eq!(changes.map(|now| told.is_news(now)), [true, false, true, false, true]);
    }
}
