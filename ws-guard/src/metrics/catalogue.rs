//! The kernel programs' counters as metric families: name, help, counters by label.

use ws_guard_common::maps::Counter;

/// Metric family: samples by the value of its label, or a single one without.
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    /// Empty for a family without labels.
    pub label: &'static str,
    pub samples: &'static [(Counter, &'static str)],
}

const fn plain(
    name: &'static str,
    help: &'static str,
    samples: &'static [(Counter, &'static str)],
) -> Family {
    Family { name, help, label: "", samples }
}

const fn by(
    label: &'static str,
    name: &'static str,
    help: &'static str,
    samples: &'static [(Counter, &'static str)],
) -> Family {
    Family { name, help, label, samples }
}

/// Families that are plain readings of counters.
/// Violations, event losses and the heartbeat histogram are built in [`super::collector`].
pub static COUNTERS: [Family; 28] = [
    by(
        "direction",
        "packets_seen_total",
        "Packets that the programs looked at, by direction: ingress is what clients send. Not growing under load means the guard is not in the path.",
        &[(Counter::Seen, "ingress"), (Counter::EgressSeen, "egress")],
    ),
    plain(
        "packets_protected_total",
        "Client packets to a protected port.",
        &[(Counter::Protected, "")],
    ),
    by(
        "direction",
        "packets_tracked_total",
        "Packets on a tracked WebSocket connection; on ingress only segments with payload.",
        &[(Counter::Tracked, "ingress"), (Counter::EgressTracked, "egress")],
    ),
    plain(
        "packets_unparsed_total",
        "Packets that may carry TCP and could not be read: fragments, too many headers, malformed ones. Those for a protected port are dropped, with reason fragment or headers.",
        &[(Counter::Unparsed, "")],
    ),
    by(
        "reason",
        "packets_dropped_total",
        "Packets dropped. throttled is action drop or ban at work; the other reasons make TCP send bytes again that could not be judged.",
        &crate::domain::status::DROP_REASONS,
    ),
    by(
        "side",
        "frames_total",
        "WebSocket frames that began in the streams of clients and servers, retransmissions not counted again.",
        &[(Counter::Frames, "client"), (Counter::FramesOut, "server")],
    ),
    plain("pings_total", "PING frames of clients, each once.", &[(Counter::Pings, "")]),
    plain(
        "pings_witnessed_total",
        "Unseen pings, known from the pongs that answered them.",
        &[(Counter::Witnessed, "")],
    ),
    by(
        "side",
        "pongs_total",
        "PONG frames. Fewer from servers than pings less defused ones: servers do not answer.",
        &[(Counter::Pongs, "client"), (Counter::PongsOut, "server")],
    ),
    plain(
        "pings_defused_total",
        "Pings over the limit that reached the server as pongs, each once.",
        &[(Counter::Defused, "")],
    ),
    plain(
        "pings_spared_total",
        "Pings answered for their connection's share alone: the heartbeats of a crowd behind one address.",
        &[(Counter::Spared, "")],
    ),
    plain(
        "headers_rewritten_total",
        "PING headers rewritten, those of retransmissions included.",
        &[(Counter::Rewritten, "")],
    ),
    by(
        "kind",
        "segments_total",
        "Client segments of note: coalesced have more than one frame beginning in them, rewalked were judged again, gap came before bytes that were still missing.",
        &[
            (Counter::Coalesced, "coalesced"),
            (Counter::Rewalked, "rewalked"),
            (Counter::Gaps, "gap"),
        ],
    ),
    by(
        "part",
        "splits_total",
        "Client frames cut by a segment boundary: in the header, or anywhere.",
        &[(Counter::SplitHeaders, "header"), (Counter::SplitFrames, "frame")],
    ),
    by(
        "event",
        "flow_events_total",
        "What happened to tracked connections. reopened: the client went on after its end; refused: the full table had no room; joined: found in the middle, the beginning went by unseen; unsynced: frames went by unseen; reclaimed: made room under pressure; request_unseen: joined at the server's answer.",
        &[
            (Counter::FlowsOpened, "opened"),
            (Counter::FlowsClosed, "closed"),
            (Counter::FlowsReopened, "reopened"),
            (Counter::FlowsJoined, "joined"),
            (Counter::FlowsUnsynced, "unsynced"),
            (Counter::FlowsResynced, "resynced"),
            (Counter::FlowsRefused, "refused"),
            (Counter::FlowsReclaimed, "reclaimed"),
            (Counter::RequestsUnseen, "request_unseen"),
        ],
    ),
    by(
        "event",
        "source_events_total",
        "Sources that the full table had no room for, which are charged to a coarser prefix, and idle ones that made room.",
        &[(Counter::SourcesRefused, "refused"), (Counter::SourcesReclaimed, "reclaimed")],
    ),
    plain(
        "throttles_total",
        "Times that a source went past its limit and was throttled.",
        &[(Counter::Throttled, "")],
    ),
    plain(
        "frames_over_limit_total",
        "Pongs, empty fragments, tiny data frames, closes and small TLS records over the limit of their class.",
        &[(Counter::FramesOver, "")],
    ),
    plain(
        "tls_records_total",
        "TLS records that began in client streams, on TLS ports.",
        &[(Counter::Records, "")],
    ),
    plain(
        "tls_small_records_total",
        "TLS records among them that may hold a ping, where they have a limit.",
        &[(Counter::SmallRecords, "")],
    ),
    plain(
        "mptcp_refused_total",
        "SYNs of clients that asked for Multipath TCP, where the guard enforces: they go on with plain TCP.",
        &[(Counter::MptcpRefused, "")],
    ),
    plain(
        "releases_total",
        "Throttlings whose end the kernel noticed, at the source's next ping.",
        &[(Counter::Released, "")],
    ),
    plain(
        "paced_total",
        "Connections over the limit whose receive window was held from then on.",
        &[(Counter::Paced, "")],
    ),
    plain(
        "paced_released_total",
        "Paced connections that got the server's own window back.",
        &[(Counter::Unpaced, "")],
    ),
    plain(
        "windows_held_total",
        "Segments of servers whose receive window was lowered to what the pace permits.",
        &[(Counter::WindowsHeld, "")],
    ),
    plain(
        "window_probes_total",
        "Zero-window probes of one new byte that passed a held window.",
        &[(Counter::Probes, "")],
    ),
    plain(
        "events_lost_total",
        "Events that did not fit the ring buffer: the daemon was too slow, or away.",
        &[(Counter::EventsLost, "")],
    ),
    plain(
        "events_suppressed_total",
        "Events suppressed by the kernel's rate limit, which keeps attackers from flooding the log.",
        &[(Counter::EventsSuppressed, "")],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown_exactly_once() {
        let mut shown: Vec<u32> = COUNTERS
            .iter()
            .flat_map(|family| family.samples.iter().map(|(counter, _)| *counter as u32))
            .collect();
        shown.sort_unstable();
        assert_eq!(shown, (0..Counter::COUNT as u32).collect::<Vec<_>>());
    }

    #[test]
    fn counters_are_named_as_counters() {
        for family in &COUNTERS {
            assert!(family.name.ends_with("_total"), "{}", family.name);
            assert!(family.help.ends_with('.'), "{}", family.name);
        }
    }
}
