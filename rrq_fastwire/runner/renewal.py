"""Ends a runner when it is to start anew, at a moment when it has nothing to do."""

from __future__ import annotations

import asyncio
import logging

from .log import log
from .quiet import hold, hold_until_idle, let_accepted_connections_arrive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .admission import Admission
    from .engine import Runner
    from .handover import Handover

__all__ = ["Renewal"]

_POLL_SECONDS = 0.005


class Renewal:
    """Waits until one of the reasons to start anew is given, and then until the runner is idle.

    Arguments:
        due: futures whose results are reasons.
        handover: keeps the sockets for the next process; None where there is none.
    """

    def __init__(self, due: Iterable[asyncio.Future[str]], handover: Handover | None) -> None:
        self._due = list(due)
        self._handover = handover

    async def wait(self, runner: Runner, admission: Admission, server: asyncio.Server) -> None:
        """Returns when the runner can be stopped: it is idle, and accepts nothing."""
        done, _ = await asyncio.wait(self._due, return_when=asyncio.FIRST_COMPLETED)
        log(logging.INFO, "starting anew once idle: %s", done.pop().result())
        await hold_until_idle(runner, admission)
        if self._handover is not None:
            self._handover.keep(each.fileno() for each in server.sockets)
        server.close()
        # Connections that were accepted just before are not read, but for those that already were.
        await let_accepted_connections_arrive()
        while not hold(runner):
            await asyncio.sleep(_POLL_SECONDS)
        if self._handover is not None:
            streams = [connection.stream for connection in runner._connections]
            self._handover.keep(
                stream.transport.get_extra_info("socket").fileno()
                for stream in streams
                if not stream.is_closing() and not stream._eof
            )
