"""Decide when a runner is to restart: after a number of jobs, or with too much memory."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from contextlib import suppress
from pathlib import Path

from .defaults import LimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import ExecutionOutcome

__all__ = ["Recycling", "resident_bytes"]

_MEMORY = Path("/proc/self/statm")

_POLL_SECONDS = 1.0


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; Linux only."""
    return int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def with_jitter(limit: int) -> int:
    """Return `limit` less up to a tenth, at random, so that the processes of a pool differ."""
    return random.randint(limit - limit // 10, limit)


class Recycling:
    """Watch the limits at which a runner is to restart.

    Arguments:
        max_jobs: how many jobs the runner runs at most, or None.
        max_rss: how much resident memory the process may have, in bytes, or None.

    Attributes:
        due: done when a limit is reached; its result is the reason, for the log.

    Raises LimitError if `max_rss` cannot be kept.
    """

    def __init__(self, *, max_jobs: int | None = None, max_rss: int | None = None) -> None:
        self.due: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._jobs_left = None if max_jobs is None else with_jitter(max_jobs)
        self._max_rss = max_rss
        self._timer: asyncio.TimerHandle | None = None
        if max_rss is not None:
            if sys.platform != "linux":
                raise LimitError("max_rss: the resident memory is known on Linux only")
            now = resident_bytes()
            if now >= max_rss:
                raise LimitError(
                    f"max_rss: the process has {now} bytes before its first job: allow more than"
                    f" {max_rss}"
                )
            self._max_rss = now + with_jitter(max_rss - now)
            self._check_memory()

    def count(self, _name: str, _outcome: ExecutionOutcome, seconds: float | None) -> None:
        """Count an answer. This is an observer of the runner."""
        if seconds is None or self._jobs_left is None:
            return
        self._jobs_left -= 1
        if self._jobs_left == 0:
            self._set_due("the maximum number of jobs is reached")

    def _check_memory(self) -> None:
        now = 0
        with suppress(OSError):  # if no file can be opened now, a later check may succeed
            now = resident_bytes()
        if self._max_rss is not None and now >= self._max_rss:
            self._set_due(f"{now} bytes of memory exceed the maximum")
        else:
            self._timer = asyncio.get_running_loop().call_later(_POLL_SECONDS, self._check_memory)

    def _set_due(self, reason: str) -> None:
        if not self.due.done():
            self.due.set_result(reason)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
