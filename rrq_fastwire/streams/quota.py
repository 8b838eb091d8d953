"""How much the streams of an event loop decode for deliver() in one iteration of the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakValueDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Quota", "quota_of"]

# In bytes. Without this limit, many connections with messages that take long to decode would delay
# the timers of the event loop, and all of these messages would be in memory at the same time.
# Decoding 64 KiB takes about 5 milliseconds at the most, and mostly much less.
_SIZE = 64 * 1024


class Quota:
    """Limits how many bytes the streams of an event loop decode in one iteration.

    Attributes:
        is_used_up: whether streams have to wait for the next iteration.
    """

    __slots__ = ("__weakref__", "_loop", "_used", "_waiting", "is_used_up")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._used = 0  # bytes
        self._waiting: deque[Callable[[], None]] = deque()
        self.is_used_up = False

    def use(self, size: int) -> None:
        """Count bytes that were decoded.

        They add up over iterations, because a callback in each of them would take time.
        """
        self._used += size
        if self._used > _SIZE and not self.is_used_up:
            self._begin_soon()

    def wait(self, deliver: Callable[[], None]) -> None:
        """Call a function as soon as the quota allows it, after those that wait already."""
        self._waiting.append(deliver)

    def _begin_soon(self) -> None:
        self.is_used_up = True
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._used, self.is_used_up = 0, False
        try:
            while self._waiting and not self.is_used_up:
                self._waiting.popleft()()
        finally:
            if self._waiting and not self.is_used_up:  # interrupted, as by KeyboardInterrupt
                self._begin_soon()


# By the id of the event loop. The id is not used again while the quota exists, because the quota
# refers to the loop. A reference to the loop here would keep the streams of a closed loop.
_quotas: WeakValueDictionary[int, Quota] = WeakValueDictionary()


def quota_of(loop: asyncio.AbstractEventLoop) -> Quota:
    """Return the quota that all streams of an event loop share."""
    return _quotas.setdefault(id(loop), Quota(loop))
