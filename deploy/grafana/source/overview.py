"""Is everything guarded, is anything attacked, and which of the other dashboards says more."""

from base import Board, Lines, Number, Rows, quantiles, rate_by, rates

BOARD = Board(
    "overview",
    "Overview",
    "Whether all nodes are guarded, what the guard does, and how the companion server is.",
    "wsguard_up",
    [
        (
            "Now",
            [
                Number(
                    1,
                    "Nodes guarded",
                    "Nodes on which every wanted interface is attached and a policy is in force.",
                    "none",
                    [("sum(wsguard_ready)", "")],
                ),
                Number(
                    2,
                    "Nodes not guarded",
                    "Nodes whose daemon answers and on which an interface or the policy is missing: see the attach modes below.",
                    "none",
                    [("count(wsguard_ready) - sum(wsguard_ready)", "")],
                    ["WsGuardNotAttached"],
                    bad=True,
                ),
                Number(
                    3,
                    "Guards that do not answer",
                    "Targets of the job ws-guard that cannot be asked, and daemons that cannot read their maps. What they loaded stays in force. Nodes without a target are not among them.",
                    "none",
                    [
                        (
                            'count(up{job="ws-guard"}) - (sum(wsguard_up) or vector(0))',
                            "",
                        )
                    ],
                    ["WsGuardDown", "WsGuardAbsent"],
                    bad=True,
                ),
                Number(
                    4,
                    "Servers that do not answer",
                    "Pods of the companion server whose metrics port does not answer.",
                    "none",
                    [
                        (
                            'count(up{job="ws-guard-server"}) - sum(up{job="ws-guard-server"})',
                            "",
                        )
                    ],
                    ["WsGuardServerDown"],
                    scope="node",
                    bad=True,
                ),
                Number(
                    5,
                    "Throttled sources",
                    "Addresses, or IPv6 prefixes, that are over their limit now: more in Floods.",
                    "none",
                    [("sum(wsguard_sources_throttled)", "")],
                ),
                Number(
                    6,
                    "Open connections",
                    "WebSocket connections that the guard follows.",
                    "none",
                    [('sum(wsguard_flows{state="open"})', "")],
                ),
                Number(
                    7,
                    "Suspected proxies",
                    "Untrusted peers that seem to speak for many clients: `ws-guard status` names them, and what to set.",
                    "none",
                    [("sum(wsguard_proxies_suspected)", "")],
                    ["WsGuardProxySuspected"],
                    bad=True,
                ),
                Number(
                    8,
                    "Refused configurations",
                    "Nodes that refused their latest configuration and go on with the one before.",
                    "none",
                    [("count(wsguard_config_valid) - sum(wsguard_config_valid)", "")],
                    ["WsGuardReloadFailed"],
                    bad=True,
                ),
                Number(
                    9,
                    "Settings that differ",
                    "Settings of the policy that have more than one value on the nodes of a cluster.",
                    "none",
                    [
                        (
                            "count(job:wsguard_policy_values:count > 1) or vector(0)",
                            "",
                        )
                    ],
                    ["WsGuardPoliciesDiffer"],
                    scope="cluster",
                    bad=True,
                ),
                Number(
                    10,
                    "Events lost",
                    "Events that the daemon did not see, in the time shown. Counters and verdicts do not depend on them.",
                    "short",
                    [
                        (
                            'sum(increase(wsguard_events_lost_total[$__range])) + sum(increase(wsguard_events_missed_total{reader="daemon"}[$__range]))',
                            "",
                        )
                    ],
                    ["WsGuardEventsLost"],
                    bad=True,
                ),
                Number(
                    11,
                    "Starts of daemons",
                    "How often daemons were started, in the time shown. Between starts everything stays in force.",
                    "short",
                    [("sum(changes(wsguard_start_time_seconds[$__range]))", "")],
                    ["WsGuardRestarting"],
                ),
                Number(
                    12,
                    "Pings defused",
                    "Pings over the limit that reached their server as pongs, in the time shown.",
                    "short",
                    [("sum(increase(wsguard_pings_defused_total[$__range]))", "")],
                ),
            ],
        ),
        (
            "Guard",
            [
                Lines(
                    20,
                    "Packets by verdict",
                    "Client packets to protected ports: passed, and dropped by reason. A packet with a defused ping is passed; the PING headers that were rewritten have a line of their own. Reasons: docs/operations.md.",
                    "pps",
                    [
                        (
                            "clamp_min(sum(rate(wsguard_packets_protected_total[$__rate_interval])) - sum(rate(wsguard_packets_dropped_total[$__rate_interval])), 0)",
                            "passed",
                        ),
                        rate_by("reason", "wsguard_packets_dropped_total", "dropped: {{reason}}"),
                        *rates(("wsguard_headers_rewritten_total", "PING headers rewritten")),
                    ],
                ),
                Lines(
                    21,
                    "Pings",
                    "Pings of clients a second. Defused ones were over the limit; spared ones were over that of their source and within their connection's share; witnessed ones were seen by their pongs only.",
                    "cps",
                    rates(
                        ("wsguard_pings_total", "seen"),
                        ("wsguard_pings_defused_total", "defused"),
                        ("wsguard_pings_spared_total", "spared"),
                        ("wsguard_pings_witnessed_total", "witnessed"),
                    ),
                ),
                Lines(
                    22,
                    "Tables",
                    "How full the kernel's tables are, on the fullest node. A full table of flows or sources refuses newcomers.",
                    "percentunit",
                    [
                        (
                            "max by (table) (wsguard_table_entries / wsguard_table_capacity)",
                            "{{table}}",
                        )
                    ],
                    ["WsGuardTableNearlyFull"],
                ),
                Rows(
                    23,
                    "Attach modes",
                    "How each interface is attached, by direction. Native XDP costs least; clsact is for kernels before 6.6.",
                    "none",
                    [("wsguard_attach_info", "")],
                    ["WsGuardGenericAttach"],
                ),
                Lines(
                    24,
                    "Neighbours",
                    "Attachments that others removed, and programs of others that run before the guard's, by interface and direction. The log names them.",
                    "none",
                    [
                        ("increase(wsguard_attachments_lost_total[$__rate_interval])", "removed"),
                        ("wsguard_programs_before", "before: {{interface}} {{direction}}"),
                    ],
                    ["WsGuardNeighbour"],
                ),
            ],
        ),
        (
            "Clients and servers",
            [
                Lines(
                    30,
                    "Heartbeat",
                    "From a client's ping on the wire to the server's pong: grows when the guarded server pauses. Empty while no ping is answered. More in Heartbeats and pauses.",
                    "s",
                    quantiles("wsguard_heartbeat_seconds"),
                ),
                Lines(
                    31,
                    "Companion server: ends",
                    "Connections of the companion server that ended, a second, by cause: ping_timeout and silence are dead heartbeats. More in Companion server.",
                    "cps",
                    [rate_by("cause", "wsguard_server_closed_total")],
                    scope="node",
                ),
            ],
        ),
    ],
)
