"""What the tests take from rrq. Where that is not installed, the tests that need it are skipped."""

from __future__ import annotations

import pytest

try:
    import pydantic
    import rrq.protocol
    import rrq.runner
    import rrq.runner_runtime
    import rrq.telemetry
    from rrq.exc import RetryJob
    from rrq.registry import Registry
except ModuleNotFoundError as error:
    if error.name not in ("pydantic", "rrq"):
        raise
    HAS_RRQ = False
    pydantic = rrq = None
    BaseModel = StockError = StockOutcome = StockRequest = object
    Registry = dict

    class RetryJob(Exception):  # noqa: N818
        pass
else:
    HAS_RRQ = True
    BaseModel = pydantic.BaseModel
    StockError = rrq.runner.ExecutionError
    StockOutcome = rrq.runner.ExecutionOutcome
    StockRequest = rrq.runner.ExecutionRequest

needs_rrq = pytest.mark.skipif(not HAS_RRQ, reason="needs rrq, which is not installed")


def registry(handlers):
    """An rrq Registry of handlers by name; the mapping itself where rrq is not installed."""
    if not HAS_RRQ:
        return handlers
    made = Registry()
    for name, handler in handlers.items():
        made.register(name, handler)
    return made


both_kinds_of_handlers = pytest.mark.parametrize(
    "wrap", [dict, pytest.param(registry, marks=needs_rrq)]
)


def stock(status, **fields):
    """An outcome of rrq."""
    return StockOutcome(status=status, **fields)
