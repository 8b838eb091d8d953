"""A fixture with servers of MessageStreams, over TCP and Unix sockets."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

import pytest

from rrq_fastwire.streams import (
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)


@pytest.fixture(params=["tcp", "unix"])
def serve(request):
    """Runs a server with a function for its streams, and yields a function that connects to it."""
    if request.param == "unix" and not hasattr(socket, "AF_UNIX"):
        pytest.skip("there are no Unix sockets here")

    @asynccontextmanager
    async def serve(on_stream, **options):
        with TemporaryDirectory() as folder:
            if request.param == "unix":
                path = f"{folder}/socket"
                server = await start_unix_server(on_stream, path, **options)
                try:
                    yield lambda: open_unix_connection(path)
                finally:
                    server.close()
            else:
                server = await start_server(on_stream, "127.0.0.1", 0, **options)
                address = server.sockets[0].getsockname()
                try:
                    yield lambda: open_connection(*address)
                finally:
                    server.close()

    return serve
