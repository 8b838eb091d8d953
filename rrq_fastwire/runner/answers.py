"""Log how jobs end, and replace answers that cannot be encoded."""

from __future__ import annotations

import logging

from .. import EncodeError, ExecutionError, ExecutionOutcome, OutcomeStatus, PayloadTooLargeError
from ..errors import describe, type_name
from .log import log
from .outcomes import is_cancellation, text_of
from .stock import convert_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .connections import Connection, Job

__all__ = ["log_end", "send_instead"]

# The longest text of why an answer could not be sent, in characters.
_LONGEST_REASON = 1000


def log_end(
    connection: Connection,
    job: Job,
    outcome: ExecutionOutcome,
    error: BaseException | None,
) -> None:
    """Log how a job has ended, in one record.

    Arguments:
        outcome: the answer of the job.
        error: what the handler raised, or None.
    """
    subject = connection.name, describe(job.job_id), describe(job.function_name)
    message = None if outcome.error is None else outcome.error.message
    if outcome.status is OutcomeStatus.RETRY:
        log(logging.INFO, "%s: job %s: %s requests a retry: %s", *subject, message)
    elif outcome.status is OutcomeStatus.TIMEOUT:
        log(logging.WARNING, "%s: job %s: %s timed out: %s", *subject, message)
    elif error is None or is_cancellation(error):
        log(logging.DEBUG, "%s: job %s: %s: %s", *subject, outcome.status)
    else:
        log(logging.ERROR, "%s: job %s: %s raised an exception:", *subject, error=error)


def send_instead(
    connection: Connection, outcome: ExecutionOutcome, name: str, reason: BaseException
) -> ExecutionOutcome:
    """Send another answer for one that could not be encoded, and return it.

    First, the values are converted as rrq does it. If the outcome still cannot be encoded, the
    answer is an error with the reason.

    Arguments:
        outcome: the answer that could not be encoded.
        name: the function of the job.
        reason: why it could not be encoded.
    """
    send = connection.stream.send_nowait
    too_large = isinstance(reason, PayloadTooLargeError)
    if isinstance(reason, EncodeError) and not too_large:
        try:
            convert_values(outcome)
            send(outcome)
            return outcome
        except BaseException as error:
            reason = error
    subject = "result" if outcome.error is None else "error"
    why = text_of(reason, name) or type_name(reason)  # a MemoryError has no text
    text = f"{subject} of {describe(name)} cannot be sent: {why}"
    # The text of another library's exception may be long, or hold a lone surrogate.
    text = text[:_LONGEST_REASON].encode(errors="backslashreplace").decode()
    job_id = describe(outcome.job_id)
    log(logging.WARNING, "%s: job %s: %s", connection.name, job_id, text)
    instead = ExecutionOutcome(
        job_id=outcome.job_id,
        request_id=outcome.request_id,
        status=OutcomeStatus.ERROR,
        error=ExecutionError(message=text),
    )
    try:
        send(instead)
    except (EncodeError, ConnectionError) as error:  # ids of 16 MiB; the connection is closed
        log(logging.WARNING, "%s: a request cannot be answered: %s", connection.name, error)
    return instead
