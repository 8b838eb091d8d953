"""`tap` processes that end with their test."""

from __future__ import annotations

import contextlib

import pytest

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
