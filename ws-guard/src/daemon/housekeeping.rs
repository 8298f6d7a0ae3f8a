//! Removal of old closed connections and gone servers, and return of memory.
//!
//! Those closed for a while and servers without traffic make room for newer ones' figures. Open
//! connections are never removed, however idle: that would be a free pass. One that only the client
//! has closed may be open: it is removed if the table is nearly full, and it has been silent for as
//! long as those that make room in a full one.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use ws_guard_common::{
    flow::{Flow, state},
    maps::{FlowKey, SERVERS, Server, ServerKey},
};

use super::memory;
use crate::{domain::clock::monotonic_ns, state::State};

const INTERVAL: Duration = Duration::from_secs(20);
/// Time for which a closed connection is kept, for `flows` to show, and as long as its SYN cookie may begin another
/// one (Linux, `MAX_SYNCOOKIE_AGE`).
const KEEP: Duration = Duration::from_secs(120);

/// Time for which an idle server keeps its figures when others need the room, ns.
const GONE_NS: u64 = 3_600_000_000_000;

/// Eighths in use above which a table counts as nearly full.
const CROWDED: usize = 7;

/// Flow and its generation.
type Closing = (FlowKey, u32);

/// Times since which flows are known to be closed, by key and generation.
/// A new connection between the same end points must not inherit the old one's time.
#[derive(Default)]
struct Closed(HashMap<(FlowKey, u32), Instant>);

impl Closed {
    /// Return the flows that have been closed for long enough.
    fn due(&mut self, ended: &[Closing], now: Instant) -> Vec<Closing> {
        let known = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for id in ended.iter().copied() {
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

/// Reading of the flow table: the number of all flows, and the removable ones.
#[derive(Default)]
struct Reading {
    flows: usize,
    ended: Vec<Closing>,
    /// Flows that only their clients closed, and that were silent for long.
    silent: Vec<Closing>,
    /// Servers with a connection.
    servers: HashSet<ServerKey>,
}

impl Reading {
    fn add(&mut self, key: &FlowKey, flow: &Flow, now_ns: u64) {
        self.flows += 1;
        self.servers.insert(ServerKey::from(key));
        let id = (*key, flow.generation);
        if flow.has_ended() {
            self.ended.push(id);
        }
        if flow.state == state::CLOSED && flow.is_over(now_ns.saturating_sub(flow.last_ns)) {
            self.silent.push(id);
        }
    }

    /// Return the silent flows if the table is nearly full.
    fn crowding(&self, capacity: usize) -> &[Closing] {
        if self.flows * 8 <= capacity * CROWDED { &[] } else { &self.silent }
    }
}

/// Return servers to remove, once no more than a quarter of the table is free.
/// They have no connections, and have had nothing to count for long.
fn gone(
    in_use: &HashSet<ServerKey>,
    servers: &[(Option<ServerKey>, Server)],
    now_ns: u64,
) -> Vec<ServerKey> {
    if servers.len() * 4 < SERVERS as usize * 3 {
        return Vec::new();
    }
    let goes = |(key, server): &(Option<ServerKey>, Server)| {
        let idle = now_ns.saturating_sub(server.last_ns) > GONE_NS;
        key.filter(|key| idle && !in_use.contains(key))
    };
    servers.iter().filter_map(goes).collect()
}

/// Clean up until dropped.
pub async fn run(state: State) {
    let mut closed = Closed::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let maps = &state.reader.maps;
        let (mut reading, now_ns) = (Reading::default(), monotonic_ns());
        let read = maps.each_flow(|key, flow| reading.add(key, flow, now_ns));
        let forgotten = read.and_then(|()| {
            for key in gone(&reading.servers, &maps.servers()?, now_ns) {
                maps.remove_server(&key)?;
            }
            let mut due = closed.due(&reading.ended, Instant::now());
            due.extend(reading.crowding(maps.table_sizes().flows as usize));
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
    use ws_guard_common::flow::{IDLE_NS, SERVER_DONE};

    use super::*;

    #[test]
    fn only_servers_without_connections_make_room_and_only_when_it_is_needed() {
        let key = |port| ServerKey { port, ..ServerKey::default() };
        let server = |last_ns| Server { last_ns, ..Server::default() };
        let in_use = HashSet::from([key(2)]);
        let mut servers = vec![
            (Some(key(1)), server(5)),
            (Some(key(2)), server(5)),
            (Some(key(3)), server(GONE_NS)),
            (None, server(5)),
        ];
        assert_eq!(gone(&in_use, &servers, 6 + GONE_NS), []);
        servers.extend((100..150).map(|port| (Some(key(port)), server(GONE_NS))));
        assert_eq!(gone(&in_use, &servers, 6 + GONE_NS), [key(1)]);
    }

    #[test]
    fn only_closed_flows_go_and_only_after_a_minute() {
        let flow =
            |state, generation| Flow { state, generation, flags: SERVER_DONE, ..Flow::default() };
        let key = |port| FlowKey { client_port: port, ..FlowKey::default() };
        let flows = [(key(1), flow(state::CLOSED, 7)), (key(2), flow(state::OPEN, 8))];
        let mut closed = Closed::default();
        let start = Instant::now();
        let read = |flows: &[(FlowKey, Flow)], now_ns| {
            let mut reading = Reading::default();
            flows.iter().for_each(|(key, flow)| reading.add(key, flow, now_ns));
            reading
        };
        let ended = |flows: &[(FlowKey, Flow)]| read(flows, 0).ended;
        let silent = |flows: &[(FlowKey, Flow)], capacity, now_ns| {
            read(flows, now_ns).crowding(capacity).to_vec()
        };
        assert!(closed.due(&ended(&flows), start).is_empty());
        assert!(closed.due(&ended(&flows), start + KEEP - Duration::from_secs(1)).is_empty());
        // The slot was used and closed again meanwhile: its minute starts anew.
        let again = [(key(1), flow(state::CLOSED, 9))];
        assert!(closed.due(&ended(&again), start + KEEP).is_empty());
        assert_eq!(closed.due(&ended(&again), start + KEEP + KEEP), [(key(1), 9)]);
        // Only the client has closed it: the server may not have accepted that.
        let unsure = [(key(1), Flow { flags: 0, ..flow(state::CLOSED, 10) })];
        assert!(closed.due(&ended(&unsure), start).is_empty());
        assert!(closed.due(&ended(&unsure), start + 1000 * KEEP).is_empty());
        assert_eq!(silent(&unsure, 1, IDLE_NS), []);
        assert_eq!(silent(&unsure, 1, IDLE_NS + 1), [(key(1), 10)]);
        assert_eq!(silent(&unsure, 8, IDLE_NS + 1), []);
        assert_eq!(silent(&[(key(1), flow(state::OPEN, 10))], 1, IDLE_NS + 1), []);
    }
}
