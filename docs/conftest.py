"""Runs every ```python block of the pages. The blocks of one page share a namespace, in order."""

from __future__ import annotations

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

# tests/e2e/test_shop.py runs these.
collect_ignore = ["examples"]

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()
