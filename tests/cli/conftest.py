"""`tap` processes that end with their test, and commands that run in the process of the tests."""

from __future__ import annotations

import contextlib

import pytest

from rrq_fastwire.cli import main

from ..taps import Wire


@pytest.fixture
def start():
    """Starts `tap`: a Wire, or another kind of Tap. Kills it at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(*options, kind=Wire, **more):
            tap = kind(*options, **more)
            stack.callback(tap.close)
            return tap

        yield start


@pytest.fixture
def refused(capfd):
    """Runs a command that ends at once: exit status, stdout, stderr.

    It runs in this process, because a new interpreter takes most of the time of such a test.
    """

    def refused(*arguments):
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return refused
