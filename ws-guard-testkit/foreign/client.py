"""A client on Python's `websockets`: says some things, waits for their echoes, closes with 4001.

Arguments: URL, and "deflate" for permessage-deflate.
"""

import asyncio
import sys

from websockets.asyncio.client import connect

TEXTS = ["", "one", "é" * 300, "w" * 70_000]


async def main(url, deflate):
    async with connect(url, compression="deflate" if deflate else None, proxy=None) as connection:
        await (await connection.ping())
        for text in TEXTS:
            await connection.send(text)
        await connection.send(["in ", "three ", "frames"])
        await connection.send(bytes(200))
        for _ in range(len(TEXTS) + 2):
            await connection.recv()
        await connection.close(4001, "enough")


asyncio.run(main(sys.argv[1], "deflate" in sys.argv[2:]))
