"""Who floods, with what, and what is done about it."""

from base import Board, Lines, Number, Rows, rate_by, rates

BOARD = Board(
    "floods",
    "Floods",
    "Sources over their limit, what the guard does about them, and whether its tables bear it.",
    "wsguard_up",
    [
        (
            "Policy",
            [
                Number(
                    1,
                    "Pings in a window",
                    "Pings that a source may send in any window, on the node where it is lowest; networks and ports may have limits of their own.",
                    "none",
                    [("min(wsguard_policy_max_ping_rate)", "")],
                ),
                Number(
                    2,
                    "Window",
                    "Length of the window, on the node where it is longest.",
                    "s",
                    [("max(wsguard_policy_window_seconds)", "")],
                ),
                Number(
                    3,
                    "Share of a connection",
                    "Pings that every connection may send in any window, whatever its source has used.",
                    "none",
                    [("min(wsguard_policy_connection_share)", "")],
                ),
                Number(
                    4,
                    "Pace",
                    "Bytes a second that the paced connections of a source may send together; 0 is off.",
                    "Bps",
                    [("min(wsguard_policy_pace_bytes_per_second)", "")],
                ),
                Rows(
                    5,
                    "Action",
                    "What happens to pings over the limit, by node.",
                    "none",
                    [("wsguard_policy_info", "")],
                    width=8,
                    height=4,
                ),
            ],
        ),
        (
            "Sources",
            [
                Lines(
                    10,
                    "Throttled sources",
                    "Sources over their limit, by node.",
                    "none",
                    [("sum by (instance) (wsguard_sources_throttled)", "{{instance}}")],
                    ["WsGuardThrottling"],
                ),
                Lines(
                    11,
                    "Throttlings and releases",
                    "How often a source went over its limit, and how often the end of a throttling was noticed, at the source's next ping.",
                    "cps",
                    rates(
                        ("wsguard_throttles_total", "throttled"),
                        ("wsguard_releases_total", "released"),
                    ),
                ),
                Lines(
                    12,
                    "Pings answered and not",
                    "Pings a second: over the limit and defused; spared for their connection's share; and all.",
                    "cps",
                    rates(
                        ("wsguard_pings_total", "all"),
                        ("wsguard_pings_defused_total", "defused"),
                        ("wsguard_pings_spared_total", "spared"),
                    ),
                ),
                Lines(
                    13,
                    "Other frames over a limit",
                    "Pongs, empty fragments, tiny data frames and closes over the limit of their class; and, on TLS ports, records that may hold a ping.",
                    "cps",
                    rates(
                        ("wsguard_frames_over_limit_total", "over the limit"),
                        ("wsguard_tls_records_total", "TLS records"),
                        ("wsguard_tls_small_records_total", "small TLS records"),
                    ),
                ),
            ],
        ),
        (
            "What is done",
            [
                Lines(
                    20,
                    "Packets dropped",
                    "Client packets dropped, by reason. throttled is drop or ban at work; the other reasons make TCP send bytes again that could not be judged.",
                    "pps",
                    [rate_by("reason", "wsguard_packets_dropped_total")],
                ),
                Lines(
                    21,
                    "Paced connections",
                    "Connections over the limit whose receive window is held now, by node. Each source has one pace for all of its own.",
                    "none",
                    [("sum by (instance) (wsguard_connections_paced)", "{{instance}}")],
                    ["WsGuardConnectionsPaced"],
                ),
                Lines(
                    22,
                    "Pacing begun and ended",
                    "Connections whose window was held from then on, and those that got the server's own window back.",
                    "cps",
                    rates(
                        ("wsguard_paced_total", "paced"),
                        ("wsguard_paced_released_total", "released"),
                    ),
                ),
                Lines(
                    23,
                    "Held windows",
                    "Segments of servers whose window was lowered, zero-window probes that passed, and what was dropped: beyond a held window only a sender that ignores it sends; policed is a connection whose window cannot be held.",
                    "pps",
                    [
                        *rates(
                            ("wsguard_windows_held_total", "windows held"),
                            ("wsguard_window_probes_total", "probes passed"),
                        ),
                        rate_by(
                            "reason",
                            'wsguard_packets_dropped_total{reason=~"beyond_edge|policed"}',
                            "dropped: {{reason}}",
                        ),
                    ],
                ),
            ],
        ),
        (
            "Room",
            [
                Lines(
                    30,
                    "Sources without room",
                    "Sources that the full table had no room for, which share the limit of a coarser prefix, and idle ones that made room, by node.",
                    "cps",
                    [
                        (
                            "sum by (instance, event) (rate(wsguard_source_events_total[$__rate_interval]))",
                            "{{instance}}: {{event}}",
                        )
                    ],
                    ["WsGuardSourcesCoarse"],
                ),
                Lines(
                    31,
                    "Coarse prefixes in use",
                    "Prefixes that sources without room are charged to, and sources that have an entry of their own.",
                    "none",
                    [
                        ('sum(wsguard_table_entries{table="coarse"})', "coarse prefixes"),
                        ("sum(wsguard_sources)", "sources"),
                    ],
                ),
                Lines(
                    32,
                    "Flows",
                    "Tracked connections by state. Many handshakes that do not open are an attack on handshakes; unsynced ones lost step and are searched for the next frame.",
                    "none",
                    [("sum by (state) (wsguard_flows)", "{{state}}")],
                ),
                Lines(
                    33,
                    "Flow events",
                    "What happens to tracked connections, a second. refused: the full table had no room; reclaimed: made room under pressure.",
                    "cps",
                    [rate_by("event", "wsguard_flow_events_total")],
                ),
            ],
        ),
    ],
)
