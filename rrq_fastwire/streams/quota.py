"""Limit how much the streams of an event loop decode for deliver() without a pause."""

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
    """Make streams wait for the next event loop iteration after 64 KiB were decoded.

    This is checked after each read, so one large message is still decoded at once.

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
        """Count decoded bytes.

        They add up over iterations, because resetting the count in each iteration would take time.
        """
        self._used += size
        if self._used > _SIZE and not self.is_used_up:
            self._begin_soon()

    def wait(self, deliver: Callable[[], None]) -> None:
        """Call a function as soon as the quota allows it, after earlier ones."""
        self._waiting.append(deliver)

    async def wait_for_turn(self) -> None:
        """Wait until the streams that wait now have been served."""
        if self.is_used_up:
            turn = asyncio.Event()
            self.wait(turn.set)
            await turn.wait()

    def _begin_soon(self) -> None:
        self._loop.call_soon(self._begin)
        self.is_used_up = True

    def _begin(self) -> None:
        self._used, self.is_used_up = 0, False
        try:
            while self._waiting and not self.is_used_up:
                self._waiting.popleft()()
        finally:
            if self._waiting and not self.is_used_up:  # interrupted, as by KeyboardInterrupt
                self._begin_soon()


# The key is the id of the event loop. No other loop gets this id while the quota exists, because
# the quota refers to its loop. A WeakKeyDictionary would keep closed loops alive, because its
# values refer to its keys.
_quotas: WeakValueDictionary[int, Quota] = WeakValueDictionary()


def quota_of(loop: asyncio.AbstractEventLoop) -> Quota:
    """Return the quota that all streams of an event loop share."""
    return _quotas.setdefault(id(loop), Quota(loop))
