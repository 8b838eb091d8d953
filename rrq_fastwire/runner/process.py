"""The signals that end the runner's process."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["ending_signals"]


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
