"""The command line as a whole: closed outputs, Ctrl-C, and commands that need other packages."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys

import pytest

from rrq_fastwire import CancelRequest, encode_frame

from ..stock import needs_rrq
from .in_process import run_text

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")

COMMAND = [sys.executable, "-m", "rrq_fastwire"]
SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_command_works_without_stdout():
    line = f"exec {shlex.join([*COMMAND, 'info'])} >&-"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_output_that_is_written_only_at_the_end_to_a_closed_pipe_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [*COMMAND, "info"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently on Windows")
def test_ctrl_c_ends_a_command_that_waits_for_input_and_prints_nothing(tmp_path):
    capture = tmp_path / "capture"
    capture.write_bytes(encode_frame(CancelRequest(job_id="j")))
    with subprocess.Popen(
        [*COMMAND, "decode", "--json", str(capture), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert b'"type":"cancel"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently on Windows")
def test_ctrl_c_ends_a_ping_that_waits_for_its_answer_and_prints_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            [*COMMAND, "ping", address, "--timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1)
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130


@needs_rrq
def test_the_runner_is_also_a_command():
    runner = shlex.join([*COMMAND, "runner", *SETTINGS])
    done = subprocess.run(
        [*COMMAND, "call", "--runner", runner, "echo", "a=1"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b'{"a":1}\n', b"")


def test_the_help_does_not_import_rrq_and_pydantic():
    """They take more time than everything else that it imports."""
    code = (
        "import sys; from rrq_fastwire.cli import main; main(['--help'])\n"
        "sys.exit(' '.join(sorted({'rrq', 'pydantic'} & sys.modules.keys())) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert "  tap " in done.stdout


def test_the_help_of_the_runner_command_is_that_of_the_runner():
    status, printed, said = run_text("runner", "--help")
    assert (status, said) == (0, "")
    assert "--settings" in printed
    assert "--tcp-socket" in printed


@needs_rrq
def test_a_runner_that_the_demo_cannot_start_gets_one_sentence(monkeypatch):
    monkeypatch.setattr("rrq_fastwire.cli.demo._SETTINGS", ["--nonsense"])
    status, printed, said = run_text("demo")
    assert (status, printed) == (1, "")
    assert said.splitlines()[-1] == (
        "rrq-fastwire: the runner ended with exit status 2 before it listened"
    )
    assert "Traceback" not in said


@pytest.mark.parametrize("missing", ["rrq.runner_runtime", "rich.table"])
def test_the_demo_says_which_packages_it_needs(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    status, printed, said = run_text("demo")
    assert (status, printed) == (1, "")
    assert said.startswith(
        "rrq-fastwire: the demo needs other packages: pip install rrq 'rrq-fastwire[cli]' ("
    )
    assert said.count("\n") == 1
