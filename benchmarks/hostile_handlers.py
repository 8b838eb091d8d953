"""The handlers that benchmarks/hostile.py attacks; they run in the runner's process."""

from __future__ import annotations

import asyncio

from rrq_fastwire import ExecutionRequest


async def noop(request: ExecutionRequest) -> None:
    pass


async def wait(request: ExecutionRequest) -> None:
    await asyncio.Event().wait()


async def make_text(request: ExecutionRequest) -> str:
    await asyncio.sleep(0)  # otherwise the first answer delays the later requests
    return "x" * request.params["size"]


handlers = {each.__name__: each for each in (noop, wait, make_text)}
