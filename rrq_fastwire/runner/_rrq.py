"""What the runner uses of rrq and its pydantic. Imported only if rrq is installed."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from rrq.exc import RetryJob
from rrq.registry import Registry
from rrq.runner import ExecutionOutcome as StockOutcome
from rrq.runner import ExecutionRequest as StockRequest
from rrq.runner_settings import PythonRunnerSettings
from rrq.telemetry import RunnerSpan, Telemetry, get_telemetry

from .. import ExecutionOutcome, ExecutionRequest

__all__ = [
    "PythonRunnerSettings",
    "Registry",
    "RetryJob",
    "RunnerSpan",
    "StockOutcome",
    "as_stock_writes",
    "span",
    "stock_request",
]

# In pydantic's JSON mode this converts a value like a model's field of type Any. The stock runner's
# ExecutionOutcome.result is such a field.
_jsonable = TypeAdapter(Any).dump_python

# What model_validate() calls. To call it directly takes three quarters of the time.
_validated = TypeAdapter(StockRequest).validator.validate_python


def stock_request(request: ExecutionRequest) -> StockRequest:
    """Convert a request to rrq's class. Its `params` are a shallow copy."""
    context = request.context
    return _validated(
        {
            "protocol_version": request.protocol_version,
            "request_id": request.request_id,
            "job_id": request.job_id,
            "function_name": request.function_name,
            "params": request.params,
            "context": {
                "job_id": context.job_id,
                "attempt": context.attempt,
                "enqueue_time": context.enqueue_time,
                "queue_name": context.queue_name,
                "deadline": context.deadline,
                "trace_context": context.trace_context,
                "correlation_context": context.correlation_context,
                "worker_id": context.worker_id,
            },
        }
    )


def span(request: Any) -> RunnerSpan | None:
    """Return the telemetry span of a request; None with rrq's default, which does nothing."""
    telemetry = get_telemetry()
    return None if type(telemetry) is Telemetry else telemetry.runner_span(request)


def as_stock_writes(outcome: ExecutionOutcome) -> None:
    """Convert the values in an outcome to JSON's types as the stock runner does, by pydantic.

    Raises whatever pydantic or a value's own code raises.
    """
    outcome.result = _jsonable(outcome.result, mode="json")
    if outcome.error is not None:
        outcome.error.details = _jsonable(outcome.error.details, mode="json")
