"""The messages of RRQ's runner protocol, version 2: plain dataclasses.

Both implementations use them. The fields are the wire format: the codec reads names, order, types
and defaults from here. They are those of RRQ's own Rust crate, rrq-protocol. A field without a
default is required. A type that ends with `| None` accepts null.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, TypeAlias
else:
    Any = Self = object  # for typing.get_type_hints(); importing typing takes too long

__all__ = [
    "MAX_NESTING",
    "PROTOCOL_VERSION",
    "CancelRequest",
    "ExecutionContext",
    "ExecutionError",
    "ExecutionOutcome",
    "ExecutionRequest",
    "OutcomeStatus",
    "OutcomeType",
    "RunnerMessage",
]

PROTOCOL_VERSION: str = "2"

# How many containers may be nested in one another in a payload, envelope included. The
# orchestrator's parser, serde_json, rejects the 128th.
MAX_NESTING: int = 127

# How the codec writes a field that is None. Without this metadata, it omits the field.
NULL = {"none": "null"}
NULL_IF_SUCCESS = {"none": "null if success"}


class OutcomeStatus(StrEnum):
    """The `status` of a response on the wire."""

    SUCCESS = "success"
    RETRY = "retry"
    TIMEOUT = "timeout"
    ERROR = "error"


_SUCCESS = OutcomeStatus.SUCCESS  # faster than the attribute of the Enum


class OutcomeType(StrEnum):
    """How a job ended, from the `status` and `error.type` of a response.

    It decides whether the orchestrator runs the job again.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    HANDLER_NOT_FOUND = "handler_not_found"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    RETRY_AFTER = "retry_after"


@dataclass(slots=True, kw_only=True)
class ExecutionContext:
    """The circumstances of a job: the `context` of an ExecutionRequest.

    Attributes:
        job_id: the job's id.
        attempt: number of times the job has been started, including this one; 0 to 4294967295.
        enqueue_time: when the job entered the queue; aware, in UTC, truncated to microseconds.
        queue_name: the queue that the job came from.
        deadline: when the orchestrator gives up on the job; same form as `enqueue_time`.
        trace_context: the W3C trace headers of the job's trace.
        correlation_context: the producer's own labels. Orchestrators up to 0.9.18 do not send it.
        worker_id: the orchestrator's worker.
    """

    job_id: str
    attempt: int
    enqueue_time: datetime
    queue_name: str
    deadline: datetime | None = field(default=None, metadata=NULL)
    trace_context: dict[str, str] | None = field(default=None, metadata=NULL)
    correlation_context: dict[str, str] | None = field(default=None, metadata=NULL)
    worker_id: str | None = field(default=None, metadata=NULL)


@dataclass(slots=True, kw_only=True)
class ExecutionRequest:
    """A job to run, sent by the orchestrator to a runner.

    The runner answers with an ExecutionOutcome of the same `request_id` and `job_id`.

    Attributes:
        protocol_version: the version of the protocol. Decoding accepts any; a runner must check it.
        request_id: identifies this request on its connection.
        job_id: the job's id.
        function_name: the handler to call.
        params: the arguments of the job, any JSON values.
        context: the circumstances of the job.
    """

    protocol_version: str = PROTOCOL_VERSION
    request_id: str
    job_id: str
    function_name: str
    params: dict[str, Any] = field(default_factory=dict)
    context: ExecutionContext


@dataclass(slots=True, kw_only=True)
class ExecutionError:
    """Why a job did not succeed: the `error` of an ExecutionOutcome.

    Attributes:
        message: a description for people.
        type: "handler_not_found", "cancelled", or the application's own word.
        code: the application's own code.
        details: any JSON value.
    """

    message: str
    type: str | None = None
    code: str | None = None
    details: Any = None


