"""`current_job()`: the job that the calling code is part of, for logging filters and libraries."""

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
    """The job that the calling code is part of.

    Attributes:
        request: the request, as the handler got it.
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
        """The number of the attempt, starting at 1."""
        attempt: int = self.request.context.attempt
        return attempt

    @property
    def deadline(self) -> datetime | None:
        """When the job times out, in UTC; None if it does not."""
        deadline: datetime | None = self.request.context.deadline
        return deadline

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, negative after it; None if there is no deadline."""
        deadline = self.deadline
        return None if deadline is None else deadline.timestamp() - time.time()


def current_job() -> CurrentJob | None:
    """Return the job that the calling code is part of; None outside of jobs and under rrq-runner.

    Tasks that a handler starts belong to its job, and so do threads that get a copy of the context,
    as with asyncio.to_thread(). Import this at the start of the program, because jobs that began
    before the import are not known.
    """
    request = _request.get(None)
    return None if request is None else CurrentJob(request)
