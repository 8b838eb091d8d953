"""Open connections that carry messages, and listen for them."""

from __future__ import annotations

import asyncio

from .. import MAX_FRAME_SIZE, MessageDecoder
from ..errors import type_name
from .stream import MessageStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .stream import OnStream

__all__ = ["open_connection", "open_unix_connection", "start_server", "start_unix_server"]


async def open_connection(
    host: str, port: int, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> MessageStream:
    """Connect over TCP to a runner, or to any other peer that speaks the protocol.

    Arguments:
        max_frame_size: the largest payload that the peer may send in a frame, in bytes.
        options: further arguments of `loop.create_connection()`.

    Raises OSError, and TypeError and ValueError for wrong arguments.
    """
    _check_address(host, port)
    MessageDecoder(max_frame_size)  # so that a wrong limit is refused before connecting
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: MessageStream(max_frame_size=max_frame_size), host, port, **options
    )
    return stream


async def open_unix_connection(
    path: str, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> MessageStream:
    """Connect to a Unix socket.

    Arguments:
        max_frame_size: as for open_connection().
        options: further arguments of `loop.create_unix_connection()`.

    Raises OSError, and TypeError and ValueError for wrong arguments.
    """
    MessageDecoder(max_frame_size)
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
    """Listen for connections over TCP.

    Arguments:
        on_stream: an async function that is called with the MessageStream of each connection, in a
            task of its own. The stream is closed when the function returns.
        max_frame_size: the largest payload that a peer may send in a frame, in bytes.
        options: further arguments of `loop.create_server()`.

    Raises OSError, and TypeError and ValueError for wrong arguments.
    """
    _check_address(host, port)
    _check_server(on_stream, max_frame_size)
    return await asyncio.get_running_loop().create_server(
        lambda: MessageStream(on_stream, max_frame_size=max_frame_size), host, port, **options
    )


async def start_unix_server(
    on_stream: OnStream, path: str, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> asyncio.Server:
    """Listen for connections on a Unix socket.

    Arguments:
        on_stream, max_frame_size: as for start_server().
        options: further arguments of `loop.create_unix_server()`.

    Raises OSError, and TypeError and ValueError for wrong arguments.
    """
    _check_server(on_stream, max_frame_size)
    return await asyncio.get_running_loop().create_unix_server(
        lambda: MessageStream(on_stream, max_frame_size=max_frame_size), path, **options
    )


def _check_address(host: str | None, port: int | None) -> None:
    """Raise TypeError or ValueError for a wrong address.

    asyncio accepts None, for all interfaces and for a caller that passes `sock`.
    """
    if host is not None and not isinstance(host, str):
        raise TypeError(f"host must be a str, got {type_name(host)}")
    if port is not None and not isinstance(port, int):
        raise TypeError(f"port must be an int, got {type_name(port)}")
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 to 65535, got {port}")


def _check_server(on_stream: OnStream, max_frame_size: int) -> None:
    """Raise TypeError or ValueError for arguments with which each connection would fail."""
    if not callable(on_stream):
        raise TypeError(f"on_stream must be an async function, got {type_name(on_stream)}")
    MessageDecoder(max_frame_size)
