"""`tap`, as a user sees it: a process between an orchestrator and a runner, on pipes and a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from rrq_fastwire import (
    CancelRequest,
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.client import RunnerClient

pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX's")

pytest.importorskip("click", reason="the command line is an extra")
cell_len = pytest.importorskip("rich.cells", reason="the command line is an extra").cell_len

CAPTURES = Path(__file__).parent / "captures"
COMMAND = [sys.executable, "-m", "rrq_fastwire"]
SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]
RUNNERS = {
    "stock": [sys.executable, "-m", "rrq.runner_runtime", *SETTINGS],
    "ours": [sys.executable, "-m", "rrq_fastwire.runner", *SETTINGS],
}
WAIT_SECONDS = 60

MILLISECONDS = re.compile(r"[\d.]+ ms *")

ENQUEUED = datetime(2024, 1, 1, tzinfo=timezone.utc)


def until(condition):
    """Polls for what is true, and returns it."""
    give_up = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def request(name="echo", request_id="r", job_id="j", params=None, deadline=None) -> bytes:
    context = ExecutionContext(
        job_id=job_id, attempt=1, enqueue_time=ENQUEUED, queue_name="q", deadline=deadline
    )
    return encode_frame(
        ExecutionRequest(
            request_id=request_id,
            job_id=job_id,
            function_name=name,
            params=params or {},
            context=context,
        )
    )


ANSWER = encode_frame(ExecutionOutcome.success("j", "r", {"done": True}))


class Tap:
    """A `tap` process.

    Attributes:
        port: where it listens.
        output: what it has printed so far.
        marker: an environment variable that it and what it starts have.
    """

    def __init__(self, *arguments: str, port: int, stdout: int, prefix=()) -> None:
        self.port = port
        self.marker = f"TAP_UNDER_TEST={uuid.uuid4()}"
        self.output = ""
        self._reader: threading.Thread | None = None
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, "tap", *arguments],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=dict(os.environ, **dict([self.marker.split("=")])),
            start_new_session=True,
        )

    def read(self, descriptor: int | None = None) -> None:
        """Reads what it prints from now on."""
        if descriptor is None:
            descriptor = self.process.stdout.fileno()

        def read():
            # A terminal that was hung up is an error.
            with contextlib.suppress(OSError):
                while data := os.read(descriptor, 65536):
                    self.output += data.decode()

        self._reader = threading.Thread(target=read)
        self._reader.start()

    def says(self, *words: str) -> str:
        """Waits for a line with all the words."""

        def line():
            lines = self.output.split("\n")[:-1]
            return next((one for one in lines if all(word in one for word in words)), None)

        return until(line)

    def ends(self, number: int | None = None) -> int:
        """Sends a signal, if any, and returns the exit status; nothing may be said on stderr."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(WAIT_SECONDS)
        if self._reader is not None:
            self._reader.join(WAIT_SECONDS)
        assert self.process.stderr.read() == b""
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._reader is not None:
            self._reader.join(WAIT_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS)


class Wire(Tap):
    """A `tap --listen --to` in front of a runner that the test plays, like the orchestrator."""

    def __init__(self, *options: str, read=True, stdout=subprocess.PIPE) -> None:
        self.runner = socket.create_server(("127.0.0.1", 0))
        self.runner.settimeout(WAIT_SECONDS)
        port = free_port()
        to = f"127.0.0.1:{self.runner.getsockname()[1]}"
        super().__init__(
            *("--listen", f"127.0.0.1:{port}", "--to", to, *options), port=port, stdout=stdout
        )
        if read:
            self.read()
            self.says("is passed on to")

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """The orchestrator's side and the runner's of a new connection."""
        orchestrator = self.connect()
        runner, _ = self.runner.accept()
        runner.settimeout(WAIT_SECONDS)
        return orchestrator, runner

    def close(self) -> None:
        super().close()
        self.runner.close()


@pytest.fixture
def start():
    """Starts a Wire, or any other Tap; it is closed at the end."""
    with contextlib.ExitStack() as stack:

        def start(*options, kind=Wire, **more):
            tap = kind(*options, **more)
            stack.callback(tap.close)
            return tap

        yield start


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(min(size - len(data), 1 << 20))):
        data += more
    return data


