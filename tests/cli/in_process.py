"""Runs commands in the process of the tests, because an interpreter takes most of the time to start."""

from __future__ import annotations

import os
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
    """Runs a command. Its stdin, stdout and stderr are files, also in processes that it starts."""
    with ExitStack() as stack:
        files = []
        for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
            file = stack.enter_context(TemporaryFile())
            files.append(file)
            if name == "stdin":
                file.write(input)
                file.seek(0)
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(file.fileno(), descriptor)
            mode = "r" if name == "stdin" else "w"
            stream = stack.enter_context(open(descriptor, mode, encoding="utf-8", closefd=False))
            stream.buffer.raw.name = f"<{name}>"
            stack.enter_context(patch.object(sys, name, stream))
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        for file in files:
            file.seek(0)
        return Done(status, files[1].read(), files[2].read())


def run_text(*arguments: str) -> tuple[int, str, str]:
    """Runs a command: exit status, stdout, stderr."""
    status, stdout, stderr = run(*arguments)
    return status, stdout.decode(), stderr.decode()
