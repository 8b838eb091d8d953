"""Handlers to try a runner with: `--settings rrq_fastwire.cli.example.settings`."""

from __future__ import annotations

from typing import Any

from rrq.registry import Registry
from rrq.runner_settings import PythonRunnerSettings


async def noop(request: Any) -> None:
    """Does nothing."""


async def echo(request: Any) -> Any:
    """Gives the params back."""
    return request.params


registry = Registry()
for handler in (noop, echo):
    registry.register(handler.__name__, handler)

settings = PythonRunnerSettings(registry=registry)
