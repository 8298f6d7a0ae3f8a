//! Figures by server: heartbeats, ends of connections, notable segments, silence.

use std::net::SocketAddr;

use prometheus::proto::MetricFamily;
use ws_guard_common::{
    frame::Violation,
    heartbeat::BOUNDS_US,
    maps::{End, Segments, Server, ServerKey},
};

use super::families::{Labels, counters, gauges, histograms};
use crate::domain::silence::{SECONDS, STEPS};

/// Value of the labels `server` and `port` of servers without their own figures.
const OTHER: &str = "other";
/// Senders, by index.
const SIDES: [&str; 2] = ["client", "server"];

/// Figures by server or port.
pub struct Servers {
    /// Figures by server; without a key, of all others together, which always exist.
    pub figures: Vec<(Option<ServerKey>, Server)>,
    /// Open connections by port, `None` for all others, and by their silence.
    pub silence: Vec<(Option<u16>, [u32; STEPS])>,
}

/// Labels of a server: its port and its address.
struct Named<'a> {
    port: String,
    address: String,
    server: &'a Server,
}

impl Named<'_> {
    /// Check whether these are the labels of all servers without their own figures.
    fn is_others(&self) -> bool {
        self.address == OTHER
    }

    fn labels<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut labels = vec![("port", self.port.as_str()), ("server", self.address.as_str())];
        labels.extend_from_slice(more);
        labels.sort_unstable();
        labels
    }
}

/// Return the families of servers with anything counted, and of others together.
pub fn families(servers: &Servers) -> Vec<MetricFamily> {
    let named: Vec<Named<'_>> = servers
        .figures
        .iter()
        .map(|(key, server)| match key.as_ref().map(SocketAddr::from) {
            Some(at) => Named { port: at.port().to_string(), address: at.ip().to_string(), server },
            None => Named { port: OTHER.into(), address: OTHER.into(), server },
        })
        .collect();
    vec![
        heartbeats(
            &named,
            0,
            "heartbeat_seconds",
            "From a client's ping on the wire to the server's pong with its payload, by server: grows when the server pauses.",
        ),
        heartbeats(
            &named,
            1,
            "client_heartbeat_seconds",
            "From a server's ping on the wire to the client's pong with its payload, by server: grows with the distance to its clients.",
        ),
        counted(
            &named,
            "pings_unanswered_total",
            "Pings that got no pong for a minute, or for a second when their connection ended, by the side that pinged. Of several that wait at once on a connection the oldest and the newest are watched.",
            |named| {
                let sides = SIDES.into_iter().zip(named.server.unanswered);
                sides.map(|(side, count)| (vec![("side", side)], count)).collect()
            },
        ),
        counted(
            &named,
            "connections_ended_total",
            "Connections by the first sign of their end: FIN or RST, and of which side; silence had none when they made room in the full table, after five minutes of it, or when their end points were used again.",
            |named| {
                let ends = End::ALL.into_iter().zip(named.server.ended);
                ends.map(|(end, count)| (vec![("end", end.name())], count)).collect()
            },
        ),
        counted(
            &named,
            "segments_of_note_total",
            "Segments by sender: more than one frame begins in them, their end cuts a header, they came again, or came before others that were missing.",
            |named| {
                let sides = SIDES.into_iter().zip(&named.server.segments);
                let kinds = |(side, segments): (&'static str, &Segments)| {
                    [
                        ("coalesced", segments.coalesced),
                        ("split_header", segments.split_headers),
                        ("retransmitted", segments.retransmitted),
                        ("out_of_order", segments.out_of_order),
                    ]
                    .map(|(kind, count)| (vec![("kind", kind), ("side", side)], count))
                };
                sides.flat_map(kinds).collect()
            },
        ),
        counted(
            &named,
            "violating_segments_total",
            "Segments with frames whose header violates RFC 6455, by what is wrong and whose they were; a named server has a series from its first one on.",
            |named| {
                let sides = SIDES.into_iter().zip(&named.server.segments);
                let kinds = |(side, segments): (&'static str, &Segments)| {
                    let kinds = Violation::ALL.into_iter().zip(segments.violations);
                    let shown = kinds.filter(|(_, count)| *count > 0 || named.is_others());
                    shown.map(move |(kind, count)| {
                        (vec![("kind", kind.name()), ("side", side)], count)
                    })
                };
                sides.flat_map(kinds).collect()
            },
        ),
        silent(&servers.silence),
    ]
}

fn heartbeats(named: &[Named<'_>], side: usize, name: &str, help: &str) -> MetricFamily {
    let bounds: Vec<f64> = BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6).collect();
    let labels: Vec<_> = named.iter().map(|named| named.labels(&[])).collect();
    let samples: Vec<_> = named
        .iter()
        .zip(&labels)
        .map(|(named, labels)| {
            let times = &named.server.heartbeats[side];
            (labels.as_slice(), times.buckets.as_slice(), times.sum_us as f64 / 1e6)
        })
        .collect();
    histograms(name, help, &bounds, &samples)
}

/// Labels and value of a server's sample.
type Sample = (Vec<(&'static str, &'static str)>, u64);

fn counted(
    named: &[Named<'_>],
    name: &str,
    help: &str,
    values: impl Fn(&Named<'_>) -> Vec<Sample>,
) -> MetricFamily {
    let mut samples = Vec::new();
    for named in named {
        for (labels, value) in values(named) {
            samples.push((named.labels(&labels), value));
        }
    }
    let samples: Vec<(Labels<'_>, u64)> =
        samples.iter().map(|(labels, value)| (labels.as_slice(), *value)).collect();
    counters(name, help, &samples)
}

fn silent(silence: &[(Option<u16>, [u32; STEPS])]) -> MetricFamily {
    let mut samples = Vec::new();
    for (port, counts) in silence {
        let port = port.map_or(OTHER.into(), |port| port.to_string());
        for (seconds, count) in SECONDS.into_iter().zip(counts) {
            samples.push((port.clone(), seconds.to_string(), *count));
        }
    }
    let labels: Vec<_> = samples
        .iter()
        .map(|(port, seconds, count)| ([("port", port.as_str()), ("seconds", seconds)], *count))
        .collect();
    let samples: Vec<(Labels<'_>, f64)> =
        labels.iter().map(|(labels, count)| (labels.as_slice(), f64::from(*count))).collect();
    gauges(
        "flows_silent",
        "Open connections without a byte of payload in either direction for at least this number of seconds, by port; 0 is all of them.",
        &samples,
    )
}

/// Figures of a server for the catalogue, present in every family.
#[cfg(test)]
pub fn specimen() -> Servers {
    use std::net::IpAddr;

    let key =
        ServerKey { address: IpAddr::from([10, 77, 0, 1]).into(), port: 8080u16.to_be(), _pad: 0 };
    let mut server = Server::default();
    for segments in &mut server.segments {
        segments.violations = [1; Violation::COUNT];
    }
    Servers { figures: vec![(Some(key), server)], silence: vec![(Some(8080), [0; STEPS])] }
}
