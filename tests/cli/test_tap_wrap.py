"""`tap --wrap`, which starts a runner and listens in its place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
)
from rrq_fastwire.cli.runner_process import free_port
from rrq_fastwire.client import RunnerClient

from ..stock import needs_rrq
from ..taps import (
    RUNNERS,
    SETTINGS,
    WAIT_SECONDS,
    Tap,
    can_connect,
    request,
    until,
)
from .in_process import run_text

pytest.importorskip("pty", reason="pseudo-terminals need POSIX")
pytest.importorskip("click", reason="the command line is an extra")
pytest.importorskip("rich", reason="the command line is an extra")

SMALL = str(Path(__file__).parents[1] / "small_runner.py")


class Wrap(Tap):
    """A `tap --wrap` with the command of a runner."""

    def __init__(self, *command: str, **more) -> None:
        port = free_port()
        arguments = ["--wrap", "--", *command, "--tcp-socket", f"127.0.0.1:{port}"]
        super().__init__(*arguments, port=port, stdout=subprocess.PIPE, **more)
        self.read()

    def left(self) -> list[int]:
        """The ids of the running processes: tap, and those that it has started."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.marker.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def close(self) -> None:
        super().close()
        if sys.platform == "linux":
            until(lambda: not self.left())


async def outcome(port: int, name: str, params: dict) -> ExecutionOutcome:
    async with await RunnerClient.connect("127.0.0.1", port) as client:
        return await client.execute(name, params, timeout=WAIT_SECONDS)


@needs_rrq
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_wrapped_runner_runs_jobs_and_ends_with_its_exit_status(start, runner):
    tap = start(*RUNNERS[runner], kind=Wrap)
    until(lambda: can_connect(tap.port))
    assert asyncio.run(outcome(tap.port, "echo", {"a": 1})).result == {"a": 1}
    tap.says("<- success", "echo")
    tap.process.terminate()
    # The stock runner does not catch SIGTERM.
    assert tap.process.wait(WAIT_SECONDS) == {"stock": 128 + signal.SIGTERM, "ours": 0}[runner]
    until(lambda: re.search(r"^ echo +1 +0 +0 ", tap.output, re.MULTILINE))


@needs_rrq
def test_lines_of_two_wrapped_runners_name_their_processes(start):
    for _ in range(2):
        tap = start(*RUNNERS["ours"], kind=Wrap)
        process = str(tap.process.pid)
        until(lambda port=tap.port: can_connect(port))
        assert asyncio.run(outcome(tap.port, "echo", {"a": 1})).result == {"a": 1}
        tap.says("is passed on to", process)
        tap.says(process, "-> echo")
        tap.says(process, "<- success", "echo")


@needs_rrq
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_reaches_the_runner_once_and_its_last_answers_are_passed_on(start, whole_group):
    tap = start(*RUNNERS["ours"], kind=Wrap)
    until(lambda: can_connect(tap.port))
    with tap.connect() as orchestrator:
        orchestrator.sendall(request("sleep", params={"seconds": WAIT_SECONDS}))
        tap.says("-> sleep")
        # The orchestrator signals the whole group. If tap passed the signal on again, this second
        # signal would kill the runner.
        (os.killpg if whole_group else os.kill)(tap.process.pid, signal.SIGTERM)
        answer = b""
        while data := orchestrator.recv(65536):
            answer += data
    assert b"Job cancelled" in answer
    assert tap.ends() == 0
    tap.says("<- error", "sleep", "cancelled")


def test_the_exit_status_of_the_runner_is_passed_on(start):
    tap = start(sys.executable, "-c", "import sys; print('hello'); sys.exit(7)", kind=Wrap)
    assert tap.ends() == 7
    assert tap.output == "hello\n"


def test_no_process_remains_if_the_one_that_guards_the_runner_cannot_be_started(monkeypatch):
    create_subprocess_exec, started = asyncio.create_subprocess_exec, []

    async def create_only_one(*command, **options):
        if started:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(await create_subprocess_exec(*command, **options))
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_only_one)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    status, _, said = run_text(
        "tap", "--wrap", *command, "--tcp-socket", f"127.0.0.1:{free_port()}"
    )
    (runner,) = started
    assert runner.returncode == -signal.SIGKILL
    assert said == f"rrq-fastwire: cannot start {sys.executable!r}: {os.strerror(errno.EAGAIN)}\n"
    assert status == 1


SIGNALLED_BEFORE_THE_RUNNER_STARTS = """
import asyncio, os, signal, sys
from rrq_fastwire.cli import main

start = asyncio.create_subprocess_exec

async def signalled(*command, **options):
    asyncio.create_subprocess_exec = start
    os.kill(os.getpid(), signal.SIGTERM)
    return await start(*command, **options)

asyncio.create_subprocess_exec = signalled
sys.exit(main(sys.argv[4:]))  # after the words of `python -m rrq_fastwire`
"""


def test_a_signal_that_arrives_before_the_runner_starts_reaches_the_runner(start):
    prefix = [sys.executable, "-c", SIGNALLED_BEFORE_THE_RUNNER_STARTS]
    runner = [sys.executable, "-c", "import time; time.sleep(600)"]
    tap = start(*runner, kind=Wrap, prefix=prefix)
    assert tap.ends() == 128 + signal.SIGTERM


@needs_rrq
def test_tap_listens_only_once_the_runner_listens(start, tmp_path):
    code = (
        "import sys, time, pathlib; from rrq_fastwire.runner import main\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "main(sys.argv[2:])"
    )
    go = tmp_path / "go"
    tap = start(sys.executable, "-c", code, str(go), *SETTINGS, kind=Wrap)
    if sys.platform == "linux":
        until(lambda: len(tap.left()) == 3)  # tap, the runner, and a process between them
    assert not can_connect(tap.port)
    go.touch()
    until(lambda: can_connect(tap.port))
    assert asyncio.run(outcome(tap.port, "echo", {"a": 1})).result == {"a": 1}
    assert tap.ends(signal.SIGTERM) == 0


@needs_rrq
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("runner", RUNNERS)
def test_no_process_remains_when_tap_is_killed(start, runner):
    tap = start(*RUNNERS[runner], kind=Wrap)
    until(lambda: can_connect(tap.port))
    os.killpg(tap.process.pid, signal.SIGKILL)
    until(lambda: not tap.left())


@needs_rrq
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("runner", [*RUNNERS, "ignores SIGTERM"])
def test_no_process_remains_when_the_parent_of_tap_ends(start, runner):
    stubborn = (
        "import runpy, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"runpy.run_path({SMALL!r}, run_name='__main__')"
    )
    runners = {**RUNNERS, "ignores SIGTERM": [sys.executable, "-c", stubborn]}
    parent = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    tap = start(*runners[runner], kind=Wrap, prefix=parent)
    until(lambda: can_connect(tap.port))
    assert len(tap.left()) == 4
    tap.process.kill()
    until(lambda: not tap.left())