def passes(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    with ThreadPoolExecutor(1) as pool:  # there may be more than sockets hold
        sending = pool.submit(sender.sendall, data)
        assert receive(receiver, len(data)) == data
        sending.result()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# Bytes


def in_random_chunks(connection: socket.socket, data: bytes, seed: int) -> None:
    chance = random.Random(seed)
    view = memoryview(data)
    while view:
        size = chance.choice((1, 3, 1000, 100_000))
        connection.sendall(view[:size])
        view = view[size:]


@pytest.mark.parametrize("seed", range(3))
def test_both_sides_get_the_bytes_that_were_sent_and_a_half_closed_side_goes_on(start, seed):
    chance = random.Random(seed)
    there, back = (chance.randbytes(chance.randrange(3_000_000, 9_000_000)) for _ in range(2))
    orchestrator, runner = start().connection()
    with orchestrator, runner:
        senders = [
            threading.Thread(target=in_random_chunks, args=(orchestrator, there, seed)),
            threading.Thread(target=in_random_chunks, args=(runner, back, seed)),
        ]
        for sender in senders:
            sender.start()
        # Nobody reads the answers before all of the requests are there.
        assert receive(runner, len(there)) == there
        assert receive(orchestrator, len(back)) == back
        for sender in senders:
            sender.join()
        orchestrator.shutdown(socket.SHUT_WR)
        assert runner.recv(1) == b""
        passes(runner, orchestrator, back)
        runner.shutdown(socket.SHUT_WR)
        assert orchestrator.recv(1) == b""


def test_what_is_sent_before_the_runner_is_reached_is_passed_on(start):
    tap = start()
    for number in range(100):
        frame = request(request_id=f"r{number}")
        with tap.connect() as orchestrator:
            orchestrator.sendall(frame)
            orchestrator.shutdown(socket.SHUT_WR)
            runner, _ = tap.runner.accept()
            with runner:
                runner.settimeout(WAIT_SECONDS)
                assert receive(runner, len(frame) + 1) == frame
    tap.ends(signal.SIGTERM)


def test_a_connection_that_ends_at_once_is_passed_on_as_such(start):
    tap = start()
    for _ in range(100):
        tap.connect().close()
        runner, _ = tap.runner.accept()
        with runner:
            runner.settimeout(WAIT_SECONDS)
            assert runner.recv(1) == b""
    tap.ends(signal.SIGTERM)


@pytest.mark.parametrize("by_runner", [False, True])
def test_a_reset_is_passed_on_after_what_was_sent(start, by_runner):
    tap = start()
    pair = tap.connection()
    resetting, other = reversed(pair) if by_runner else pair
    with other:
        passes(other, resetting, b"x" * 10)
        passes(resetting, other, b"\0\0\0" * 1000)
        reset(resetting)
        with pytest.raises(ConnectionResetError):
            other.recv(1)
    tap.says(f"reset by the {'runner' if by_runner else 'other side'}")


def test_a_runner_that_is_not_there_is_a_reset_connection(start):
    tap = start()
    tap.runner.close()
    with pytest.raises(ConnectionResetError), tap.connect() as orchestrator:
        orchestrator.recv(1)
    tap.says("the runner cannot be reached: Connection refused")


def test_a_broken_stream_is_passed_on_and_the_other_direction_is_shown(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request() + b"\0\0\0\0" + request("later"))
        tap.says("#1 -> broken at offset", f" {len(request())}: ")
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", "echo")
        passes(orchestrator, runner, request("later"))
    tap.ends(signal.SIGTERM)
    assert tap.output.count("broken") == 1
    assert "later" not in tap.output


def test_a_stream_that_ends_within_a_frame_is_told(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with runner:
        passes(orchestrator, runner, request()[:-1])
        orchestrator.close()
        tap.says("#1 -> ended within a frame, at offset 0: ")


# What is shown


def test_answers_are_paired_with_the_requests_of_their_own_connection(start):
    tap = start()
    (one, runner_one), (two, runner_two) = tap.connection(), tap.connection()
    with one, two, runner_one, runner_two:
        passes(one, runner_one, request("first", params={"a": "naïve ☠"}))
        passes(two, runner_two, request("second", job_id="k") + request("other", "r2"))
        passes(runner_two, two, encode_frame(ExecutionOutcome.success("k", "r", {"a": 1})))
        assert MILLISECONDS.sub("TIME  ", tap.says("<- success").rstrip()[14:]) == (
            '<- success  k         TIME  second   {"a":1}'
        )
        passes(runner_one, one, ANSWER)
        tap.says("<- success", "j  ", "ms", "first", '{"done":true}')
    tap.says("-> first", "j  ", "attempt 1", '{"a":"naïve ☠"}')
    tap.says("waiting", "j  ", "other", "never answered")


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (ExecutionOutcome.failure("j", "r", "no"), "error", "no"),
        (ExecutionOutcome.failure("j", "r", "Runner busy"), "error", "Runner busy"),
        (ExecutionOutcome.cancelled("j", "r"), "error", "(cancelled) Job cancelled"),
        (ExecutionOutcome.handler_not_found("j", "r", "no"), "error", "(handler_not_found) no"),
        (ExecutionOutcome.timeout("j", "r", "late"), "timeout", "late"),
        (ExecutionOutcome.retry_after("j", "r", "later", 1), "retry", "in 1.0 s: later"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_outcome_other_than_success_is_shown_with_its_reason_and_counted(
    start, outcome, status, reason
):
    tap = start("--only-errors")
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("good") + request("bad", "other"))
        passes(runner, orchestrator, ANSWER)
        outcome.request_id = "other"
        passes(runner, orchestrator, encode_frame(outcome))
        assert tap.says(f"<- {status}", "bad").endswith(f" {reason}")
        tap.says("-> bad")
    assert tap.ends(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "<- success" not in tap.output
    assert "-> good" not in tap.output
    assert re.search(r"^ good +1 +0 +0 ", tap.output, re.MULTILINE)
    assert re.search(r"^ bad +1 +1 +0 ", tap.output, re.MULTILINE)


def test_on_a_terminal_of_80_columns_messages_are_aligned_and_nothing_wraps(start, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    ids = ["b916cd1f-7f1c-4b6e-a1d3-0f5b9a3a1c11", "0c1d5bbe-2d0c-4d43-a2d8-3b7d1f3c9a10"]
    tap = on_a_terminal(start)
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        for number, name in enumerate(["echo", "a_function_with_a_long_name"]):
            params = {"to": "someone@example.com", "text": "量子" * 100}
            passes(orchestrator, runner, request(name, f"r{number}", ids[number], params))
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success(ids[0], "r0", params)))
        passes(
            runner, orchestrator, encode_frame(ExecutionOutcome.failure(ids[1], "r1", "no" * 99))
        )
        passes(orchestrator, runner, encode_frame(CancelRequest(job_id=ids[0])))
        tap.says("cancel")
        passes(orchestrator, runner, b"\0\0\0\0")
        tap.says("broken")
    tap.ends(signal.SIGTERM)
    shown = re.sub("\x1b\\[[0-9;]*m|\r", "", tap.output).splitlines()
    assert max(map(cell_len, shown)) <= 80
    messages = [line[14:] for line in shown if re.match("[\\d:.]{12}  (->|<-)", line)]
    assert [line.split()[:3] for line in messages] == [
        ["->", "echo", "b916cd1f"],
        ["->", "a_functio…", "0c1d5bbe"],
        ["<-", "success", "b916cd1f"],
        ["<-", "error", "0c1d5bbe"],
        ["->", "cancel", "b916cd1f"],
    ]
    assert messages[2].index("b916cd1f") == messages[1].index("0c1d5bbe")
    assert {line.index('{"to"') for line in (messages[1], messages[2])} == {
        messages[3].index("nono")
    }


def test_verbose_prints_whole_payloads_below(start):
    tap = start("--verbose", "--redact", "card")
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request(params={"card": "4111", "list": [1, {}]}))
        tap.says('        "queue_name": "q"')
        passes(runner, orchestrator, ANSWER)
        tap.says('        "done": true')
    lines = tap.output.splitlines()
    at = lines.index('      "params": {')
    assert lines[at + 1 : at + 6] == [
        '        "card": "***",',
        '        "list": [',
        "          1,",
        "          {}",
        "        ]",
    ]
    assert "4111" not in tap.output


def test_an_overdue_answer_is_announced_once_before_the_deadline(start):
    tap = start()
    orchestrator, runner = tap.connection()
    due = datetime.now(timezone.utc) + timedelta(seconds=2)
    with orchestrator, runner:
        passes(orchestrator, runner, request("hangs", deadline=due) + request("other", "r2"))
        tap.says("waiting", "j  ", "hangs", "deadline in", "no answer yet")
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", "hangs")
    assert tap.output.count("no answer yet") == 1


def test_cancels_name_what_they_cancel(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("one", "r1") + request("two", "r2"))
        for cancel, said in (
            (CancelRequest(job_id="j", request_id="r2"), ["cancels two after"]),
            (CancelRequest(job_id="j"), ["cancels one after", ", two after"]),
            (CancelRequest(job_id="other"), ["cancels nothing in flight"]),
            (CancelRequest(job_id="j", request_id="r3"), ["cancels nothing in flight"]),
        ):
            canceller, cancelled = tap.connection()
            with canceller, cancelled:
                passes(canceller, cancelled, encode_frame(cancel))
                tap.says("-> cancel", *said)


def test_an_answer_to_nothing_is_told(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", 'answers no request: {"done":true}')


def test_an_invalid_message_is_told_and_the_next_one_is_shown(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, pack_frame(b'{"type":"cancel","payload":{"job_id":7}}'))
        passes(orchestrator, runner, request())
        tap.says("-> invalid", "payload.job_id: expected a string, got 7")
        tap.says("-> echo")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_was_never_answered_and_a_table(start, number):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("hangs") + request("echo", "r2"))
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "r2")))
        tap.says("<- success", "echo")
        assert tap.ends(number) == 128 + number
        tap.says("waiting", "j  ", "hangs", "never answered")
        assert re.search(r"^ hangs +1 +0 +1 +- +- +- +- +\d+ B +0 B", tap.output, re.MULTILINE)
        milliseconds = r" +[\d.]+" * 4
        assert re.search(rf"^ echo +1 +0 +0{milliseconds} +\d+ B +\d+ B", tap.output, re.MULTILINE)
        assert orchestrator.recv(1) == runner.recv(1) == b""


