"""rrq-fastwire-runner exits when its parent process ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ..commands import PATIENCE, FullPipe, Orphan, until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the parent is watched on POSIX only")


@pytest.mark.parametrize("function_name", [None, "wait", "swallow", "block", "wait_for_thread"])
def test_a_runner_exits_when_its_parent_ends(command, function_name):
    with Orphan(command, "--grace", "600") as runner:
        command.serving(runner.port, lambda: runner.parent.poll() is None)
        if function_name is not None:
            command.begin(runner.port, function_name)
        start = time.monotonic()
        runner.lose_parent()
        assert runner.gone(PATIENCE)
        print(f"ended {time.monotonic() - start:.2f} s after its parent")


def test_a_runner_exits_when_its_parent_ends_during_the_import_of_the_settings(command):
    with Orphan(command, settings="hangs.handlers") as runner:
        until((command.folder / "hangs").exists, "the settings are imported")
        runner.lose_parent()
        assert runner.gone(PATIENCE)


def test_no_parent_watch_keeps_the_runner_alive(command):
    with Orphan(command, "--no-parent-watch") as runner:
        command.serving(runner.port, lambda: runner.parent.poll() is None)
        peer = command.begin(runner.port, "outlive_parent")
        runner.lose_parent()
        assert peer.receive().result == "still here"
        os.kill(runner.pid, signal.SIGTERM)
        assert runner.gone(PATIENCE)


@pytest.mark.parametrize("milliseconds", range(0, 400, 25))
def test_a_runner_exits_when_its_parent_ends_during_the_start(command, milliseconds):
    with Orphan(command) as runner:
        time.sleep(milliseconds / 1000)
        runner.lose_parent()
        assert runner.gone(PATIENCE)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only on Linux, a runner knows its parent by the session"
)
def test_a_runner_exits_if_its_parent_ended_before_the_start(command):
    parent_is_gone = command.folder / "parent is gone"
    line = [
        "/bin/sh",
        "-c",
        f'until test -e "{parent_is_gone}"; do sleep 0.01; done; exec "$@"',
        "sh",
    ]
    with Orphan(command, before=line) as runner:
        runner.lose_parent()
        parent_is_gone.touch()
        assert runner.gone(PATIENCE)


def test_a_runner_whose_parent_is_in_another_pid_namespace_runs(command):
    """A container's first process is its process 1, whose parent has the id 0."""
    before = ["unshare", "--user", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("unshare cannot make a PID namespace here")
    runner = command.start(before=before)
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"


def test_a_runner_exits_when_its_parent_ends_although_its_output_is_a_full_pipe(command):
    with FullPipe() as pipe, Orphan(command, settings="logs.handlers", stderr=pipe) as runner:
        command.serving(runner.port, lambda: runner.parent.poll() is None)
        command.begin(runner.port, "log")
        runner.lose_parent()
        assert runner.gone(PATIENCE)
