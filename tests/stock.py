"""Names of rrq, the stock runner, for tests. Without rrq, `needs_rrq` skips the tests that need it."""

from __future__ import annotations

import asyncio
import contextlib

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
    """An rrq Registry of handlers by name; without rrq, the mapping itself."""
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


@contextlib.asynccontextmanager
async def stock_server(registry):
    """Runs the stock runner with a registry, and yields its port."""
    tracker = rrq.runner_runtime._InflightTracker()
    await tracker.start()
    runner = rrq.runner.PythonRunner(job_registry=registry, worker_id=None)
    server = await asyncio.start_server(
        lambda reader, writer: rrq.runner_runtime._handle_connection(
            reader, writer, runner, tracker
        ),
        "127.0.0.1",
        0,
    )
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
    await tracker.close()
