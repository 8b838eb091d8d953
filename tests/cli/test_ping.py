"""`ping` as a health check: with working runners, blocked runners, and other servers."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from rrq_fastwire import ExecutionOutcome, encode_frame
from rrq_fastwire.cli.ping import ping

from ..commands import OURS, STOCK, Command, free_port
from .in_process import run_text

COMMAND = [sys.executable, "-m", "rrq_fastwire", "ping"]


@pytest.fixture
def command(tmp_path):
    command = Command(tmp_path)
    yield command
    command.close()


def run(*arguments):
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", [OURS, STOCK])
def test_a_runner_that_answers_gives_status_0(command, module):
    if module == STOCK:
        pytest.importorskip("rrq", reason="rrq is not installed")
    settings = "app.handlers" if module == OURS else "app.settings"
    runner = command.start(settings=settings, module=module)
    status, out, err = run(f"127.0.0.1:{runner.port}")
    assert (status, err) == (0, "")
    assert out.startswith(f"127.0.0.1:{runner.port} answered in ")
    assert runner.errors() == ""  # a ping leaves nothing in the runner's log


def test_ping_is_answered_while_a_job_runs(command):
    runner = command.start()
    command.begin(runner.port, "wait")
    assert ping("127.0.0.1", runner.port, 10) > 0


def test_a_handler_that_blocks_gives_status_1(command):
    runner = command.start()
    command.begin(runner.port, "block")
    status, out, err = run(f"127.0.0.1:{runner.port}", "--timeout", "0.3")
    assert (status, out) == (1, "")
    assert err == (
        f"rrq-fastwire: 127.0.0.1:{runner.port}: no answer within 0.3 s:"
        " is its event loop blocked by a handler?\n"
    )


def test_no_runner_gives_status_1():
    status, out, err = run(f"127.0.0.1:{free_port()}")
    assert (status, out) == (1, "")
    assert "Connection refused" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "this is not RRQ's protocol"),
        (b"\0\0\0\2{}", "this is not RRQ's protocol"),
        (b"", "the connection was closed"),
    ],
)
def test_another_server_gives_status_1(answer, said):
    def serve():
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        status, out, err = run(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert (status, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1


OTHER = encode_frame(ExecutionOutcome.success("j", "r"))
PONG = encode_frame(ExecutionOutcome.failure("ping", "ping", "Unsupported protocol version"))


def pinged(serve, timeout):
    """Pings a server that calls serve() with the connection, once the ping has arrived."""

    def accept():
        connection, _ = server.accept()
        with connection:
            assert connection.recv(65536)
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            return ping("127.0.0.1", server.getsockname()[1], timeout)
        finally:
            thread.join()


def test_the_answer_is_found_in_pieces_and_after_other_messages():
    def serve(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in OTHER + PONG:
            connection.sendall(bytes([byte]))

    assert pinged(serve, 60) > 0


def test_other_messages_do_not_extend_the_time_limit(monkeypatch):
    def serve(connection):
        connection.sendall(OTHER)
        connection.recv(1)  # waits for the end of the connection

    # The times of the start, of waiting for OTHER, and of waiting for the next message.
    clock = SimpleNamespace(monotonic=iter([0, 1, 600]).__next__)
    monkeypatch.setattr("rrq_fastwire.cli.ping.time", clock)
    with pytest.raises(TimeoutError):
        pinged(serve, 600)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: HOST:PORT"),
        (["9000"], "expected HOST:PORT with a port from 1 to 65535, got '9000'"),
        (["127.0.0.1:0"], "expected HOST:PORT with a port from 1 to 65535, got '127.0.0.1:0'"),
        (["[::1]:x"], "expected HOST:PORT with a port from 1 to 65535, got '[::1]:x'"),
        (["127.0.0.1:9", "--timeout", "0"], "must be more than 0, got '0'"),
        (["127.0.0.1:9", "--timeout", "soon"], "must be a number from 0 to 3600, got 'soon'"),
        (["127.0.0.1:9", "more"], "unrecognized arguments: more"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(arguments, said):
    status, out, err = run_text("ping", *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("rrq-fastwire: ")
    assert err.count("\n") == 1


def test_ping_needs_no_extra(command):
    runner = command.start()
    for module in ("click", "rich"):
        (command.folder / f"{module}.py").write_text("raise ImportError")
    done = subprocess.run(
        [*COMMAND, f"127.0.0.1:{runner.port}"],
        env=command.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_of_all_commands_names_ping():
    pytest.importorskip("click", reason="the other commands are an extra")
    done = subprocess.run(
        [*COMMAND[:-1], "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "  ping " in done.stdout
