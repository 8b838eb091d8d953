"""Inputs and outputs that are closed, full or unreadable, and inputs that arrive slowly."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rrq_fastwire import CancelRequest, ExecutionOutcome, encode_frame

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")

CAPTURE = str(Path(__file__).parents[1] / "captures" / "cancel.to-runner.bin")
COMMAND = [sys.executable, "-m", "rrq_fastwire"]
LINE = b'{"type":"cancel","payload":{"job_id":"j"}}'
UNREADABLE = "/proc/self/mem"  # its first page cannot be read

needs_unreadable = pytest.mark.skipif(
    not os.path.exists(UNREADABLE), reason="only Linux has a file that cannot be read"
)
needs_shell = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


@pytest.fixture
def buffered(monkeypatch):
    """Python buffers the outputs of commands, as it does unless it is told not to."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def shell(arguments: list[str], redirection: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", "-c", f"exec {shlex.join([*COMMAND, *arguments])} {redirection}"],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        text=True,
        timeout=60,
        check=False,
    )


@needs_unreadable
@pytest.mark.usefixtures("buffered")
def test_a_file_that_cannot_be_read_is_named_after_the_messages_before_it():
    done = shell(["decode", "--json", CAPTURE, UNREADABLE, CAPTURE], "2>&1")
    *lines, last = done.stdout.splitlines()
    middle = len(lines) // 2
    assert lines.pop(middle) == f"{UNREADABLE}: cannot be read: Input/output error"
    assert [line[:9] for line in (*lines, last)] == ['{"offset"'] * (2 * middle)
    assert done.returncode == 1


@needs_unreadable
def test_lines_that_cannot_be_read_get_a_sentence_that_names_the_file():
    done = shell(["encode", UNREADABLE], "")
    assert done.stderr == f"rrq-fastwire: {UNREADABLE}: cannot be read: Input/output error\n"
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.usefixtures("buffered")
def test_an_error_of_the_system_does_not_discard_what_was_printed_before():
    code = (
        "import sys; from rrq_fastwire.cli import info, main\n"
        "def run(): print('before'); raise OSError(5, 'broken')\n"
        "info.run = run; sys.exit(main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "before\n")
    assert done.stderr == "rrq-fastwire: [Errno 5] broken\n"


@needs_shell
@pytest.mark.parametrize("arguments", [["decode", "-"], ["encode"]])
def test_a_closed_stdin_gets_one_sentence(arguments):
    done = shell(arguments, "<&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input is closed" in done.stderr
    assert done.stderr.count("\n") == 1


@needs_shell
def test_a_closed_stderr_does_not_matter():
    closed, opened = shell(["decode", CAPTURE], "2>&-"), shell(["decode", CAPTURE], "")
    assert (closed.returncode, closed.stdout) == (0, opened.stdout)


def ping_on_full_disk(*arguments: str) -> tuple[int, str]:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "ping", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.usefixtures("buffered")
def test_ping_says_that_its_output_cannot_be_written():
    def answer():
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(encode_frame(ExecutionOutcome.failure("ping", "ping", "no")))

    full = (1, "rrq-fastwire: [Errno 28] No space left on device\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        assert ping_on_full_disk(f"127.0.0.1:{server.getsockname()[1]}") == full
        thread.join()
    assert ping_on_full_disk("--help") == full


def test_a_message_is_shown_as_soon_as_it_has_arrived():
    with subprocess.Popen(
        [*COMMAND, "decode", "--json", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdin.write(encode_frame(CancelRequest(job_id="j")))
        process.stdin.flush()
        assert b'"type":"cancel"' in process.stdout.readline()
        process.stdin.close()
    assert process.returncode == 0


def test_a_line_that_is_nested_too_deep_gets_a_sentence():
    deep = b'{"type":"cancel","payload":' + b"[" * 10**6 + b"]" * 10**6 + b"}"
    done = subprocess.run(
        [*COMMAND, "encode"],
        input=LINE + b"\n" + deep,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"line 2: nested too deep to read\n")
    assert b'"job_id":"j"' in done.stdout


@pytest.mark.parametrize("width", ["0", "00", ""])
def test_a_width_of_0_columns_is_taken_as_not_known(width):
    def decode(**environment: str) -> bytes:
        return subprocess.run(
            [*COMMAND, "decode", CAPTURE],
            capture_output=True,
            env=os.environ | environment,
            timeout=60,
            check=True,
        ).stdout

    assert decode(COLUMNS=width) == decode(COLUMNS="80") != b""
