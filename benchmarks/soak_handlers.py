"""The handlers that benchmarks/soak.py loads; they run in the runner's process."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

from rrq_fastwire import ExecutionOutcome, ExecutionRequest


async def echo(request: ExecutionRequest) -> Any:
    return request.params["value"]


async def pause(request: ExecutionRequest) -> Any:
    await asyncio.sleep(0)
    return request.params["value"]


async def fail(request: ExecutionRequest) -> None:
    raise ValueError(request.params["value"])


async def retry(request: ExecutionRequest) -> ExecutionOutcome:
    return ExecutionOutcome.retry_after("", "", "later", 1.5)


async def give_decimals(request: ExecutionRequest) -> Any:
    return {Decimal("1.5")}, 10**30


async def wait(request: ExecutionRequest) -> None:
    await asyncio.Event().wait()


handlers = {each.__name__: each for each in (echo, pause, fail, retry, give_decimals, wait)}
