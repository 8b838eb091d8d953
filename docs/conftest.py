"""Runs every ```python block of the pages. The blocks of one page share a namespace, in order."""

from __future__ import annotations

import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from sybil.region import Lexeme

from rrq_fastwire.cli.runner_process import free_port

# tests/e2e/test_shop.py runs the tests of the examples.
collect_ignore = ["examples"]

# The blocks use ports 9000 and 9100, on which another program may listen. They run on these
# instead: PORT and PORT + 100.
PORT = free_port(101)


class Evaluator(PythonEvaluator):
    """Runs a block with other ports."""

    def __call__(self, example: Example) -> None:
        block = example.parsed
        code = block.replace("9000", str(PORT)).replace("9100", str(PORT + 100))
        example.parsed = Lexeme(code, block.offset, block.line_offset)
        super().__call__(example)


blocks = CodeBlockParser(language="python", evaluator=Evaluator())
pytest_collect_file = Sybil(parsers=[blocks], patterns=["*.md"]).pytest()


def pytest_configure(config: pytest.Config) -> None:
    # how-to/test-handlers.md uses this marker of pytest-asyncio, which this test run does not load.
    config.addinivalue_line("markers", "asyncio: a test that is a coroutine")
