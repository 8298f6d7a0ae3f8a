"""The companion server."""

from base import Board, Heat, Lines, Number, heat, quantiles, rate_by, rates

BOARD = Board(
    "server",
    "Companion server",
    "Connections of the companion server, how they began and ended, and whether its threads keep up.",
    "wsguard_server_threads",
    [
        (
            "Connections",
            [
                Lines(
                    1,
                    "Live connections",
                    "Connections by state. A suspect one has not answered a ping; three unanswered pings end it.",
                    "none",
                    [("sum by (state) (wsguard_server_connections)", "{{state}}")],
                ),
                Lines(
                    2,
                    "Connections by region",
                    "Live connections by the region that clients name, the first 64 of them.",
                    "none",
                    [("sum by (region) (wsguard_server_connections)", "{{region}}")],
                ),
                Lines(
                    3,
                    "States reached",
                    "Connections a second that reached a state for the first time: open is every new one.",
                    "cps",
                    [rate_by("state", "websocket_connections_total")],
                ),
                Lines(
                    4,
                    "Ends",
                    "Connections that ended, a second, by cause, as in the access log.",
                    "cps",
                    [rate_by("cause", "wsguard_server_closed_total")],
                ),
                Lines(
                    5,
                    "Refused",
                    "TCP connections that did not become WebSocket connections, a second, by reason.",
                    "cps",
                    [rate_by("reason", "wsguard_server_refused_total")],
                ),
                Lines(
                    6,
                    "Handshake",
                    "From the TCP connection to the 101.",
                    "s",
                    quantiles("wsguard_server_handshake_seconds"),
                ),
                Lines(
                    7,
                    "Protocols",
                    "Live connections by the subprotocol that was agreed, and the share of those that failed.",
                    "none",
                    [
                        (
                            "sum by (protocol) (wsguard_server_protocol_connections)",
                            "{{protocol}}",
                        ),
                        rate_by(
                            "protocol", "wsguard_server_protocol_failed_total", "{{protocol}} failed"
                        ),
                    ],
                ),
                Lines(
                    8,
                    "Events by region",
                    "What happens to connections, a second: open, message, error, close; by region.",
                    "cps",
                    [rate_by("event, region", "wsguard_server_events_total", "{{event}}, {{region}}")],
                ),
            ],
        ),
        (
            "Load",
            [
                Lines(
                    20,
                    "Stall level",
                    "Threads by stall level: calm, refuse (new connections get 503), shed (idle ones are closed).",
                    "none",
                    [("sum by (instance, level) (wsguard_server_threads)", "{{instance}}: {{level}}")],
                    ["WsGuardServerStalled"],
                ),
                Lines(
                    21,
                    "Changes of level",
                    "Level changes of threads, and their circumstances: a surge of new connections, reconnects, queues, or nothing.",
                    "cps",
                    [rate_by("level, during", "wsguard_server_stall_changes_total", "{{level}}: {{during}}")],
                ),
                Lines(
                    22,
                    "Scheduling delay",
                    "How late a thread wakes that slept for 10 ms. Over 50 ms new connections are refused, over 120 ms idle ones are closed.",
                    "s",
                    quantiles("wsguard_server_scheduling_delay_seconds"),
                ),
                Lines(
                    23,
                    "Charged delay",
                    "Seconds a second by which connections delayed their thread, which is charged to them.",
                    "none",
                    rates(("wsguard_server_charged_seconds_total", "charged")),
                ),
                Lines(
                    24,
                    "Messages",
                    "Whole messages read and written, a second.",
                    "cps",
                    [rate_by("direction", "wsguard_server_messages_total")],
                ),
                Lines(
                    25,
                    "Bytes",
                    "Bytes read and written behind the handshake, a second.",
                    "Bps",
                    [rate_by("direction", "wsguard_server_bytes_total")],
                ),
                Lines(
                    26,
                    "Buffers",
                    "Bytes that connections hold in buffers, parts of messages and output, by pod.",
                    "bytes",
                    [("sum by (instance) (wsguard_server_buffered_bytes)", "{{instance}}")],
                ),
                Heat(
                    27,
                    "Queue behind messages",
                    "Bytes that waited to be written on a connection after messages were read from it: clients that read slowly are at the top.",
                    "bytes",
                    heat("wsguard_server_message_queue_bytes"),
                ),
            ],
        ),
        (
            "Path to clients",
            [
                Lines(
                    50,
                    "TCP round-trip time",
                    "Smoothed round-trip times of TCP as the kernel has them, of each active or pinged connection at most once a ping interval, and at its end.",
                    "s",
                    quantiles("wsguard_server_tcp_rtt_seconds"),
                ),
                Lines(
                    51,
                    "Segments sent again",
                    "Segments that TCP sent again, a second, by pod: loss on the path, or clients that are gone.",
                    "cps",
                    [
                        (
                            "sum by (instance) (rate(wsguard_server_tcp_retransmitted_segments_sum[$__rate_interval]))",
                            "{{instance}}",
                        )
                    ],
                ),
                Heat(
                    52,
                    "Unacknowledged segments",
                    "Segments that clients had not acknowledged when their connection was looked at: paths that died are at the top.",
                    "none",
                    heat("wsguard_server_tcp_unacknowledged_segments"),
                ),
            ],
        ),
        (
            "Process",
            [
                Number(
                    30,
                    "Restarts",
                    "Starts of the server's process after it died, in the time shown, with run --listen. The guard goes on meanwhile.",
                    "short",
                    [("sum(increase(wsguard_server_restarts_total[$__range]))", "")],
                    ["WsGuardServerRestarted"],
                    bad=True,
                ),
                Number(
                    31,
                    "Access log lines lost",
                    "Lines of the access log that were lost, in the time shown: what takes them was too slow, or could not.",
                    "short",
                    [("sum(increase(wsguard_server_access_log_lost_total[$__range]))", "")],
                    bad=True,
                ),
                Number(
                    32,
                    "Ping interval",
                    "Silence of a client after which it is pinged.",
                    "s",
                    [("max(wsguard_server_ping_interval_seconds)", "")],
                ),
                Lines(
                    33,
                    "Pings inside TLS",
                    "Pings inside TLS that were noted for the kernel's table of sources, with run --listen, and those that were lost.",
                    "cps",
                    rates(
                        ("wsguard_server_tls_pings_total", "noted"),
                        ("wsguard_server_tls_pings_lost_total", "lost"),
                    ),
                ),
            ],
        ),
        (
            "Topics and export",
            [
                Lines(
                    40,
                    "Topics",
                    "Topics with subscribers or a history, and subscriptions, with the handler topic.",
                    "none",
                    [
                        ("sum(wsguard_server_topics)", "topics"),
                        ("sum(wsguard_server_subscriptions)", "subscriptions"),
                    ],
                ),
                Lines(
                    41,
                    "Deliveries",
                    "Publications a second, and what became of them for each subscriber.",
                    "cps",
                    [
                        *rates(("wsguard_server_publications_total", "published")),
                        rate_by("result", "wsguard_server_deliveries_total"),
                    ],
                ),
                Lines(
                    43,
                    "Recoveries",
                    "Subscriptions a second that went on at their position, or could not (no); and connections with a resume token, by whether it was valid.",
                    "cps",
                    [
                        rate_by("recovered", "wsguard_server_recoveries_total", "recovered: {{recovered}}"),
                        rate_by("valid", "wsguard_server_resumptions_total", "valid token: {{valid}}"),
                    ],
                    ["WsGuardNotRecovered"],
                ),
                Lines(
                    44,
                    "History",
                    "Memory of the histories of all topics, by pod, and the least that one may take (--history-bytes).",
                    "bytes",
                    [
                        ("sum by (instance) (wsguard_server_history_bytes)", "{{instance}}"),
                        ("min(wsguard_server_history_limit_bytes)", "limit"),
                    ],
                    ["WsGuardHistoryFull"],
                ),
                Lines(
                    45,
                    "Bus",
                    "Servers that are connected to Redis, and publications a second that it did not store, with --bus.",
                    "none",
                    [
                        ("sum(wsguard_server_bus_connected)", "connected"),
                        *rates(("wsguard_server_bus_failures_total", "failed")),
                    ],
                    ["WsGuardBusDown"],
                ),
                Heat(
                    46,
                    "Bus lag",
                    "From the storage of a publication in Redis to its arrival at a server.",
                    "s",
                    heat("wsguard_server_bus_lag_seconds"),
                    ["WsGuardBusLag"],
                ),
                Lines(
                    48,
                    "Reading again",
                    "Publications a second that were stored while a server did not read a topic of its clients: read afterwards, or gone by then; and topics read from their beginning.",
                    "cps",
                    rates(
                        ("wsguard_server_bus_caught_up_total", "caught up"),
                        ("wsguard_server_bus_missed_total", "missed"),
                        ("wsguard_server_bus_loads_total", "topics loaded"),
                    ),
                    ["WsGuardBusMissed"],
                ),
                Lines(
                    47,
                    "Queues",
                    "Entries of queue topics, a second: delivered, again, claimed from a server or a client that is gone, and acknowledged.",
                    "cps",
                    rates(
                        ("wsguard_server_queue_delivered_total", "delivered"),
                        ("wsguard_server_queue_redelivered_total", "again"),
                        ("wsguard_server_queue_claimed_total", "claimed"),
                        ("wsguard_server_queue_acknowledged_total", "acknowledged"),
                    ),
                    ["WsGuardQueueRedelivered", "WsGuardQueueClaimed"],
                ),
                Lines(
                    49,
                    "Entries given up",
                    "Entries of queue topics, a second, that were delivered too often (dead letters), or were pending and no longer in Redis (lost).",
                    "cps",
                    rates(
                        ("wsguard_server_queue_dead_letters_total", "dead letters"),
                        ("wsguard_server_queue_lost_total", "lost"),
                    ),
                    ["WsGuardDeadLetters", "WsGuardQueueLost"],
                ),
                Lines(
                    42,
                    "OTLP requests",
                    "Requests to the OpenTelemetry collector, a second, by how they went and what they carried.",
                    "cps",
                    [rate_by("signal, result", "wsguard_otlp_requests_total", "{{signal}}: {{result}}")],
                ),
            ],
        ),
    ],
)
