"""Pings over TLS until nothing comes back any more, or `most` were answered.

Arguments: source address, server address, port, most pings, and `hurry` not to wait for the pongs.
Prints one JSON line.
"""

import asyncio
import json
import socket
import ssl
import struct
import sys

from websockets.asyncio.client import connect


async def patiently(client, most):
    """A ping at a time."""
    answered = 0
    try:
        while answered < most:
            pong = await client.ping()
            await asyncio.wait_for(pong, 3)
            answered += 1
            await asyncio.sleep(0.01)
    except (TimeoutError, asyncio.TimeoutError):
        pass
    return answered


async def in_a_hurry(client, most):
    """As many as the connection takes, for 3 s; then see what came back."""
    pongs = []

    async def send():
        for _ in range(most):
            pongs.append(await client.ping())

    try:
        await asyncio.wait_for(send(), 3)
    except (TimeoutError, asyncio.TimeoutError):
        pass
    await asyncio.sleep(1)
    return sum(pong.done() for pong in pongs)


async def main(source, host, port, most, flood):
    # The test created the certificate itself, without a specific subject.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    client = await connect(
        f"wss://[{host}]:{port}" if ":" in host else f"wss://{host}:{port}",
        ssl=tls,
        local_addr=(source, 0),
        ping_interval=None,
        compression=None,
        close_timeout=1,
    )
    answered = await flood(client, most)
    print(json.dumps({"event": "flooded", "answered": answered}), flush=True)
    # Reset at once: dropped segments would be retransmitted at growing intervals, and the server
    # would detect the end only after the last of them.
    linger = struct.pack("ii", 1, 0)
    client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.transport.abort()


HOW = in_a_hurry if "hurry" in sys.argv[5:] else patiently
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), HOW))
