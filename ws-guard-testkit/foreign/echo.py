"""An echo server on Python's `websockets`. See src/servers.rs for what it prints."""

import asyncio
import json
import os
import signal
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

totals = {"event": "totals", "connections": 0, "messages": 0, "pings": 0, "pongs": 0}


def say(**event):
    print(json.dumps(event), flush=True)


class Counting(ServerConnection):
    """Counts the control frames that the library answers by itself."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counts = {"messages": 0, "pings": 0, "pongs": 0}

    def count(self, kind):
        self.counts[kind] += 1
        totals[kind] += 1

    def process_event(self, event):
        opcode = getattr(event, "opcode", None)
        if opcode is Opcode.PING:
            self.count("pings")
        elif opcode is Opcode.PONG:
            self.count("pongs")
        super().process_event(event)


async def echo(connection):
    host, port = connection.remote_address[:2]
    peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    totals["connections"] += 1
    say(event="connected", peer=peer)
    why = None
    try:
        async for message in connection:
            connection.count("messages")
            await connection.send(message)
    except ConnectionClosed as closed:
        why = str(closed)
    say(event="closed", peer=peer, why=why, **connection.counts)


async def main(port):
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    # No pings of its own, so that every pong counted was requested by a client.
    # An address for each family: "::" alone would be IPv6 only.
    listening = serve(
        echo,
        ["0.0.0.0", "::"],
        port,
        create_connection=Counting,
        ping_interval=None,
        max_size=16 << 20,
        compression="deflate" if os.environ.get("ECHO_DEFLATE") else None,
        close_timeout=1,
    )
    async with listening:
        say(event="listening", port=port)
        await stopped.wait()
        print(json.dumps(totals), flush=True)


asyncio.run(main(int(sys.argv[1])))
