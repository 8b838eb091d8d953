"""Watch the deadlines of jobs."""

from __future__ import annotations

import asyncio
import heapq
import itertools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .connections import Job

__all__ = ["Deadlines"]


# A job that is alone on its connection is answered early by this part of its time, within these
# bounds. If the orchestrator's own timer is first, the orchestrator ends the runner's process.
# Measured: 2 ms is too short. On a busy machine, 5 ms was too short for jobs of one second.
_EARLY_PART = 0.01
_LEAST_EARLY_SECONDS = 0.005
_MOST_EARLY_SECONDS = 0.05

# Jobs that were answered in time are removed from the heap when it has at least this many entries.
_LEAST_TO_CLEAN = 256


class Deadlines:
    """One timer for the deadlines of all jobs.

    Arguments:
        passed: called with each job that is not answered at its deadline; shortly before the
            deadline if its connection has no other jobs then.
    """

    def __init__(self, passed: Callable[[Job], None]) -> None:
        self._passed = passed
        # The time of the next check, a unique number, the job, and its deadline, in loop.time().
        self._heap: list[tuple[float, int, Job, float]] = []
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._clean_at = _LEAST_TO_CLEAN  # the number of entries at which answered jobs are removed

    def add(self, job: Job, seconds: float) -> None:
        """Watch a job whose deadline is this many seconds away."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        early = min(max(seconds * _EARLY_PART, _LEAST_EARLY_SECONDS), _MOST_EARLY_SECONDS)
        entry = deadline - early, next(self._count), job, deadline
        if len(self._heap) >= self._clean_at:
            self._heap = [other for other in self._heap if other[2].connection is not None]
            heapq.heapify(self._heap)
            self._clean_at = max(_LEAST_TO_CLEAN, 2 * len(self._heap))
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._set_timer(loop)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._heap[0][0], self._on_timer, loop)

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        heap, now = self._heap, loop.time()
        due = []
        while heap and (heap[0][0] <= now or heap[0][2].connection is None):
            _, number, job, deadline = heapq.heappop(heap)
            if job.connection is None:
                continue
            if deadline > now and len(job.connection.jobs) > 1:
                heapq.heappush(heap, (deadline, number, job, deadline))
            else:
                due.append((deadline, number, job))
        for _, _, job in sorted(due):  # jobs that were checked early may be out of order
            self._passed(job)
        if heap:
            self._set_timer(loop)