@pytest.mark.parametrize("option", [["--only-errors"], ["--slow", "60000"]])
def test_a_request_that_is_never_answered_is_shown_with_its_params_whatever_is_left_out(
    start, option
):
    tap = start(*option)
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("hangs", params={"customer": 4711}))
    tap.says("never answered", "hangs")
    tap.ends(signal.SIGTERM)
    assert '{"customer":4711}' in tap.output


def test_only_slow_requests_are_shown(start):
    tap = start("--slow", "500")
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("slow", "r1"))
        time.sleep(0.51)
        passes(orchestrator, runner, request("quick") + encode_frame(CancelRequest(job_id="j")))
        passes(runner, orchestrator, ANSWER)
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "r1")))
        tap.says("-> slow")
        tap.says("<- success", "slow")
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "unknown")))
        tap.says("answers no request")
    assert "cancel" not in tap.output
    assert "-> quick" not in tap.output


def test_a_payload_of_a_megabyte_is_named_and_not_shown(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request(params={"a": "x" * 1_000_000}))
        tap.says("-> echo", "1.0 MB, too long to show")
    assert "xxx" not in tap.output


def test_a_payload_that_is_nested_deep_is_no_obstacle_to_the_next_one(start):
    """How deep json can read depends on the version of Python: what is beyond that is named."""
    tap = start("--redact", "x")
    orchestrator, runner = tap.connection()
    nested = b'{"type":"response","payload":{"status":"success","result":%s}}'
    with orchestrator, runner:
        passes(runner, orchestrator, pack_frame(nested % (b"[" * 1000 + b"]" * 1000)))
        passes(orchestrator, runner, request())
        tap.says("-> echo")
    assert "nested too deep to show" in tap.output or "[" * 1000 in tap.output


