"""The parts of rrq and pydantic that the runner uses. Imported only if rrq is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from pydantic import BaseModel, TypeAdapter
from rrq.exc import RetryJob
from rrq.registry import Registry
from rrq.runner import ExecutionContext as StockContext
from rrq.runner import ExecutionOutcome as StockOutcome
from rrq.runner import ExecutionRequest as StockRequest
from rrq.runner_settings import PythonRunnerSettings
from rrq.telemetry import RunnerSpan, Telemetry, get_telemetry

from .. import ExecutionContext, ExecutionOutcome, ExecutionRequest

__all__ = [
    "PythonRunnerSettings",
    "Registry",
    "RetryJob",
    "RunnerSpan",
    "StockOutcome",
    "Telemetry",
    "convert_values",
    "get_telemetry",
    "stock_request",
]

# In pydantic's JSON mode this converts a value like a model's field of type Any. The stock runner's
# ExecutionOutcome.result is such a field.
_jsonable = TypeAdapter(Any).dump_python

# Decoding has checked the types already. So requests are built without validation, which takes
# three quarters of the time. This does what model_construct() does, which takes longer than
# validation. It assumes that the models have the fields of this package's messages. Older versions
# of rrq lack one: there, requests are validated. To remove: use _validated_request() for all.
_set = object.__setattr__
_REQUEST_FIELDS = frozenset(field.name for field in fields(ExecutionRequest))
_CONTEXT_FIELDS = frozenset(field.name for field in fields(ExecutionContext))
_HAS_SAME_FIELDS = (
    StockRequest.model_fields.keys() == _REQUEST_FIELDS
    and StockContext.model_fields.keys() == _CONTEXT_FIELDS
)


def _built(model: type[BaseModel], names: frozenset[str], values: dict[str, Any]) -> Any:
    built = object.__new__(model)
    _set(built, "__dict__", values)
    _set(built, "__pydantic_fields_set__", set(names))
    _set(built, "__pydantic_extra__", None)
    _set(built, "__pydantic_private__", None)
    return built


def _built_request(request: ExecutionRequest) -> Any:
    context = request.context
    stock_context = _built(
        StockContext,
        _CONTEXT_FIELDS,
        {
            "job_id": context.job_id,
            "attempt": context.attempt,
            "enqueue_time": context.enqueue_time,
            "queue_name": context.queue_name,
            "deadline": context.deadline,
            "trace_context": context.trace_context,
            "correlation_context": context.correlation_context,
            "worker_id": context.worker_id,
        },
    )
    return _built(
        StockRequest,
        _REQUEST_FIELDS,
        {
            "protocol_version": request.protocol_version,
            "request_id": request.request_id,
            "job_id": request.job_id,
            "function_name": request.function_name,
            "params": request.params,
            "context": stock_context,
        },
    )


def _validated_request(request: ExecutionRequest) -> Any:
    return StockRequest.model_validate(request, from_attributes=True)


# Convert a request to rrq's class.
stock_request: Callable[[ExecutionRequest], StockRequest] = (
    _built_request if _HAS_SAME_FIELDS else _validated_request
)


def convert_values(outcome: ExecutionOutcome) -> None:
    """Convert the values in an outcome to JSON's types as the stock runner does, with pydantic.

    Raises whatever pydantic or a value's own code raises.
    """
    outcome.result = _jsonable(outcome.result, mode="json")
    if outcome.error is not None:
        outcome.error.details = _jsonable(outcome.error.details, mode="json")
