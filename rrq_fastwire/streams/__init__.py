"""Connections that carry messages, on asyncio or uvloop: TCP and Unix sockets.

Bytes are received into the decoder's own memory, and messages are decoded when they are asked for.
What is sent while deliver() handles a read leaves in one write at the end of that read; what is
sent elsewhere leaves in one write per event loop iteration.
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
