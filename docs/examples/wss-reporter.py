#!/usr/bin/env python3
"""A WebSocket server that terminates TLS and reports its clients' pings to ws-guard.

The guard cannot see frames inside TLS; this server can. Twice a second it hands the pings of each
client address to the guard's control socket, which charges them to the same sources that it counts
itself. On a port that is marked (`--port 9443/tls`) the kernel then slows the connection of a source
down that goes past the limit, or cuts it off with `--port '9443/tls action=drop'`.

Needs Python 3.9 and `websockets` 14 or later. The user has to be able to open the control socket.

  wss-reporter.py --cert CERT --key KEY [--port 9443] [--socket /run/ws-guard/control.sock]
"""

import argparse
import asyncio
import http.client
import json
import logging
import socket
import ssl
from collections import Counter

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

INTERVAL = 0.5  # seconds between reports
BATCH = 1000  # reports that the guard takes at once
log = logging.getLogger("wss-reporter")
pings = Counter()  # since the last report, by client address


class Counting(ServerConnection):
    """Counts pings before the library answers them."""

    def process_event(self, event):
        if getattr(event, "opcode", None) is Opcode.PING:
            pings[self.remote_address[0]] += 1
        super().process_event(event)


class Guard(http.client.HTTPConnection):
    """HTTP over the guard's unix socket."""

    def __init__(self, path):
        super().__init__("ws-guard", timeout=5)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def report(path, port, batch):
    """Send one batch; the guard's answer."""
    items = [{"source": s, "pings": min(n, 1_000_000), "port": port} for s, n in batch]
    guard = Guard(path)
    try:
        headers = {"Content-Type": "application/json"}
        guard.request("POST", "/v1/reports", json.dumps({"reports": items}), headers)
        response = guard.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise OSError(f"{answer['error']}: {answer['remedy']}")
        return answer
    finally:
        guard.close()


async def report_forever(path, port):
    while True:
        await asyncio.sleep(INTERVAL)
        counted, batch = pings.copy(), list(pings.items())
        pings.clear()
        for start in range(0, len(batch), BATCH):
            part = batch[start : start + BATCH]
            try:
                answer = await asyncio.to_thread(report, path, port, part)
            except (OSError, ValueError, http.client.HTTPException) as error:
                # Nothing is lost: they are reported again.
                log.warning("cannot report to %s: %s", path, error)
                pings.update({source: counted[source] for source, _ in part})
                continue
            for error in answer["errors"]:
                log.warning("%s: %s; %s", part[error["index"]][0], error["error"], error["remedy"])
            for source in answer["throttled"]:
                log.info("%s is throttled", source)


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--port", type=int, default=9443)
    parser.add_argument("--socket", default="/run/ws-guard/control.sock")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(options.cert, options.key)
    async with serve(echo, None, options.port, ssl=tls, create_connection=Counting):
        log.info("listening on port %d", options.port)
        await report_forever(options.socket, options.port)


asyncio.run(main())
