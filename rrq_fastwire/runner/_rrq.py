"""What the runner takes from an installed rrq, pydantic included: imported only where rrq is."""

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

# In pydantic's JSON mode a model's field of any type is written like this, and so is
# ExecutionOutcome.result by the stock runner.
_jsonable = TypeAdapter(Any).dump_python

# What model_validate() calls, at three quarters of its price.
_validated = TypeAdapter(StockRequest).validator.validate_python


def stock_request(request: ExecutionRequest) -> StockRequest:
    """The request as rrq's handlers know it. Its params are a copy, one level deep."""
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
    """The configured telemetry's span for a request; None where rrq's default does nothing."""
    telemetry = get_telemetry()
    return None if type(telemetry) is Telemetry else telemetry.runner_span(request)


def as_stock_writes(outcome: ExecutionOutcome) -> None:
    """Turns what is in an outcome into JSON's types as the stock runner does, by pydantic.

    Raises whatever pydantic, or a value's own code, does.
    """
    outcome.result = _jsonable(outcome.result, mode="json")
    if outcome.error is not None:
        outcome.error.details = _jsonable(outcome.error.details, mode="json")
