"""Connections that carry messages, on asyncio or uvloop: TCP and Unix sockets.

Bytes are received into the decoder's own memory, and messages are decoded when they are asked for.
Messages sent while deliver() handles a read leave in one write at the end of that read. Messages
sent elsewhere leave in one write per event loop iteration.
"""

from .connections import open_connection, open_unix_connection, start_server, start_unix_server
from .stream import MessageStream

__all__ = [
    "MessageStream",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]
