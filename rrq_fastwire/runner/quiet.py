"""Brings a runner to rest: before it ends (--drain), and before it starts anew (--max-jobs)."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .engine import Connection, Runner

__all__ = ["drain", "hold", "let_accepted_connections_arrive", "release"]

# How often it is looked at whether there is still something to do.
_POLL_SECONDS = 0.005

# Event loop iterations that this takes: four with asyncio.
_ITERATIONS_TO_ACCEPT = 5


async def let_accepted_connections_arrive() -> None:
    """Waits until connections that asyncio has accepted have reached on_stream()."""
    for _ in range(_ITERATIONS_TO_ACCEPT):
        await asyncio.sleep(0)


async def drain(runner: Runner, seconds: float) -> None:
    """Takes no more requests, and waits for the jobs that run, for some seconds at most.

    A connection is closed as soon as its last job is answered, so that an orchestrator sends its
    next request to another runner. One that it sends before is ignored: its job runs again.
    """
    await let_accepted_connections_arrive()
    running = sum(len(connection.jobs) for connection in runner._connections)
    if running:
        log(logging.INFO, "draining: %d jobs may end within %g s", running, seconds)
    for connection in list(runner._connections):
        # Requests are read all the same. If a socket is closed with unread bytes, the kernel resets
        # the connection, and answers that the peer has not received are lost.
        connection.hung_up = True
        for job in connection.jobs.values():
            if job.task is not None:
                # In the next iteration: an orchestrator takes longer to send another request.
                job.task.add_done_callback(partial(_close_if_done, connection))
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        for connection in list(runner._connections):
            _close_if_done(connection)
        if not runner._connections:  # each is there until its peer has been given all answers
            return
        await asyncio.sleep(_POLL_SECONDS)
    left = sum(len(connection.jobs) for connection in runner._connections)
    log(logging.WARNING, "draining: %d jobs have not ended within %g s", left, seconds)


def _close_if_done(connection: Connection, _: object = None) -> None:
    if not connection.jobs:
        connection.stream.close()


def hold(runner: Runner) -> bool:
    """Stops reading between two messages, and returns whether every connection is at rest."""
    at_rest = True
    for connection in runner._connections:
        stream = connection.stream
        if stream._decoder.buffered == 0:
            _pause(connection)
        else:
            at_rest = False
        if connection.jobs or stream._unsent or stream.transport.get_write_buffer_size():
            at_rest = False
    return at_rest


def _pause(connection: Connection) -> None:
    if not connection.stream.is_closing():
        connection.stream.transport.pause_reading()


def release(runner: Runner) -> None:
    """Reads again what hold() has stopped."""
    for connection in runner._connections:
        stream = connection.stream
        if not (stream.is_closing() or stream._suspended):
            stream.transport.resume_reading()
