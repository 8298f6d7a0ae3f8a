//! All connections of a capture, in memory bounded by those that are open.

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

/// Maximum number of connections followed concurrently.
const MOST_CONNECTIONS: usize = 64_000;
/// Wait of a closed connection for late packets, in nanoseconds of the capture.
const LINGER_NS: u64 = 10_000_000_000;

/// Receiver of results.
pub trait Visitor {
    /// Receive a TCP segment of a connection that is followed, or may become so.
    fn segment(&mut self, _packet: &Packet<'_>, _segment: &Segment<'_>) {}
    /// Receive a finding, frames included, as soon as it is made.
    fn finding(&mut self, _ends: &Ends, _finding: &Finding) {}
    /// Receive the report at the end of a connection or of the capture.
    fn flow(&mut self, report: FlowReport);
}

/// Totals of a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub packets: u64,
    /// TCP segments, with or without payload.
    pub segments: u64,
    /// Packets truncated by the capture.
    pub snapped: u64,
    /// Packets other than TCP.
    pub not_tcp: u64,
    /// IP fragments, which are not reassembled.
    pub fragments: u64,
    /// Packets cut or broken before the end of their TCP header.
    pub unreadable: u64,
    /// Packets of an unsupported link type.
    pub unknown_link: u64,
    /// Live: packets that arrived too fast to be read.
    pub too_fast: u64,
    /// WebSocket connections followed.
    pub websocket: u64,
    /// Other TCP connections.
    pub other_connections: u64,
    /// Connections evicted before their end.
    pub evicted: u64,
}

/// Both ends, in an order independent of the sender.
type Key = (SocketAddr, SocketAddr);

struct Entry {
    connection: Connection,
    lists: Lists,
}

/// Follower of a capture's connections.
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

    /// Expect a length-delimited protocol on a port instead of WebSocket.
    pub fn know(&mut self, known: OnPort) {
        self.known.alone.insert(known.port, Arc::new(known.protocol));
    }

    /// Expect a length-delimited protocol inside the WebSocket messages of a port.
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

    /// Return the receiver of results.
    pub const fn visitor(&mut self) -> &mut V {
        &mut self.visitor
    }

    /// Process the next packet.
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

    /// Finish connections that are over; if that frees no room, the longest silent one.
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

    /// Remove connections in the order in which they began, whatever the table's order.
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

    /// Finish all connections at the end of the capture.
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

    /// Maximum cost of a SYN flood.
    #[test]
    fn the_table_of_connections_is_bounded() {
        let bytes = (size_of::<Entry>() + size_of::<(Key, Box<Entry>)>()) * MOST_CONNECTIONS;
        assert!(bytes < 256 << 20, "{bytes} bytes");
    }
}
