"""Runners that commands start: their start, their end, and their CPU time."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
from glob import iglob
from pathlib import Path

import pytest

from rrq_fastwire.cli import runner_process

from ..commands import free_port, until
from .in_process import run_text

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the CPU time of a process is read on Linux only"
)

SMALL = str(Path(__file__).parents[1] / "small_runner.py")


@pytest.mark.skipif(os.name == "nt", reason="signals work differently on Windows")
def test_a_runner_that_ignores_sigterm_is_killed_at_the_end(monkeypatch):
    monkeypatch.setattr(runner_process, "_END_SECONDS", 0.01)
    code = (
        "import runpy, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"runpy.run_path({SMALL!r}, run_name='__main__')"
    )

    async def main():
        async with runner_process.runner_process([sys.executable, "-c", code]) as runner:
            outcome = await runner.client.execute("echo", {"a": 1})
        return outcome.result, await runner.ended()

    assert asyncio.run(main()) == ({"a": 1}, "exit status -9")


LEAVING = """
import atexit, asyncio, pathlib
folder = pathlib.Path(__file__).parent
atexit.register((folder / "ended").touch)

async def wait(request):
    (folder / "begun").touch()
    await asyncio.sleep(request.params["seconds"])

handlers = {"wait": wait}
"""


@pytest.fixture
def leaving(tmp_path):
    """The command of a runner that writes the file "ended" when it ends normally."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    command = [sys.executable, "-m", "rrq_fastwire.runner", "--no-parent-watch"]
    command += ["--settings", "leaving.handlers"]
    return ["env", f"PYTHONPATH={tmp_path}", *command]


@linux  # on which the process that listens is known
def test_a_runner_that_a_shell_script_starts_is_ended(leaving, tmp_path):
    script = tmp_path / "start"
    script.write_text(f'{shlex.join(leaving)} "$@"; exit 1')
    status, _, _ = run_text("call", "--runner", f"sh {script}", "wait", "seconds=0")
    assert status == 0
    until((tmp_path / "ended").exists, "the end of the runner")


@pytest.mark.skipif(os.name == "nt", reason="signals work differently on Windows")
@pytest.mark.parametrize(
    "arguments", [["call", "wait", "seconds=600"], ["load", "wait", "--params", "params.json"]]
)
def test_a_command_that_sigterm_ends_has_ended_its_runner(leaving, tmp_path, arguments):
    pytest.importorskip("click", reason="the command line is an extra")
    (tmp_path / "params.json").write_text('{"seconds": 600}')
    line = [sys.executable, "-m", "rrq_fastwire", *arguments, "--runner", shlex.join(leaving)]
    with subprocess.Popen(line, cwd=tmp_path) as command:
        until((tmp_path / "begun").exists, "the start of the job")
        command.terminate()
    assert command.returncode == -signal.SIGTERM
    assert (tmp_path / "ended").exists()


def test_a_runner_that_does_not_listen_in_time_gets_one_sentence(monkeypatch):
    pytest.importorskip("click", reason="the command line is an extra")
    monkeypatch.setattr(runner_process, "_START_SECONDS", 0.0)
    runner = shlex.join([sys.executable, "-c", "import time; time.sleep(600)"])
    status, printed, said = run_text("call", "--runner", runner, "f")
    assert (status, printed) == (1, "")
    assert said == "rrq-fastwire: the runner did not listen within 0 s\n"


def test_without_a_free_port_no_runner_is_started(monkeypatch):
    pytest.importorskip("click", reason="the command line is an extra")

    def create_server(address):
        raise OSError("in use")

    monkeypatch.setattr(socket, "create_server", create_server)
    status, printed, said = run_text("call", "--runner", "no-such-runner", "f")
    assert (status, printed) == (1, "")
    assert said.startswith("rrq-fastwire: no free port from ")


@linux
def test_the_cpu_time_of_a_runner_that_already_runs_is_known_if_it_is_on_this_machine():
    target = pytest.importorskip("rrq_fastwire.cli.target", reason="the command line is an extra")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert target.Target("127.0.0.1", port, None).cpu_seconds() > 0
        assert target.Target("example.com", port, None).cpu_seconds() is None
    assert target.Target("127.0.0.1", free_port(), None).cpu_seconds() is None


@linux
def test_a_thread_that_has_just_ended_does_not_hide_the_cpu_time_of_the_others(monkeypatch):
    def with_an_ended_thread(pattern):
        return ["/proc/self/task/0/schedstat", *iglob(pattern)]

    monkeypatch.setattr(runner_process, "iglob", with_an_ended_thread)
    assert runner_process.cpu_seconds(os.getpid()) > 0


@linux
def test_the_process_that_listens_is_found_on_a_machine_without_ipv6(monkeypatch):
    def without_ipv6(path):
        return Path("/no/such/file" if path == "/proc/net/tcp6" else path)

    monkeypatch.setattr(runner_process, "Path", without_ipv6)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert runner_process.listening_pid(server.getsockname()[1]) == os.getpid()
