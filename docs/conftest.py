"""Runs every ```python block of the pages. The blocks of one page share a namespace, in order."""

from __future__ import annotations

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

# tests/e2e/test_shop.py runs these.
collect_ignore = ["examples"]

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()


def pytest_configure(config: pytest.Config) -> None:
    # how-to/test-handlers.md shows it. pytest-asyncio, which has it, is not used here.
    config.addinivalue_line("markers", "asyncio: a test that is a coroutine")
