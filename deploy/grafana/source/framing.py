"""Frames that coalesce or split across segments, and headers that violate RFC 6455."""

from base import SERVERS, Board, Lines, rate_by, rates

BOARD = Board(
    "framing",
    "Framing",
    "How frames lie in segments, what of them violates RFC 6455, and where the guard lost step.",
    "wsguard_up",
    [
        (
            "Frames and segments",
            [
                Lines(
                    1,
                    "Frames",
                    "WebSocket frames that began in the streams of clients and servers, retransmissions not counted again.",
                    "cps",
                    [rate_by("side", "wsguard_frames_total")],
                ),
                Lines(
                    2,
                    "Segments of note",
                    "Client segments a second: coalesced have more than one frame beginning in them, rewalked were judged again, gap came before bytes that were still missing.",
                    "pps",
                    [rate_by("kind", "wsguard_segments_total")],
                ),
                Lines(
                    3,
                    "Split frames",
                    "Client frames a second that a segment boundary cut: in the header, which a reader that takes a read for a frame gets wrong, or anywhere.",
                    "cps",
                    [rate_by("part", "wsguard_splits_total")],
                ),
                Lines(
                    4,
                    "Coalesced and split",
                    "Share of client segments with payload in which more than one frame begins, and of client frames that a segment boundary cuts.",
                    "percentunit",
                    [
                        (
                            'sum(rate(wsguard_segments_total{kind="coalesced"}[$__rate_interval])) / sum(rate(wsguard_packets_tracked_total{direction="ingress"}[$__rate_interval]))',
                            "coalesced segments",
                        ),
                        (
                            'sum(rate(wsguard_splits_total{part="frame"}[$__rate_interval])) / sum(rate(wsguard_frames_total{side="client"}[$__rate_interval]))',
                            "split frames",
                        ),
                    ],
                ),
            ],
        ),
        (
            "By port and direction",
            [
                Lines(
                    5,
                    "Segments of note by port",
                    "Segments a second by port and sender: more than one frame begins in them, or their end cuts a header.",
                    "pps",
                    [
                        rate_by(
                            "port, side, kind",
                            f"wsguard_segments_of_note_total{SERVERS[:-1]},kind=~\"coalesced|split_header\"}}",
                            "{{kind}}, {{side}}, port {{port}}",
                        )
                    ],
                ),
                Lines(
                    6,
                    "Loss by port",
                    "Segments a second that came again or out of order, by port and sender. Of one side only: look at the network on its way.",
                    "pps",
                    [
                        rate_by(
                            "port, side, kind",
                            f"wsguard_segments_of_note_total{SERVERS[:-1]},kind=~\"retransmitted|out_of_order\"}}",
                            "{{kind}}, {{side}}, port {{port}}",
                        )
                    ],
                ),
                Lines(
                    7,
                    "Violations by server",
                    "Segments a second with frames whose header violates RFC 6455, by server, sender and kind.",
                    "pps",
                    [
                        rate_by(
                            "server, port, side, kind",
                            f"wsguard_violating_segments_total{SERVERS}",
                            "{{kind}}, {{side}}, {{server}} port {{port}}",
                        )
                    ],
                ),
            ],
        ),
        (
            "What is wrong",
            [
                Lines(
                    10,
                    "Violations",
                    "Frames a second whose header violates RFC 6455, by what is wrong and whose it was.",
                    "cps",
                    [rate_by("kind, side", "wsguard_violations_total", "{{kind}}, {{side}}")],
                    ["WsGuardViolations"],
                ),
                Lines(
                    11,
                    "Companion server: protocol errors",
                    "Connections that the companion server closed because the client broke the protocol, by how.",
                    "cps",
                    [rate_by("kind", "wsguard_server_protocol_errors_total")],
                    scope="node",
                ),
                Lines(
                    12,
                    "Step lost and found",
                    "Connections a second whose frames went by unseen, that were found again, or that were joined in the middle.",
                    "cps",
                    [
                        rate_by(
                            "event",
                            'wsguard_flow_events_total{event=~"unsynced|resynced|joined|request_unseen"}',
                        )
                    ],
                ),
                Lines(
                    13,
                    "Packets that could not be read",
                    "Packets that may carry TCP and could not be read, and those of clients dropped because bytes before them are missing or could not be checked.",
                    "pps",
                    [
                        *rates(("wsguard_packets_unparsed_total", "unparsed")),
                        rate_by(
                            "reason",
                            'wsguard_packets_dropped_total{reason=~"gap|untraced|changed|unreadable|unsynced"}',
                            "dropped: {{reason}}",
                        ),
                    ],
                ),
            ],
        ),
    ],
    servers=True,
)
