"""Open connections that carry messages, and listen for them."""

from __future__ import annotations

import asyncio

from .. import MAX_FRAME_SIZE
from .stream import MessageStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .stream import OnStream

__all__ = ["open_connection", "open_unix_connection", "start_server", "start_unix_server"]


async def open_connection(
    host: str, port: int, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> MessageStream:
    """Connects to a runner, or whatever else speaks the protocol, over TCP.

    Arguments:
        max_frame_size: the most bytes of payload that a frame of the peer may declare.
        options: more of `loop.create_connection()`'s arguments.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: MessageStream(max_frame_size=max_frame_size), host, port, **options
    )
    return stream


async def open_unix_connection(
    path: str, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> MessageStream:
    """Connects to a Unix socket; else as open_connection(), by `create_unix_connection()`."""
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_unix_connection(
        lambda: MessageStream(max_frame_size=max_frame_size), path, **options
    )
    return stream


async def start_server(
    on_stream: OnStream,
    host: str,
    port: int,
    *,
    max_frame_size: int = MAX_FRAME_SIZE,
    **options: Any,
) -> asyncio.Server:
    """Listens for connections over TCP.

    Arguments:
        on_stream: an async function that is called with the MessageStream of each connection, in a
            task of its own. The stream is closed when it returns.
        max_frame_size: the most bytes of payload that a frame of a peer may declare.
        options: more of `loop.create_server()`'s arguments.

    Raises OSError.
    """
    return await asyncio.get_running_loop().create_server(
        lambda: MessageStream(on_stream, max_frame_size=max_frame_size), host, port, **options
    )


async def start_unix_server(
    on_stream: OnStream, path: str, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> asyncio.Server:
    """Listens on a Unix socket; else as start_server(), by `loop.create_unix_server()`."""
    return await asyncio.get_running_loop().create_unix_server(
        lambda: MessageStream(on_stream, max_frame_size=max_frame_size), path, **options
    )
