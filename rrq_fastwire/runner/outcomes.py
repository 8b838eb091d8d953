"""Convert what a handler returned or raised to the outcome that is sent."""

from __future__ import annotations

import asyncio
import logging

from .. import ExecutionError, ExecutionOutcome, OutcomeStatus
from ..errors import describe
from .log import log
from .stock import HAS_RRQ, rrq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rrq.telemetry import RunnerSpan

    from .connections import Job

__all__ = [
    "OUTCOMES",
    "RESULTS",
    "TIMED_OUT",
    "cancelled",
    "failure",
    "is_cancellation",
    "report",
    "report_to_span",
    "returned",
    "text_of",
    "timeout",
]

# The types of most results. They are checked first, because isinstance() with OUTCOMES is slow if
# these include a class of pydantic's.
RESULTS = frozenset((dict, list, str, int, float, bool, type(None)))

# What a handler can return instead of a result.
OUTCOMES = (ExecutionOutcome, rrq.StockOutcome) if HAS_RRQ else (ExecutionOutcome,)

TIMED_OUT = "Job execution timed out."


def timeout(job: Job, message: str) -> ExecutionOutcome:
    return ExecutionOutcome.timeout(job.job_id, job.request_id, message)


def cancelled(job: Job) -> ExecutionOutcome:
    return ExecutionOutcome.cancelled(job.job_id, job.request_id)


def returned(outcome: Any, job: Job) -> ExecutionOutcome:
    """Return the answer for an outcome that a handler returned: a copy with the request's ids."""
    try:
        error = outcome.error
        if error is not None:
            error = ExecutionError(
                message=error.message, type=error.type, code=error.code, details=error.details
            )
        return ExecutionOutcome(
            job_id=job.job_id,
            request_id=job.request_id,
            status=outcome.status,
            result=outcome.result,
            error=error,
            retry_after_seconds=outcome.retry_after_seconds,
        )
    except Exception as error:  # built without validation, or an object that imitates an outcome
        name = job.function_name
        text = f"outcome of {describe(name)} cannot be sent: {text_of(error, name)}"
        return ExecutionOutcome.failure(job.job_id, job.request_id, text)


def failure(job: Job, error: BaseException) -> ExecutionOutcome:
    """Return the outcome for an exception of a handler, even if the exception's own code raises."""
    try:
        return _raised(job, error)
    except BaseException as second:
        raised = f"{describe(job.function_name)} raised {type(error).__name__}"
        text = f"{raised}, whose own code raised {type(second).__name__}"
        return ExecutionOutcome.failure(job.job_id, job.request_id, text)


def _raised(job: Job, error: BaseException) -> ExecutionOutcome:
    if isinstance(error, asyncio.CancelledError):
        return cancelled(job)
    text = text_of(error, job.function_name)
    if HAS_RRQ and isinstance(error, rrq.RetryJob):
        return ExecutionOutcome.retry_after(
            job.job_id,
            job.request_id,
            text or "Job requested retry",
            _delay(error.defer_seconds),
        )
    if isinstance(error, TimeoutError):
        return timeout(job, text or TIMED_OUT)
    return ExecutionOutcome.failure(job.job_id, job.request_id, text or "Unhandled handler error")


def _delay(seconds: Any) -> Any:
    """Convert the delay of a retry to a number, as rrq does; if that fails, return it unchanged.

    None stays None, which leaves the delay to the orchestrator.
    """
    try:
        return float(seconds)
    except Exception:
        return seconds


def text_of(error: BaseException, name: str) -> str:
    """Return the text of an exception of the function `name`, even if its `__str__` raises."""
    try:
        text = str(error)
    except BaseException as second:
        text = f"its __str__ raised {type(second).__name__}"
    else:
        if isinstance(error, Exception):
            return text
    return f"{describe(name)} raised {type(error).__name__}: {text}"


def is_cancellation(error: BaseException) -> bool:
    # Not isinstance(), which may run code of the error's class.
    return issubclass(type(error), asyncio.CancelledError)


def report(
    on_error: Callable[[BaseException, Any], object],
    job: Job,
    outcome: ExecutionOutcome,
    error: BaseException,
    request: Any,
) -> None:
    """Call on_error with an exception, unless that is a cancellation or asks for a retry."""
    if is_cancellation(error):
        if job.overtaken is None or job.overtaken.status is not OutcomeStatus.TIMEOUT:
            return
        overdue = TimeoutError(TIMED_OUT)
        overdue.__cause__ = error  # whose traceback shows what the handler waited for
        error = overdue
    elif outcome.status is OutcomeStatus.RETRY:
        return
    try:
        on_error(error, request)
    except BaseException as second:
        job_id = describe(job.job_id)
        log(logging.ERROR, "job %s: on_error raised an exception:", job_id, error=second)


def report_to_span(
    span: RunnerSpan,
    name: str,
    seconds: float,
    error: BaseException | None,
    overtaken: ExecutionOutcome | None,
) -> None:
    """Report to a telemetry span how a job ended.

    Arguments:
        name: the function of the job.
        seconds: how long its handler ran.
        error: what the handler raised, or None.
        overtaken: the answer, if it was sent before the handler ended.
    """
    if overtaken is not None and overtaken.error is not None:
        message = overtaken.error.message
        if overtaken.status is OutcomeStatus.TIMEOUT:
            span.timeout(duration_seconds=seconds, timeout_seconds=None, error_message=message)
        else:
            span.cancelled(duration_seconds=seconds, reason=message)
    elif error is None:
        span.success(duration_seconds=seconds)
    elif isinstance(error, asyncio.CancelledError):
        span.cancelled(duration_seconds=seconds)
    elif isinstance(error, rrq.RetryJob):
        delay, reason = error.defer_seconds, text_of(error, name) or None
        span.retry(duration_seconds=seconds, delay_seconds=delay, reason=reason)
    elif isinstance(error, TimeoutError):
        message = text_of(error, name) or TIMED_OUT
        span.timeout(duration_seconds=seconds, timeout_seconds=None, error_message=message)
    else:
        span.error(duration_seconds=seconds, error=error)
