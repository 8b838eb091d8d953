"""End a runner that is to restart, at a moment when it is idle."""

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

# How often to check whether the runner is idle.
_POLL_SECONDS = 0.005

# How long new requests wait for running jobs to end before they are read after all, because their
# deadlines come nearer; and how long it is then until the next attempt.
_HOLD_SECONDS = 1.0
_REST_SECONDS = 5.0


class Renewal:
    """Wait for a reason to restart, and then until the runner is idle.

    Arguments:
        due: futures whose results are reasons.
        handover: keeps the sockets for the next process; None if there will not be one.
        server: the server that listens.
        listen: returns another server for a listening socket.
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
        """Return when the runner can be stopped: it is idle and accepts nothing.

        Requests and connections that arrive while it becomes idle wait in the kernel. If jobs run
        for longer than a second, the waiting ones are accepted, and it tries again later.
        """
        done, _ = await asyncio.wait(self._due, return_when=asyncio.FIRST_COMPLETED)
        log(logging.INFO, "restarting once idle: %s", done.pop().result())
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
        """Close the server, but not its socket, so that the kernel still accepts connections."""
        loop = asyncio.get_running_loop()
        (listener,) = self._server.sockets
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        # When a server of asyncio is closed, it drops connections that it has just accepted.
        # Without its reader, it accepts none. A server of uvloop has no reader, and drops none.
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
        """Close the server and its socket."""
        self._server.close()
        if self._listener is not None:
            self._listener.close()
