"""A runner that reports how each job ends: for metrics, and for a restart after some jobs.

It is a class of its own, so that it adds no cost to runners without observers.
"""

from __future__ import annotations

import time

from .. import ExecutionRequest
from .engine import Runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from .. import ExecutionOutcome, RunnerMessage
    from .connections import Connection, Job

    # Called with the function's name, the outcome that was sent, and the seconds since the request
    # arrived. For a request that was refused, None stands in place of the seconds.
    Observer: TypeAlias = Callable[[str, ExecutionOutcome, float | None], object]

__all__ = ["ObservedRunner"]


class ObservedRunner(Runner):
    """Call observers with each answer that is sent.

    Attributes:
        observers: the functions to call.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.observers: list[Observer] = []
        self._began = 0.0  # when the request that _take() handles arrived
        self._starts: dict[Job, float] = {}  # when the requests of unanswered jobs arrived
        self._answering: float | None = None  # when the request that _answer() answers arrived

    def is_known(self, function_name: str) -> bool:
        """Return whether the function has a handler."""
        try:
            return self._find(function_name) is not None
        except BaseException:  # raised by the user's mapping; the job got it as its answer
            return False

    def _take(self, connection: Connection, message: RunnerMessage) -> None:
        self._began = began = time.monotonic()
        super()._take(connection, message)
        if type(message) is ExecutionRequest:
            job = connection.jobs.get(message.request_id)
            if job is not None:
                self._starts.setdefault(job, began)

    def _answer(
        self, job: Job, outcome: ExecutionOutcome, error: BaseException | None = None
    ) -> None:
        if job.connection is not None:
            self._answering = self._starts.pop(job, self._began)
        super()._answer(job, outcome, error)

    def _send(
        self, connection: Connection, outcome: ExecutionOutcome, name: str
    ) -> ExecutionOutcome:
        began, self._answering = self._answering, None
        sent = super()._send(connection, outcome, name)
        seconds = None if began is None else time.monotonic() - began
        for observe in self.observers:
            observe(name, sent, seconds)
        return sent
