"""The time slice in which the streams of an event loop deliver messages."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

__all__ = ["TimeSlice", "time_slice_of"]

# Until the time slice is over, everything that has arrived is delivered in one iteration of the
# event loop. Many connections with messages that take long to decode would stop its timers.
_SECONDS = 0.005


class TimeSlice:
    """How long the streams of an event loop have delivered messages.

    Attributes:
        is_over: whether they have to wait until other callbacks have run.
    """

    __slots__ = ("_used", "is_over")

    def __init__(self) -> None:
        self._used = 0.0  # seconds
        self.is_over = False

    def use(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Count the time of a delivery. A new time slice begins one iteration after the end of one.

        It does not begin with each iteration, because a callback in each would take time.
        """
        self._used += seconds
        if self._used > _SECONDS and not self.is_over:
            self.is_over = True
            loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._used = 0.0
        self.is_over = False


_time_slices: WeakKeyDictionary[asyncio.AbstractEventLoop, TimeSlice] = WeakKeyDictionary()


def time_slice_of(loop: asyncio.AbstractEventLoop) -> TimeSlice:
    """Return the time slice that all streams of an event loop share."""
    return _time_slices.setdefault(loop, TimeSlice())
