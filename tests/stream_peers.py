"""Helpers of the tests of streams: messages, and plain sockets that send and receive them."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys

import pytest

from rrq_fastwire import (
    CancelRequest,
    FrameError,
    MessageDecoder,
    MessageError,
    encode_frame,
)

# A frame whose payload, b"no", is not a valid message.
NO_MESSAGE = b"\0\0\0\x02no"


def message(job_id, size=0):
    """A message with a name, which is at least `size` bytes large."""
    return CancelRequest(job_id=f"{job_id}{'.' * size}")


def frames(*job_ids, size=0):
    return b"".join(encode_frame(message(job_id, size)) for job_id in job_ids)


def name(received):
    """The name of a message."""
    return received.job_id.rstrip(".")


async def iterate(stream, take):
    async for received in stream:
        take(received)


async def deliver(stream, take):
    await stream.deliver(take)


both_ways_of_receiving = pytest.mark.parametrize("receive", [iterate, deliver])


async def everything(stream, receive):
    """Receive until the stream ends: names of messages, invalid payloads, and the error at the end."""
    found = []
    while True:
        try:
            await receive(stream, lambda received: found.append(name(received)))
        except MessageError as error:
            found.append(error.payload)
        except (FrameError, ConnectionError) as error:
            return [*found, ConnectionError if isinstance(error, OSError) else type(error)]
        else:
            return found


def write(peer, data):
    return asyncio.get_running_loop().sock_sendall(peer, data)


async def read(peer, count):
    """The names of the next messages that a plain socket receives."""
    decoder = MessageDecoder()
    found = []
    while len(found) < count:
        data = await asyncio.get_running_loop().sock_recv(peer, 2**20)
        assert data, f"the stream has ended after {len(found)} messages"
        found += map(name, decoder.feed(data))
    return found


async def reset(peer):
    """Reset a connection from the plain socket. The stream must have sent something before."""
    await asyncio.get_running_loop().sock_recv(peer, 1)
    if peer.family != socket.AF_INET and sys.platform != "linux":
        pytest.skip("only Linux resets Unix sockets")
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    peer.close()


async def until(condition):
    """Wait until a condition is true that sends no event."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def fill(stream):
    """Send until drain() would wait, because the peer reads nothing."""
    while not (stream.congested and stream.transport.get_write_buffer_size()):
        stream.send_nowait(message("fill", 2**16))
        await asyncio.sleep(0)
