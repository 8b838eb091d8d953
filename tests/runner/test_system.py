"""Runners whose system runs out of file descriptors, or of disk space for the log."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, contextmanager, suppress

import pytest

from ..commands import until

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs ulimit and /dev/full of Linux"
)

DESCRIPTORS = 60


@contextmanager
def crowd(runner):
    """More connections than the runner has descriptors for."""
    with ExitStack() as stack:
        for _ in range(2 * DESCRIPTORS):
            with suppress(ConnectionResetError):  # uvloop has no descriptor for it
                stack.enter_context(socket.create_connection(("127.0.0.1", runner.port)))
        yield


def start_with_few_descriptors(command):
    limited = ["/bin/sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh"]
    return command.start(before=limited)


def test_a_runner_without_descriptors_serves_those_that_are_connected_and_recovers(
    command_on_each_loop,
):
    command = command_on_each_loop
    runner = start_with_few_descriptors(command)
    peer = command.connect(runner.port)
    assert peer.ask("kind") == "rrq_fastwire"
    with crowd(runner):
        for _ in range(1000):
            assert peer.ask("kind") == "rrq_fastwire"
    until(lambda: is_served(command, runner), "new connections are served again")
    assert peer.ask("kind") == "rrq_fastwire"


def is_served(command, runner):
    peer = command.connect(runner.port)
    with suppress(ConnectionResetError, BrokenPipeError):
        peer.send("kind")
        answer = peer.receive()
        return answer is not None and answer.result == "rrq_fastwire"
    return False


def test_a_runner_without_descriptors_does_not_fill_the_log(command):
    command.hide_uvloop()  # which logs nothing
    runner = start_with_few_descriptors(command)

    def records():
        errors = runner.errors()
        # CPython 3.15 needs a file descriptor to log a traceback, too.
        return errors.count("OSError: [Errno 24] Too many") + errors.count("--- Logging error ---")

    with crowd(runner):
        until(lambda: records() >= 3, "accepting is tried again, once a second")
        assert records() < 10


LOGS_TO_FULL_DISK = """
from app import *
import logging

logging.basicConfig(filename="/dev/full", level=logging.DEBUG)
"""

FAILS = """
async def fail(request):
    raise RuntimeError("x" * 100_000)
handlers["fail"] = fail
"""


@pytest.mark.parametrize("where", ["stderr", "stdout and stderr", "file"])
def test_jobs_are_answered_although_the_log_is_on_a_full_disk(command_on_each_loop, where):
    command = command_on_each_loop
    begin = LOGS_TO_FULL_DISK if where == "file" else "from app import *\n"
    (command.folder / "full.py").write_text(begin + FAILS)
    with open("/dev/full", "w") as full:
        runner = command.start(
            settings="full.handlers",
            stderr=full if "stderr" in where else None,
            stdout=full if "stdout" in where else None,
        )
    peer = command.connect(runner.port)
    for _ in range(20):
        peer.send("fail")
        assert peer.receive().error.message == "x" * 100_000
    assert peer.ask("kind") == "rrq_fastwire"
    peer.socket.sendall(b"\0\0\0\0")  # which is logged, too
    assert peer.receive() is None
    runner.terminate()
    # Python exits with 120 if it cannot flush stdout or stderr at its end.
    assert command.wait(runner) == (0 if where == "file" else 120)
