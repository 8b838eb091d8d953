"""A proxy that delays, cuts and resets connections, as an application sees a bad network.

The kernel hides lost, reordered and repeated packets from applications: they see delays and resets.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from contextlib import asynccontextmanager, suppress


def reset(writer):
    """End a connection with a reset instead of an end of the stream."""
    linger = struct.pack("ii" if os.name == "posix" else "hh", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def forward(data, writer):
    writer.write(data)
    await writer.drain()


async def delay(data, writer):
    await asyncio.sleep(0.01)
    await forward(data, writer)


async def cut(data, writer):
    for at in range(len(data)):
        await forward(data[at : at + 1], writer)
        await asyncio.sleep(0)


class Reset:
    """Forward this many bytes, and reset both sides if there are more."""

    def __init__(self, size):
        self.left = size

    async def __call__(self, data, writer):
        await forward(data[: self.left], writer)
        self.left -= len(data)
        if self.left < 0:
            raise ConnectionResetError


class Unreliable:
    """Delays pieces of any size by up to 10 ms, and resets one connection in 50 to 150 pieces.

    Attributes:
        resets: how many connections were reset so far.
    """

    def __init__(self, seed):
        self._random = random.Random(seed)
        self._until_reset = self._pieces()
        self.resets = 0

    def _pieces(self):
        return self._random.randint(50, 150)

    async def __call__(self, data, writer):
        while data:
            self._until_reset -= 1
            if self._until_reset == 0:
                self._until_reset = self._pieces()
                self.resets += 1
                raise ConnectionResetError
            await asyncio.sleep(self._random.uniform(0, 0.01))
            size = self._random.randint(1, 500)
            await forward(data[:size], writer)
            data = data[size:]


@asynccontextmanager
async def proxy(port, requests=forward, answers=forward, listen=0):
    """Runs a proxy in front of a runner, and yields its port.

    Arguments:
        requests, answers: functions that forward bytes to the runner, and from it.
        listen: the port of the proxy; 0 stands for a free one.
    """

    async def pass_on(reader, writer, do):
        while data := await reader.read(65536):
            await do(data, writer)
        with suppress(OSError):  # the other direction may have closed the connection
            writer.write_eof()

    async def connected(reader, writer):
        sides = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            sides.append(back)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(pass_on(reader, back, requests))
                directions.create_task(pass_on(there, writer, answers))
            for side in sides:
                side.close()
                await side.wait_closed()
        except* OSError:
            for side in sides:
                if not side.is_closing():
                    reset(side)
        finally:
            for side in sides:  # they are still open if the test ends
                side.transport.abort()
            ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(connected, "127.0.0.1", listen) as server:
        yield server.sockets[0].getsockname()[1]
        await ended.wait()
