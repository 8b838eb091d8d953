"""The runner's process: the signals that end it, the parent that it watches, its end by force."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["FORCE_SECONDS", "ending_signals", "exit_after", "watch_parent"]

_logger = logging.getLogger(__package__)

# How often a runner looks whether its parent is alive, and how long the handlers have if not:
# together less than a second.
_PARENT_POLL_SECONDS = 0.2
_ORPHAN_GRACE_SECONDS = 0.6

# Beyond the grace, before the process is ended by force.
FORCE_SECONDS = 0.25


@contextmanager
def ending_signals(signalled: Callable[[int], None]) -> Generator[asyncio.Event]:
    """Gives an event that SIGTERM and SIGINT set; the second of them kills the process.

    Arguments:
        signalled: called with the number of the first, even while a handler keeps the event loop.
    """
    ended = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    loop = asyncio.get_running_loop()
    numbers = signal.SIGTERM, signal.SIGINT

    def end(received: int, _: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        signalled(received)
        loop.call_soon_threadsafe(ended.set)

    # Not loop.add_signal_handler(), which waits for the loop.
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def exit_after(seconds: float) -> None:
    """Ends the process in any case, even while a handler keeps the event loop or a thread."""

    def wait() -> None:
        time.sleep(seconds)
        _logger.warning("ended by force: a handler, or what it left behind, did not end")
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def watch_parent(parent: int) -> None:
    """Ends the process when its parent goes away, as SIGTERM does, but within a second."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    exit_after(_ORPHAN_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
