"""Close a connection with a reset."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

# The value of SO_LINGER that closes a socket with a reset instead of an orderly end.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a TCP connection with a reset, and drop what is not sent yet."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
