//! Forgets connections that closed a while ago, and gives back the memory that listings took. Open
//! connections are never touched, however idle: that would be a free pass. One that only the client says is
//! closed may be open: it goes where the table is nearly full, and it has been silent for as long as those
//! that make room in a full one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ws_guard_common::{
    flow::{Flow, SERVER_DONE, state},
    maps::FlowKey,
};

use super::{memory, state::State};
use crate::domain::clock::monotonic_ns;

const INTERVAL: Duration = Duration::from_secs(10);
/// How long a closed connection stays, for `flows` to show.
const KEEP: Duration = Duration::from_secs(60);

/// Eighths in use above which a table is nearly full.
const CROWDED: usize = 7;

/// A flow and its generation.
type Closing = (FlowKey, u32);

/// Since when closed flows are known to be: by key and generation, or a new connection between
/// the same end points would inherit the old one's time.
#[derive(Default)]
struct Closed(HashMap<(FlowKey, u32), Instant>);

impl Closed {
    /// The flows that have been closed for long enough.
    fn due(&mut self, flows: &[(FlowKey, Flow)], now: Instant) -> Vec<Closing> {
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

/// Those that only their clients closed, and that were silent for long, where so many flows are nearly all
/// that there is room for.
fn silent(flows: &[(FlowKey, Flow)], capacity: usize, now_ns: u64) -> Vec<Closing> {
    if flows.len() * 8 <= capacity * CROWDED {
        return Vec::new();
    }
    let goes = |flow: &Flow| {
        flow.state == state::CLOSED && flow.is_over(now_ns.saturating_sub(flow.last_ns))
    };
    let going = flows.iter().filter(|(_, flow)| goes(flow));
    going.map(|(key, flow)| (*key, flow.generation)).collect()
}

/// Runs until it is dropped.
pub async fn run(state: State) {
    let mut closed = Closed::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let maps = &state.reader.maps;
        let forgotten = maps.flows().and_then(|flows| {
            let mut due = closed.due(&flows, Instant::now());
            due.extend(silent(&flows, maps.table_sizes().flows as usize, monotonic_ns()));
            due.iter().try_for_each(|(key, generation)| maps.remove_flow(key, *generation))
        });
        if let Err(error) = forgotten {
            tracing::warn!("cannot remove closed connections: {error}");
        }
        memory::give_back();
    }
}

#[cfg(test)]
mod tests {
    use ws_guard_common::flow::IDLE_NS;

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
        assert_eq!(silent(&unsure, 1, IDLE_NS), []);
        assert_eq!(silent(&unsure, 1, IDLE_NS + 1), [(key(1), 10)]);
        assert_eq!(silent(&unsure, 8, IDLE_NS + 1), []);
        assert_eq!(silent(&[(key(1), flow(state::OPEN, 10))], 1, IDLE_NS + 1), []);
    }
}
