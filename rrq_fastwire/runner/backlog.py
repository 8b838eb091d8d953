"""Listen so that the log is not filled while no file descriptor is left."""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

# How many connections may wait to be accepted. asyncio's own event loop also makes this number of
# attempts to accept at a time. When no file descriptor is left, each of them fails, is logged, and
# starts as many again a second later. So the event loop gets a backlog of 1, and the socket this.
_BACKLOG = 100


async def create_server(
    make_protocol: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    listener: socket.socket | None = None,
) -> asyncio.Server:
    """Listen on an address, or on a socket that listens already. Raises OSError."""
    loop = asyncio.get_running_loop()
    accepts_many = isinstance(loop, asyncio.SelectorEventLoop)
    backlog = 1 if accepts_many else _BACKLOG
    options: Any = {"backlog": backlog, "start_serving": False}
    if listener is not None:
        server = await loop.create_server(make_protocol, sock=listener, **options)
    else:
        server = await loop.create_server(make_protocol, host, port, **options)
    try:
        await server.start_serving()
        if accepts_many and listener is not None:
            listener.listen(_BACKLOG)  # not as below, because perhaps no file descriptor is free
        elif accepts_many:
            for each in server.sockets:
                with each.dup() as copy:
                    copy.listen(_BACKLOG)
    except BaseException:  # even if this is cancelled
        server.close()
        raise
    return server
