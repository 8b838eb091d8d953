"""Runs commands in the process of the tests, because an interpreter takes most of the time to start."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import NamedTuple
from unittest.mock import patch

from rrq_fastwire.cli import main


class Done(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes


def run(*arguments: str, input: bytes = b"") -> Done:
    """Runs a command whose stdin, stdout and stderr are files in UTF-8."""
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(TemporaryFile("w+", encoding="utf-8"))
            for name in ("stdin", "stdout", "stderr")
        }
        files["stdin"].buffer.raw.name = "<stdin>"
        files["stdin"].buffer.write(input)
        files["stdin"].seek(0)
        with patch.multiple(sys, **files):
            try:
                status = main(list(arguments))
            except SystemExit as end:
                status = end.code
        written = []
        for name in ("stdout", "stderr"):
            files[name].seek(0)  # which also writes what is in the buffer
            written.append(files[name].buffer.read())
    return Done(status, *written)
