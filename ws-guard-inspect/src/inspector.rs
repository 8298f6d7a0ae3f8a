//! All connections of a capture, in memory that the open ones bound.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use serde::Serialize;

use crate::{
    connection::{Connection, Known, State},
    finding::{Ends, Finding},
    input::Packet,
    packet::{Parsed, Segment, flag, parse},
    protocol::OnPort,
    report::{FlowReport, Lists},
};

/// Connections that are followed at once.
const MOST_CONNECTIONS: usize = 64_000;
/// A connection that is over waits so long for what comes late, in nanoseconds of the capture.
const LINGER_NS: u64 = 10_000_000_000;

/// Who wants to know.
pub trait Visitor {
    /// A TCP segment comes, of a connection that is followed or may turn out to be one.
    fn segment(&mut self, _packet: &Packet<'_>, _segment: &Segment<'_>) {}
    /// Something was found, frames included, as soon as it was.
    fn finding(&mut self, _ends: &Ends, _finding: &Finding) {}
    /// A connection is over, or the capture is.
    fn flow(&mut self, report: FlowReport);
}

/// What a capture adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub packets: u64,
    /// TCP segments, with or without payload.
    pub segments: u64,
    /// Packets that the capture cut off.
    pub snapped: u64,
    /// Packets that are not TCP.
    pub not_tcp: u64,
    /// IP fragments, which are not put together.
    pub fragments: u64,
    /// Packets cut or broken before their TCP header ends.
    pub unreadable: u64,
    /// Packets of a link type that is not read.
    pub unknown_link: u64,
    /// Live: packets that came too fast to be read.
    pub too_fast: u64,
    /// Connections that were followed.
    pub websocket: u64,
    /// Other TCP connections.
    pub other_connections: u64,
    /// Connections that had to make room before they were over.
    pub evicted: u64,
}

/// Both ends, in an order that does not depend on who sends.
type Key = (SocketAddr, SocketAddr);

struct Entry {
    connection: Connection,
    lists: Lists,
}

/// Follows the connections of a capture.
pub struct Inspector<V> {
    visitor: V,
    connections: HashMap<Key, Box<Entry>>,
    known: Known,
    pub totals: Totals,
    now_ns: u64,
    swept_ns: u64,
}

impl<V: Visitor> Inspector<V> {
    pub fn new(visitor: V) -> Inspector<V> {
        let (connections, totals) = (HashMap::new(), Totals::default());
        let known = Known::default();
        Inspector { visitor, connections, known, totals, now_ns: 0, swept_ns: 0 }
    }

    /// Take what is spoken on a port for a length-delimited protocol instead of WebSocket.
    pub fn know(&mut self, known: OnPort) {
        self.known.alone.insert(known.port, Arc::new(known.protocol));
    }

    /// Look for a length-delimited protocol inside of the WebSocket messages of a port.
    pub fn know_nested(&mut self, known: OnPort) {
        self.known.nested.insert(known.port, Arc::new(known.protocol));
    }

    /// Keep this number of leading bytes of each frame, header included, in [`crate::finding::Frame`].
    pub fn keep(&mut self, bytes: usize) {
        self.known.keep = bytes;
    }

    /// Report each message with this number of leading bytes, as [`crate::finding::What::Message`].
    pub fn show(&mut self, bytes: usize) {
        self.known.show = Some(bytes);
    }

    /// What is told of all that is found.
    pub const fn visitor(&mut self) -> &mut V {
        &mut self.visitor
    }

    /// Take the next packet.
    pub fn packet(&mut self, packet: &Packet<'_>) {
        self.totals.packets += 1;
        self.totals.snapped += u64::from(packet.is_snapped());
        match parse(packet) {
            Parsed::Tcp(segment) => self.segment(packet, &segment),
            Parsed::Other => self.totals.not_tcp += 1,
            Parsed::Fragment => self.totals.fragments += 1,
            Parsed::Unreadable => self.totals.unreadable += 1,
            Parsed::UnknownLink => self.totals.unknown_link += 1,
        }
    }

    fn segment(&mut self, packet: &Packet<'_>, segment: &Segment<'_>) {
        self.totals.segments += 1;
        self.now_ns = self.now_ns.max(segment.place.time_ns);
        let key = key(segment.source, segment.destination);
        let opens = segment.flags & (flag::SYN | flag::ACK) == flag::SYN;
        if opens && self.connections.get(&key).is_some_and(|old| old.connection.is_before(segment))
        {
            self.remove(&key);
        }
        let entry = self.connections.entry(key).or_insert_with(|| {
            let connection = Connection::new(segment, &self.known);
            Box::new(Entry { connection, lists: Lists::default() })
        });
        let (visitor, lists) = (&mut self.visitor, &mut entry.lists);
        if entry.connection.state != State::Other {
            visitor.segment(packet, segment);
        }
        entry.connection.take(segment, &mut |ends, finding| {
            lists.add(&finding);
            visitor.finding(ends, &finding);
        });
        let is_time = self.now_ns.saturating_sub(self.swept_ns) > LINGER_NS;
        if is_time || self.connections.len() > MOST_CONNECTIONS {
            self.sweep();
        }
    }

    /// Finish what is over; where that makes no room, what has been silent longest.
    fn sweep(&mut self) {
        self.swept_ns = self.now_ns;
        let until = self.now_ns.saturating_sub(LINGER_NS);
        let is_full = self.connections.len() > MOST_CONNECTIONS;
        let is_done = |entry: &Entry| {
            entry.connection.is_over() && (is_full || entry.connection.latest_ns < until)
        };
        let done = self.connections.iter().filter(|(_, entry)| is_done(entry));
        let done: Vec<Key> = done.map(|(key, _)| *key).collect();
        self.remove_all(done);
        if self.connections.len() > MOST_CONNECTIONS {
            let idle =
                self.connections.iter().map(|(key, entry)| (entry.connection.latest_ns, *key));
            let mut idle: Vec<(u64, Key)> = idle.collect();
            idle.sort_unstable();
            idle.truncate(MOST_CONNECTIONS / 2);
            self.totals.evicted += idle.len() as u64;
            self.remove_all(idle.into_iter().map(|(_, key)| key).collect());
        }
    }

    /// In the order in which they began, whatever order the table has them in.
    fn remove_all(&mut self, mut keys: Vec<Key>) {
        keys.sort_by_key(|key| (self.connections.get(key).map(|e| e.connection.first_ns), *key));
        for key in keys {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(mut entry) = self.connections.remove(key) else { return };
        let (visitor, lists) = (&mut self.visitor, &mut entry.lists);
        entry.connection.end(&mut |ends, finding| {
            lists.add(&finding);
            visitor.finding(ends, &finding);
        });
        if entry.connection.state == State::Frames {
            self.totals.websocket += 1;
            self.visitor.flow(entry.lists.report(&entry.connection));
        } else {
            self.totals.other_connections += 1;
        }
    }

    /// The capture is over: finish all connections.
    pub fn end(mut self) -> (V, Totals) {
        let keys = self.connections.keys().copied().collect();
        self.remove_all(keys);
        (self.visitor, self.totals)
    }
}

fn key(one: SocketAddr, other: SocketAddr) -> Key {
    if one <= other { (one, other) } else { (other, one) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a flood of SYNs costs at most.
    #[test]
    fn the_table_of_connections_is_bounded() {
        let bytes = (size_of::<Entry>() + size_of::<(Key, Box<Entry>)>()) * MOST_CONNECTIONS;
        assert!(bytes < 256 << 20, "{bytes} bytes");
    }
}
