"""Fixtures of the tests that run the runner's command as a process."""

from __future__ import annotations

import pytest

from ..commands import Command


@pytest.fixture
def command(tmp_path):
    command = Command(tmp_path)
    yield command
    command.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def command_on_each_loop(request, command):
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    else:
        command.hide_uvloop()
    return command


@pytest.fixture(scope="module")
def command_for_errors(tmp_path_factory):
    """A command for tests whose runners exit by themselves. All tests of a file share its folder."""
    return Command(tmp_path_factory.mktemp("settings"))