def test_values_are_redacted_everywhere(start):
    tap = start("--redact", "card,params")
    orchestrator, runner = tap.connection()
    result = {"list": [{"card": "secret"}], "fine": 1}
    with orchestrator, runner:
        passes(orchestrator, runner, request(params={"any": "secret"}))
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "r", result)))
        wrong = json.loads(request()[4:])
        wrong["payload"]["params"] = "secret"
        passes(orchestrator, runner, pack_frame(json.dumps(wrong).encode()))
        tap.says("invalid", "payload.params")
    assert tap.ends(signal.SIGTERM)
    assert re.search(r'-> echo +j +attempt 1 +"\*\*\*"$', tap.output, re.MULTILINE)
    assert '{"list":[{"card":"***"}],"fine":1}' in tap.output
    assert "secret" not in tap.output


def test_names_cannot_write_to_the_terminal_nor_begin_lines(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("a\x1b[2Jb\nc"))
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", "a\\x1b[2Jb\\nc")
    tap.ends(signal.SIGTERM)
    assert re.search(r"^ a\\x1b\[2Jb\\nc +1 ", tap.output, re.MULTILINE)


# Captures


@pytest.mark.parametrize("name", ["mixed", "odd-results"])
def test_recorded_captures_are_what_passed(start, tmp_path, name):
    there, back = ((CAPTURES / f"{name}.{side}-runner.bin").read_bytes() for side in ("to", "from"))
    tap = start("--record", str(tmp_path / "new" / "folder"))
    for _ in range(2):
        orchestrator, runner = tap.connection()
        with orchestrator, runner:
            passes(orchestrator, runner, there)
            passes(runner, orchestrator, back)
    with tap.connect():  # as the readiness probe, of which nothing is kept
        tap.runner.accept()[0].close()
    tap.ends(signal.SIGTERM)
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [re.sub(r"^\d{8}T\d{6}-\d+", "", file.name) for file in files] == [
        "-1.from-runner.bin",
        "-1.to-runner.bin",
        "-2.from-runner.bin",
        "-2.to-runner.bin",
    ]
    assert [file.read_bytes() for file in files] == [back, there] * 2
    decoded = subprocess.run(
        [*COMMAND, "decode", *files], capture_output=True, text=True, check=True
    )
    assert decoded.stdout.count("-> ") > 0


def test_captures_are_written_as_bytes_come(start, tmp_path):
    tap = start("--record", str(tmp_path))
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request()[:7])
        until(lambda: [file.read_bytes() for file in tmp_path.iterdir()] == [request()[:7]])