@dataclass(slots=True, kw_only=True)
class ExecutionOutcome:
    """How a job ended: a runner's answer to an ExecutionRequest.

    The class methods build one outcome of each type.

    Attributes:
        job_id: the request's `job_id`.
        request_id: the request's `request_id`.
        status: an OutcomeStatus.
        result: what the job returned, any JSON value.
        error: why the job did not succeed.
        retry_after_seconds: seconds until the job runs again; None leaves that to the orchestrator.
    """

    job_id: str | None = None
    request_id: str | None = None
    status: OutcomeStatus
    result: Any = field(default=None, metadata=NULL_IF_SUCCESS)
    error: ExecutionError | None = None
    retry_after_seconds: float | None = None

    @property
    def type(self) -> OutcomeType:
        """The OutcomeType of this outcome. Raises ValueError for an unknown `status`."""
        status = OutcomeStatus(self.status)
        if status is OutcomeStatus.RETRY:
            return OutcomeType.RETRY_AFTER
        if status is not OutcomeStatus.ERROR:
            return OutcomeType(status.value)
        error_type = None if self.error is None else self.error.type
        if error_type in (OutcomeType.HANDLER_NOT_FOUND, OutcomeType.CANCELLED):
            return OutcomeType(error_type)
        return OutcomeType.FAILURE

    @classmethod
    def success(cls, job_id: str, request_id: str, result: Any = None) -> Self:
        """Build the outcome of a job that completed and returned `result`."""
        if cls is not ExecutionOutcome or _HAS_MORE_FIELDS:
            return cls(job_id=job_id, request_id=request_id, status=_SUCCESS, result=result)
        # Most jobs end here, and to call the class takes twice as long.
        outcome = object.__new__(cls)
        outcome.job_id = job_id
        outcome.request_id = request_id
        outcome.status = _SUCCESS
        outcome.result = result
        outcome.error = None
        outcome.retry_after_seconds = None
        return outcome

    @classmethod
    def failure(
        cls,
        job_id: str,
        request_id: str,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        details: Any = None,
    ) -> Self:
        """Build the outcome of a job that failed. The orchestrator retries it by its policy."""
        error = ExecutionError(message=message, type=type, code=code, details=details)
        return cls(job_id=job_id, request_id=request_id, status=OutcomeStatus.ERROR, error=error)

    @classmethod
    def retry_after(
        cls, job_id: str, request_id: str, message: str, seconds: float | None = None
    ) -> Self:
        """Build the outcome of a job that asks to run again.

        Arguments:
            seconds: the delay; None leaves it to the orchestrator.
        """
        return cls(
            job_id=job_id,
            request_id=request_id,
            status=OutcomeStatus.RETRY,
            error=ExecutionError(message=message),
            retry_after_seconds=seconds,
        )

    @classmethod
    def timeout(cls, job_id: str, request_id: str, message: str) -> Self:
        """Build the outcome of a job that ran past its deadline. It is not retried."""
        error = ExecutionError(message=message, type="timeout")
        return cls(job_id=job_id, request_id=request_id, status=OutcomeStatus.TIMEOUT, error=error)

    @classmethod
    def cancelled(cls, job_id: str, request_id: str, message: str = "Job cancelled") -> Self:
        """Build the outcome of a cancelled job. The orchestrator treats it as a failure."""
        return cls.failure(job_id, request_id, message, type="cancelled")

    @classmethod
    def handler_not_found(cls, job_id: str, request_id: str, message: str) -> Self:
        """Build the outcome of a job whose function has no handler. It is not retried."""
        return cls.failure(job_id, request_id, message, type="handler_not_found")


# Whether there are fields that success() does not set itself.
_HAS_MORE_FIELDS = len(fields(ExecutionOutcome)) > 6


@dataclass(slots=True, kw_only=True)
class CancelRequest:
    """A request to end a job, sent by the orchestrator to a runner.

    Attributes:
        protocol_version: the version of the protocol. Decoding accepts any; a runner must check it.
        job_id: the job's id.
        request_id: the one request to end; None ends every request of `job_id` in the process.
        hard_kill: whether the orchestrator is about to kill the runner's process.
    """

    protocol_version: str = PROTOCOL_VERSION
    job_id: str
    request_id: str | None = None
    hard_kill: bool = False


RunnerMessage: TypeAlias = ExecutionRequest | ExecutionOutcome | CancelRequest

# The `type` of each message on the wire.
WIRE_TYPES: dict[str, type[RunnerMessage]] = {
    "request": ExecutionRequest,
    "response": ExecutionOutcome,
    "cancel": CancelRequest,
}
