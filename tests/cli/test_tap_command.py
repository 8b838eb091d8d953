"""The command line of `tap`, its output to pipes and terminals, and its end."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    encode_frame,
)
from rrq_fastwire.cli import main

from ..commands import FullPipe, free_port
from ..stock import needs_rrq
from ..taps import (
    ANSWER,
    COMMAND,
    RUNNERS,
    WAIT_SECONDS,
    Tap,
    can_connect,
    on_a_terminal,
    passes,
    request,
    until,
)
from .in_process import run_text

pytest.importorskip("pty", reason="pseudo-terminals need POSIX")
pytest.importorskip("click", reason="the command line is an extra")
pytest.importorskip("rich", reason="the command line is an extra")


def test_output_that_is_not_read_delays_no_message(start):
    tap = start("--redact", "x", read=False)
    until(lambda: can_connect(tap.port))
    tap.runner.accept()[0].close()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        for number in range(3000):
            passes(orchestrator, runner, request("echo", f"r{number}", params={"a": "x" * 100}))
            answer = ExecutionOutcome.success("j", f"r{number}")
            passes(runner, orchestrator, encode_frame(answer))
    tap.read()
    tap.says("messages skipped: more than can be printed")
    tap.ends(signal.SIGTERM)
    assert re.search(r"^ echo +3,000 +0 +0 ", tap.output, re.MULTILINE)


PRINTING_ENDS_SOON = """
import sys
from rrq_fastwire.cli import main
from rrq_fastwire.cli.tap import printer
printer._PRINT_SECONDS = 0.5
sys.exit(main(sys.argv[4:]))  # after the words of `python -m rrq_fastwire`
"""


def test_output_that_is_not_read_does_not_keep_the_command_from_ending(start, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # unbuffered output needs no lock
    port = free_port()
    options = ["--listen", f"127.0.0.1:{port}", "--to", "127.0.0.1:1"]
    prefix = [sys.executable, "-c", PRINTING_ENDS_SOON]
    with FullPipe() as pipe:
        tap = start(*options, kind=Tap, port=port, stdout=pipe, prefix=prefix)
        until(lambda: can_connect(port))
        assert tap.ends(signal.SIGTERM) == 128 + signal.SIGTERM


def test_stdout_can_be_any_object_that_text_can_be_written_to(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken, redirect_stdout(io.StringIO()):
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        status = main(["tap", "--listen", listen, "--to", "127.0.0.1:1"])
    assert status == 1
    assert "cannot listen on" in capfd.readouterr().err


def test_a_closed_pipe_ends_the_command_quietly(start):
    tap = start(read=False)
    assert b"is passed on to" in tap.process.stdout.readline()
    tap.process.stdout.close()
    tap.process.stdout = None
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request())
        assert tap.ends() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_ends_the_command_with_one_sentence(start, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        tap = start(read=False, stdout=full)
    assert tap.process.wait(WAIT_SECONDS) == 1
    assert tap.process.stderr.read() == b"rrq-fastwire: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_shows_colours(start, monkeypatch, environment, coloured):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tap = on_a_terminal(start)
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request())
        passes(runner, orchestrator, ANSWER)
        tap.says("success", "echo")
    tap.ends(signal.SIGINT)
    assert ("\x1b[1;34mecho" in tap.output) == coloured
    assert ("\x1b[32msuccess" in tap.output) == coloured


def test_live_shows_a_table_and_no_messages(start, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    tap = on_a_terminal(start, "--live")
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request() + request("hangs", "r2"))
        passes(runner, orchestrator, ANSWER)
        until(lambda: re.search(r" echo +1 +0 +0 ", tap.output))
        passes(orchestrator, runner, request())
        until(lambda: re.search(r" echo +2 +0 +1 ", tap.output))
    tap.says("hangs", "never answered")
    assert tap.ends(signal.SIGINT) == 128 + signal.SIGINT
    assert "-> echo" not in tap.output
    assert "<- success" not in tap.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --listen and --to, or --wrap and a runner"),
        (["--to", "127.0.0.1:1"], "give --listen and --to"),
        (["--listen", "x", "--to", "127.0.0.1:1"], "TCP socket must be in host:port format"),
        (["--listen", "1.2.3.4:5", "--to", "127.0.0.1:1"], "loopback-only"),
        (["--listen", "127.0.0.1:1", "--to", "127.0.0.1"], "expected HOST:PORT"),
        (["--listen", "127.0.0.1:1", "--to", "127.0.0.1:1", "x"], "unexpected argument 'x'; use --wrap"),
        (["--wrap"], "--wrap needs a runner"),
        (["--wrap", "--", "rrq-runner", "--settings", "x"], "--tcp-socket HOST:PORT last"),
        (["--wrap", "--", "--tcp-socket", "127.0.0.1:1"], "--wrap needs a runner"),
        (["--wrap", "--", "rrq-runner", "--tcp-socket", "1.2.3.4:5"], "loopback-only"),
        (["--wrap", "--to", "127.0.0.1:1", "--", "x", "--tcp-socket", "127.0.0.1:1"], "--wrap takes"),
        (["--slow", "-1"], "--slow"),
        (["--slow", "nan"], "is not from 0 to 10,000,000"),
        (["--record", "/dev/null/x", "--listen", "127.0.0.1:1", "--to", "127.0.0.1:2"], "cannot make"),
        (["--listen", "127.0.0.1:1", "--to", "127.0.0.1:1"], "--listen and --to are the same address"),
        (["--listen", "localhost:1", "--to", "localhost:1"], "--listen and --to are the same address"),
        (["--listen", "[::1]:1", "--to", "[::1]:1"], "--listen and --to are the same address"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_gets_one_sentence(arguments, said):
    status, printed, written = run_text("tap", *arguments)
    (message,) = written.splitlines()
    assert said in message
    assert (printed, status) == ("", 2)


@needs_rrq
def test_a_port_in_use_or_a_missing_runner_gets_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        in_use = (
            f"cannot listen on {listen}: Address already in use; choose another address, or stop"
            " what listens there"
        )
        for arguments, said in (
            (["--live", "--listen", listen, "--to", "127.0.0.1:1"], in_use),
            (["--wrap", *RUNNERS["ours"], "--tcp-socket", listen], in_use),
            (["--wrap", "no-such-runner", "--tcp-socket", listen], "cannot start 'no-such-runner'"),
        ):
            done = subprocess.run(
                [*COMMAND, "tap", *arguments], capture_output=True, text=True, check=False
            )
            (message,) = done.stderr.splitlines()
            assert said in message
            assert (done.stdout, done.returncode) == ("", 1)


def test_help_has_an_example_and_names_what_is_not_redacted_or_not_shown():
    done = subprocess.run([*COMMAND, "tap", "--help"], capture_output=True, text=True, check=True)
    assert "Example: rrq-fastwire tap" in done.stdout
    assert "--redact hides nothing there" in " ".join(done.stdout.split())
    assert "POSIX" in done.stdout
    assert "while more arrive than tap can print" in " ".join(done.stdout.split())
