//! Log messages about readiness: the state and the text of `/readyz`.

use crate::state::State;
use std::time::Duration;

/// Interval of checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Last logged readiness.
#[derive(Default)]
struct Told(Option<Result<(), String>>);

impl Told {
    /// Note the current readiness; return whether it has changed.
    fn is_news(&mut self, now: &Result<(), String>) -> bool {
        let news = self.0.as_ref() != Some(now);
        self.0 = Some(now.clone());
        news
    }
}

/// Log changes until dropped.
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
