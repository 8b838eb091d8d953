"""Bring a runner to rest, before it ends (--drain) or restarts (--max-jobs and the like)."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from .connections import let_accepted_connections_arrive
from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .connections import Connection
    from .engine import Runner

__all__ = ["come_to_rest", "drain", "read_again"]

# How often to check whether all jobs are answered and all answers are sent, because that sends no
# event.
_POLL_SECONDS = 0.005


async def drain(runner: Runner, seconds: float) -> None:
    """Ignore further requests, and wait for the running jobs, for this many seconds at most.

    A connection is closed as soon as its last job is answered, so that the orchestrator sends its
    next request to another runner. A request that arrives before that is ignored, and the
    orchestrator runs its job again.
    """
    await let_accepted_connections_arrive()
    running = runner.count_jobs()
    if running:
        log(logging.INFO, "draining: %d running jobs have %g s to end", running, seconds)
    for connection in list(runner.connections):
        # Requests are still read. If a socket is closed with unread bytes, the kernel resets the
        # connection, and answers that the peer has not received are lost.
        connection.hung_up = True
        for job in connection.jobs.values():
            if job.task is not None:
                # Called in the next iteration, before an orchestrator can send another request.
                job.task.add_done_callback(partial(_close_if_done, connection))

    def is_over() -> bool:
        for connection in list(runner.connections):
            _close_if_done(connection)
        return not runner.connections  # each stays there until its answers are sent

    if not await _wait_until(is_over, seconds):
        text = "draining: %d jobs have not ended within %g s"
        log(logging.WARNING, text, runner.count_jobs(), seconds)


def _close_if_done(connection: Connection, _: object = None) -> None:
    if not connection.jobs:
        connection.stream.close()


async def come_to_rest(runner: Runner, seconds: float) -> bool:
    """Pause reading, and wait until every connection is idle; return whether that is in time.

    If it is not in time, or the wait is cancelled, the runner reads again.
    """
    is_at_rest = False
    try:
        is_at_rest = await _wait_until(partial(_pause_reading, runner), seconds)
    finally:
        if not is_at_rest:
            read_again(runner)
    return is_at_rest


def read_again(runner: Runner) -> None:
    """Read from all connections again, after come_to_rest()."""
    for connection in runner.connections:
        connection.stream.resume_reading()


def _pause_reading(runner: Runner) -> bool:
    """Pause reading where no message is incomplete; return whether every connection is idle."""
    is_idle = True
    for connection in runner.connections:
        stream = connection.stream
        if not stream.buffered:
            stream.pause_reading()
        if connection.jobs or stream.buffered or stream.unsent:
            is_idle = False
    return is_idle


async def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; return whether it is met in time. It is checked at least once."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > end:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True
