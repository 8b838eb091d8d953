"""Runs each benchmark once, without timing it, unless --benchmark-only or -enable is given."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    if not (options.benchmark_only or options.benchmark_enable):
        options.benchmark_disable = True
