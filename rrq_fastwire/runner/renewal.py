"""Wait until a runner is to restart and is idle, so that it can be stopped without losing a job."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress

from .connections import let_accepted_connections_arrive
from .log import log
from .quiet import come_to_rest, read_again

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .admission import Admission
    from .engine import Runner
    from .handover import Handover

__all__ = ["Renewal"]

# How long new requests wait for the running jobs to end. If these take longer, the runner reads the
# requests and continues, because their deadlines come nearer.
_PAUSE_SECONDS = 1.0

# How long the runner then runs until the next attempt.
_RETRY_SECONDS = 5.0


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
        """Return when the runner can be stopped, because it is idle and accepts nothing.

        Requests and connections that arrive in the meantime wait in the kernel. If a running job
        takes longer than a second, or no file descriptor is free, they are accepted, and the next
        attempt is made later.
        """
        done, _ = await asyncio.wait(self._due, return_when=asyncio.FIRST_COMPLETED)
        verb = "ending" if self._handover is None else "restarting"
        log(logging.INFO, "%s once idle: %s", verb, done.pop().result())
        while not await self._try(runner, admission):
            admission.is_held = False
            if not self._server.is_serving():
                assert self._listener is not None
                self._server = await self._listen(self._listener)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _try(self, runner: Runner, admission: Admission) -> bool:
        """Stop accepting, wait until the runner is idle, and keep its sockets; return success."""
        admission.is_held = True
        try:
            await self._stop_accepting()
            if not await come_to_rest(runner, _PAUSE_SECONDS):
                return False
            self._keep_sockets(runner)
        except OSError as error:  # no file descriptor is left, perhaps because a handler leaks them
            text = "cannot end or restart now: %s; trying again in %g s"
            log(logging.WARNING, text, error, _RETRY_SECONDS)
            read_again(runner)
            return False
        return True

    def _keep_sockets(self, runner: Runner) -> None:
        """Keep the sockets for the next process, if there will be one. Raises OSError."""
        if self._handover is not None:
            assert self._listener is not None
            streams = [connection.stream for connection in runner.connections]
            self._handover.keep(
                [
                    self._listener.fileno(),
                    *(
                        stream.transport.get_extra_info("socket").fileno()
                        for stream in streams
                        if not stream.is_closing()
                    ),
                ]
            )

    async def _stop_accepting(self) -> None:
        """Close the server, but not its socket, so that the kernel still accepts connections."""
        loop = asyncio.get_running_loop()
        (listener,) = self._server.sockets
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        # A server of asyncio that is closed drops connections that it has just accepted. So first
        # remove its reader, and it accepts none. A server of uvloop has no reader, and drops none,
        # but accepts more until it is closed.
        with suppress(RuntimeError):
            loop.remove_reader(listener.fileno())
        await let_accepted_connections_arrive()
        self._server.close()
        await let_accepted_connections_arrive()

    def close(self) -> None:
        """Close the server and its socket."""
        self._server.close()
        if self._listener is not None:
            self._listener.close()
