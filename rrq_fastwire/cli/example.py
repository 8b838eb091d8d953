"""Handlers to try a runner with: `--settings rrq_fastwire.cli.example.settings`."""

from __future__ import annotations

import asyncio
from typing import Any

from rrq.exc import RetryJob
from rrq.registry import Registry
from rrq.runner_settings import PythonRunnerSettings


async def noop(request: Any) -> None:
    """Do nothing."""


async def echo(request: Any) -> Any:
    """Return the params."""
    return request.params


async def sleep(request: Any) -> None:
    """Wait for params.seconds seconds."""
    await asyncio.sleep(request.params["seconds"])


async def fail(request: Any) -> None:
    """Raise RuntimeError, with params.message if it is given."""
    raise RuntimeError(request.params.get("message", "this handler always fails"))


async def retry(request: Any) -> None:
    """Ask for a retry, after params.seconds seconds if they are given."""
    raise RetryJob("this handler always asks for a retry", request.params.get("seconds"))


registry = Registry()
for handler in (noop, echo, sleep, fail, retry):
    registry.register(handler.__name__, handler)

settings = PythonRunnerSettings(registry=registry)
