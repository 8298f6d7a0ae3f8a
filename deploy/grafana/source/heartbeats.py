"""Heartbeats that died, and servers that pause."""

from base import SERVERS, Board, Heat, Lines, by_server, heat, quantiles, rate_by, rates

BOARD = Board(
    "heartbeats",
    "Heartbeats and pauses",
    "How long servers take to answer pings on the wire, whether they answer at all, and which connections timed out.",
    "wsguard_up",
    [
        (
            "On the wire, for any server",
            [
                Lines(
                    1,
                    "Heartbeat by node",
                    "One ping in a hundred took longer than this from the wire to the server's pong, over five minutes, by node. All servers of a node are in it.",
                    "s",
                    [("instance:wsguard_heartbeat_seconds:p99_5m", "{{instance}}")],
                ),
                Heat(
                    2,
                    "Heartbeat, all pings",
                    "Ping-to-pong times on the wire. A band that rises is a server that is slow for all; a second band above is a server, or a thread of one, that pauses.",
                    "s",
                    heat("wsguard_heartbeat_seconds", SERVERS),
                ),
                Lines(
                    3,
                    "Pings without a pong",
                    "Share of the pings that reached a server as pings, and got no pong, over ten minutes, by node. A throttled source's pings go without one on purpose.",
                    "percentunit",
                    [("clamp_min(instance:wsguard_pings_unanswered:ratio_rate10m, 0)", "{{instance}}")],
                    ["WsGuardHeartbeatsUnanswered"],
                ),
                Lines(
                    4,
                    "Pings and pongs",
                    "Pings of clients less defused ones, and pongs of servers: they run together while servers answer. Pongs of clients answer servers' pings, or nothing.",
                    "cps",
                    [
                        (
                            "sum(rate(wsguard_pings_total[$__rate_interval])) - sum(rate(wsguard_pings_defused_total[$__rate_interval]))",
                            "pings that ask for a pong",
                        ),
                        rate_by("side", "wsguard_pongs_total", "pongs of {{side}}s"),
                    ],
                ),
            ],
        ),
        (
            "By server",
            [
                Lines(
                    5,
                    "Heartbeat by server",
                    "One ping in a hundred took longer than this to the server's pong with its payload. The line that rises names the server that pauses.",
                    "s",
                    [by_server(0.99, "wsguard_heartbeat_seconds")],
                    ["WsGuardHeartbeatSlow"],
                ),
                Lines(
                    6,
                    "Heartbeats of clients",
                    "One of a server's pings in a hundred took longer than this to the client's pong: the way to clients and back, and clients that pause.",
                    "s",
                    [by_server(0.99, "wsguard_client_heartbeat_seconds")],
                ),
                Lines(
                    7,
                    "Pings given up",
                    "Pings a second that got no pong for a minute, or for a second when their connection ended, by the side that pinged.",
                    "cps",
                    [
                        rate_by(
                            "side, server, port",
                            f"wsguard_pings_unanswered_total{SERVERS}",
                            "{{side}}s' pings, {{server}} port {{port}}",
                        )
                    ],
                ),
                Lines(
                    8,
                    "How connections ended",
                    "Connections a second by the first sign of their end. RSTs of a proxy or of servers, and silence, are heartbeats that died; a FIN is a farewell.",
                    "cps",
                    [rate_by("end", f"wsguard_connections_ended_total{SERVERS}")],
                ),
                Lines(
                    9,
                    "Silent connections",
                    "Open connections without payload in either direction for so long. NAT and proxies drop them after 30, 60, 100, 300 or 900 seconds, depending on the product.",
                    "none",
                    [
                        (
                            'sum by (seconds) (wsguard_flows_silent{port=~"$port",seconds!="0"})',
                            "{{seconds}} s and longer",
                        )
                    ],
                ),
            ],
        ),
        (
            "Companion server",
            [
                Lines(
                    10,
                    "Pong",
                    "From a client's ping to its pong inside of the companion server, where the client was not what it waited for.",
                    "s",
                    quantiles("wsguard_server_pong_seconds"),
                    ["WsGuardServerPongSlow"],
                    scope="node",
                ),
                Heat(
                    11,
                    "Scheduling delay",
                    "How late a thread wakes that slept for 10 ms. Over 50 ms new connections are refused, over 120 ms idle ones are closed.",
                    "s",
                    heat("wsguard_server_scheduling_delay_seconds"),
                    scope="node",
                ),
                Lines(
                    12,
                    "Connections that timed out",
                    "Connections that ended without a pong, or without a byte, a second: their clients see 1006, or the close code 1011.",
                    "cps",
                    [rate_by("cause", 'wsguard_server_closed_total{cause=~"ping_timeout|silence"}')],
                    ["WsGuardServerTimeouts"],
                    scope="node",
                ),
                Lines(
                    13,
                    "Suspects",
                    "Connections that have not answered a ping in time now, and how many came to that, a second.",
                    "none",
                    [
                        ('sum(wsguard_server_connections{state="suspect"})', "suspect now"),
                        (
                            'sum(rate(websocket_connections_total{state="suspect"}[$__rate_interval]))',
                            "became suspect",
                        ),
                    ],
                    scope="node",
                ),
                Lines(
                    14,
                    "Heartbeats sent and answered",
                    "Pings sent to silent clients, and pings of clients answered, over a limit, or passed over for a later one.",
                    "cps",
                    [rate_by("what", "wsguard_server_pings_total")],
                    scope="node",
                ),
                Lines(
                    15,
                    "Reconnects",
                    "Handshakes of clients whose connection ended in the last minute, and all: many are a network or a server that went away.",
                    "cps",
                    rates(
                        ("wsguard_server_reconnects_total", "came back"),
                        ("wsguard_server_opened_total", "opened"),
                    ),
                    scope="node",
                ),
            ],
        ),
    ],
    servers=True,
)
