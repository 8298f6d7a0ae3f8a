//! Forgets connections that closed a while ago, and gives back the memory that listings took. Open
//! connections are never touched, however idle: that would be a free pass. One that only the client says is
//! closed may be open.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ws_guard_common::{
    flow::{Flow, SERVER_DONE, state},
    maps::FlowKey,
};

use super::{memory, state::State};

const INTERVAL: Duration = Duration::from_secs(10);
/// How long a closed connection stays, for `flows` to show.
const KEEP: Duration = Duration::from_secs(60);

/// Since when closed flows are known to be: by key and generation, or a new connection between
/// the same end points would inherit the old one's time.
#[derive(Default)]
struct Closed(HashMap<(FlowKey, u32), Instant>);

impl Closed {
    /// The flows that have been closed for long enough.
    fn due(&mut self, flows: &[(FlowKey, Flow)], now: Instant) -> Vec<(FlowKey, u32)> {
        let ended = |flow: &Flow| flow.state == state::CLOSED && flow.flags & SERVER_DONE != 0;
        let closed = flows.iter().filter(|(_, flow)| ended(flow));
        let known = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for (key, flow) in closed {
            let id = (*key, flow.generation);
            let since = known.get(&id).copied().unwrap_or(now);
            if now.duration_since(since) >= KEEP {
                due.push(id);
            } else {
                self.0.insert(id, since);
            }
        }
        due
    }
}

/// Runs until it is dropped.
pub async fn run(state: State) {
    let mut closed = Closed::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let maps = &state.reader.maps;
        let forgotten = maps.flows().and_then(|flows| {
            let due = closed.due(&flows, Instant::now());
            due.iter().try_for_each(|(key, generation)| maps.remove_flow(key, *generation))
        });
        if let Err(error) = forgotten {
            tracing::warn!("closed connections cannot be forgotten: {error}");
        }
        memory::give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_closed_flows_go_and_only_after_a_minute() {
        let flow =
            |state, generation| Flow { state, generation, flags: SERVER_DONE, ..Flow::default() };
        let key = |port| FlowKey { client_port: port, ..FlowKey::default() };
        let flows = [(key(1), flow(state::CLOSED, 7)), (key(2), flow(state::OPEN, 8))];
        let mut closed = Closed::default();
        let start = Instant::now();
        assert!(closed.due(&flows, start).is_empty());
        assert!(closed.due(&flows, start + KEEP - Duration::from_secs(1)).is_empty());
        // The slot was used again meanwhile, and closed again: its minute begins anew.
        let again = [(key(1), flow(state::CLOSED, 9))];
        assert!(closed.due(&again, start + KEEP).is_empty());
        assert_eq!(closed.due(&again, start + KEEP + KEEP), [(key(1), 9)]);
        // Only the client has said so: the server may not have taken its word.
        let unsure = [(key(1), Flow { flags: 0, ..flow(state::CLOSED, 10) })];
        assert!(closed.due(&unsure, start).is_empty());
        assert!(closed.due(&unsure, start + 1000 * KEEP).is_empty());
    }
}
