"""An echo server inside TLS on Python's `websockets`.

Arguments: port, certificate, key, TLS version (1.2 or 1.3), ciphers of TLS 1.2 or "-".
"""

import asyncio
import ssl
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass


async def main(port, cert, key, version, ciphers):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    tls.minimum_version = tls.maximum_version = VERSIONS[version]
    if ciphers != "-":
        tls.set_ciphers(ciphers)
    async with serve(echo, ["0.0.0.0", "::"], port, ssl=tls, ping_interval=None):
        print("listening", flush=True)
        await asyncio.Future()


asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
