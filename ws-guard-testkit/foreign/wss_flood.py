"""Pings over TLS until nothing comes back any more, or `most` were answered.

Arguments: source address, server address, port, most pings. Prints one JSON line.
"""

import asyncio
import json
import ssl
import sys

from websockets.asyncio.client import connect


async def main(source, host, port, most):
    # The test made the certificate itself, for nobody.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    answered = 0
    client = await connect(
        f"wss://{host}:{port}",
        ssl=tls,
        local_addr=(source, 0),
        ping_interval=None,
        compression=None,
        close_timeout=1,
    )
    try:
        while answered < most:
            pong = await client.ping()
            await asyncio.wait_for(pong, 3)
            answered += 1
            await asyncio.sleep(0.01)
    except (TimeoutError, asyncio.TimeoutError):
        pass
    print(json.dumps({"event": "flooded", "answered": answered}), flush=True)
    client.transport.abort()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
