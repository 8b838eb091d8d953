"""`current_job()`: the job that runs, for logging filters and libraries."""

from __future__ import annotations

import time
from contextvars import ContextVar

from . import tracking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

__all__ = ["CurrentJob", "current_job"]

_request: ContextVar[Any] = ContextVar("rrq_fastwire_request")

tracking.remember = _request.set


class CurrentJob:
    """The job that runs here.

    Attributes:
        request: what its handler got.
    """

    __slots__ = ("request",)

    def __init__(self, request: Any) -> None:
        self.request = request

    @property
    def job_id(self) -> str:
        """The id that the job has in Redis. It is the same for each attempt."""
        job_id: str = self.request.job_id
        return job_id

    @property
    def function_name(self) -> str:
        """The name under which the handler is registered."""
        name: str = self.request.function_name
        return name

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1 on."""
        attempt: int = self.request.context.attempt
        return attempt

    @property
    def deadline(self) -> datetime | None:
        """When the job times out, in UTC; None if it does not."""
        deadline: datetime | None = self.request.context.deadline
        return deadline

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, less than 0 after it; None if there is none."""
        deadline = self.deadline
        return None if deadline is None else deadline.timestamp() - time.time()


def current_job() -> CurrentJob | None:
    """The job that runs here; None outside of jobs, and under rrq-runner.

    Tasks and threads that a handler starts have the job of the handler, if the thread gets a copy
    of the context, as with asyncio.to_thread(). Jobs that began before this module was imported
    have none: import it when the program starts.
    """
    request = _request.get(None)
    return None if request is None else CurrentJob(request)