# Where it prints to


def test_what_nobody_reads_holds_up_nothing(start):
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
    tap.says("messages skipped: output too slow")
    tap.ends(signal.SIGTERM)
    assert re.search(r"^ echo +3,000 +0 +0 ", tap.output, re.MULTILINE)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_closed_pipe_ends_it_quietly(start):
    tap = start(read=False)
    assert b"is passed on to" in tap.process.stdout.readline()
    tap.process.stdout.close()
    tap.process.stdout = None
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request())
        assert tap.ends() == 1


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


def on_a_terminal(start, *options: str) -> Wire:
    terminal, end = pty.openpty()
    tap = start(*options, read=False, stdout=end)
    os.close(end)
    tap.read(terminal)
    tap.says("is passed on to")
    return tap


# Wrong command lines


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
        (["--wrap", "--", "rrq-runner", "--settings", "x"], "--tcp-socket HOST:PORT after it"),
        (["--wrap", "--", "--tcp-socket", "127.0.0.1:1"], "--wrap needs a runner"),
        (["--wrap", "--", "rrq-runner", "--tcp-socket", "1.2.3.4:5"], "loopback-only"),
        (["--wrap", "--to", "127.0.0.1:1", "--", "x", "--tcp-socket", "127.0.0.1:1"], "--wrap takes"),
        (["--slow", "-1"], "--slow"),
        (["--record", "/dev/null/x", "--listen", "127.0.0.1:1", "--to", "127.0.0.1:1"], "cannot make"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_gets_one_sentence(arguments, said):
    done = subprocess.run(
        [*COMMAND, "tap", *arguments], capture_output=True, text=True, check=False
    )
    (message,) = done.stderr.splitlines()
    assert said in message
    assert (done.stdout, done.returncode) == ("", 2)


def test_what_cannot_be_listened_on_or_started_gets_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        for arguments, said in (
            (["--live", "--listen", listen, "--to", "127.0.0.1:1"], "cannot listen on 127.0.0.1"),
            (["--wrap", *RUNNERS["ours"], "--tcp-socket", listen], "cannot listen on 127.0.0.1"),
            (["--wrap", "no-such-runner", "--tcp-socket", listen], "cannot start 'no-such-runner'"),
        ):
            done = subprocess.run(
                [*COMMAND, "tap", *arguments], capture_output=True, text=True, check=False
            )
            (message,) = done.stderr.splitlines()
            assert said in message
            assert (done.stdout, done.returncode) == ("", 1)


# --wrap


class Wrap(Tap):
    def __init__(self, *command: str, **more) -> None:
        port = free_port()
        arguments = ["--wrap", "--", *command, "--tcp-socket", f"127.0.0.1:{port}"]
        super().__init__(*arguments, port=port, stdout=subprocess.PIPE, **more)
        self.read()

    def left(self) -> list[int]:
        """What runs of it and of all that it has started."""
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


def test_lines_of_two_wrapped_runners_name_their_processes(start):
    for _ in range(2):
        tap = start(*RUNNERS["ours"], kind=Wrap)
        process = str(tap.process.pid)
        until(lambda port=tap.port: can_connect(port))
        assert asyncio.run(outcome(tap.port, "echo", {"a": 1})).result == {"a": 1}
        tap.says("is passed on to", process)
        tap.says(process, "-> echo")
        tap.says(process, "<- success", "echo")


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_reaches_the_runner_once_and_its_last_answers_are_passed_on(start, whole_group):
    tap = start(*RUNNERS["ours"], kind=Wrap)
    until(lambda: can_connect(tap.port))
    with tap.connect() as orchestrator:
        orchestrator.sendall(request("sleep", params={"seconds": WAIT_SECONDS}))
        tap.says("-> sleep")
        # The orchestrator signals the group; a second signal would end the runner at once.
        (os.killpg if whole_group else os.kill)(tap.process.pid, signal.SIGTERM)
        answer = b""
        while data := orchestrator.recv(65536):
            answer += data
    assert b"Job cancelled" in answer
    assert tap.ends() == 0
    tap.says("<- error", "sleep", "cancelled")


def test_its_own_exit_status_is_passed_on(start):
    tap = start(sys.executable, "-c", "import sys; print('hello'); sys.exit(7)", kind=Wrap)
    assert tap.ends() == 7
    assert tap.output == "hello\n"


def test_it_listens_once_the_runner_does(start, tmp_path):
    code = (
        "import sys, time, pathlib; from rrq_fastwire.runner import main\n"
        "while not pathlib.Path(sys.argv.pop(1)).exists(): time.sleep(0.01)\n"
        "main()"
    )
    code = code.replace("sys.argv.pop(1)", "sys.argv[1]").replace("main()", "main(sys.argv[2:])")
    go = tmp_path / "go"
    tap = start(sys.executable, "-c", code, str(go), *SETTINGS, kind=Wrap)
    if sys.platform == "linux":
        until(lambda: len(tap.left()) == 3)  # tap, the runner, and what keeps it
    assert not can_connect(tap.port)
    go.touch()
    until(lambda: can_connect(tap.port))
    assert asyncio.run(outcome(tap.port, "echo", {"a": 1})).result == {"a": 1}
    assert tap.ends(signal.SIGTERM) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="what is left is known from /proc")
@pytest.mark.parametrize("runner", RUNNERS)
def test_nothing_is_left_of_a_tap_that_is_killed(start, runner):
    tap = start(*RUNNERS[runner], kind=Wrap)
    until(lambda: can_connect(tap.port))
    os.killpg(tap.process.pid, signal.SIGKILL)
    until(lambda: not tap.left())


@pytest.mark.skipif(sys.platform != "linux", reason="what is left is known from /proc")
@pytest.mark.parametrize("runner", RUNNERS)
def test_nothing_is_left_when_its_parent_goes_away(start, runner):
    parent = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    tap = start(*RUNNERS[runner], kind=Wrap, prefix=parent)
    until(lambda: can_connect(tap.port))
    assert len(tap.left()) == 4
    tap.process.kill()
    until(lambda: not tap.left())


def test_help_has_an_example_and_says_what_is_not_redacted():
    done = subprocess.run([*COMMAND, "tap", "--help"], capture_output=True, text=True, check=True)
    assert "Example: rrq-fastwire tap" in done.stdout
    assert "--redact hides nothing there" in " ".join(done.stdout.split())
    assert "POSIX" in done.stdout
