"""Ends a runner when it is to start anew, at a moment when it has nothing to do."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress

from .log import log
from .quiet import hold, let_accepted_connections_arrive, release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .admission import Admission
    from .engine import Runner
    from .handover import Handover

__all__ = ["Renewal"]

# How often it is looked at whether the runner is idle.
_POLL_SECONDS = 0.005

# How long new requests may wait for those that run to end, before they are read again, and how long
# it takes then until the next attempt. A request that waits comes nearer to its deadline.
_HOLD_SECONDS = 1.0
_REST_SECONDS = 5.0


class Renewal:
    """Waits until one of the reasons to start anew is given, and then until the runner is idle.

    Arguments:
        due: futures whose results are reasons.
        handover: keeps the sockets for the next process; None where there is none.
        server: what listens.
        listen: makes another server of a listening socket.
    """

    def __init__(
        self,
        due: Iterable[asyncio.Future[str]],
        handover: Handover | None,
        server: asyncio.Server,
        listen: Callable[[socket.socket], Awaitable[asyncio.Server]],
    ) -> None:
        self._due = list(due)
        self._handover = handover
        self._server = server
        self._listen = listen
        self._listener: socket.socket | None = None

    async def wait(self, runner: Runner, admission: Admission) -> None:
        """Returns when the runner can be stopped: it is idle, and accepts nothing.

        Requests and connections that come meanwhile wait in the kernel. Where jobs run for longer
        than a second, they are taken after that second, and it tries again later.
        """
        done, _ = await asyncio.wait(self._due, return_when=asyncio.FIRST_COMPLETED)
        log(logging.INFO, "starting anew once idle: %s", done.pop().result())
        while True:
            admission.is_held = True
            await self._stop_accepting()
            if await self._becomes_idle(runner):
                break
            admission.is_held = False
            release(runner)
            assert self._listener is not None
            self._server = await self._listen(self._listener)
            await asyncio.sleep(_REST_SECONDS)
        if self._handover is not None:
            assert self._listener is not None
            streams = [connection.stream for connection in runner._connections]
            self._handover.keep(
                [
                    self._listener.fileno(),
                    *(
                        stream.transport.get_extra_info("socket").fileno()
                        for stream in streams
                        if not (stream.is_closing() or stream._eof)
                    ),
                ]
            )

    async def _stop_accepting(self) -> None:
        """Closes the server, but not its socket: the kernel goes on to accept connections."""
        loop = asyncio.get_running_loop()
        (listener,) = self._server.sockets
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        # Where a server of asyncio is closed, it drops what it has accepted just before. Without
        # its reader, it accepts nothing. uvloop has no reader there, and drops nothing.
        with suppress(RuntimeError):
            loop.remove_reader(listener.fileno())
        await let_accepted_connections_arrive()
        self._server.close()

    async def _becomes_idle(self, runner: Runner) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + _HOLD_SECONDS
        while not hold(runner):
            if loop.time() > end:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    def close(self) -> None:
        """Closes what listens."""
        self._server.close()
        if self._listener is not None:
            self._listener.close()
