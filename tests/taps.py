"""Runs `tap` as a process. The tests play the orchestrator, and often the runner too."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

from rrq_fastwire import (
    ExecutionOutcome,
    encode_frame,
)
from rrq_fastwire.cli.runner_process import free_port

from .commands import kill
from .requests import new_request

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
    """Waits until a condition gives something true, and returns that."""
    give_up = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return found


def request(name="echo", request_id="r", job_id="j", params=None, deadline=None) -> bytes:
    message = new_request(name, params, id=request_id, job_id=job_id, now=ENQUEUED)
    message.context.deadline = deadline
    return encode_frame(message)


ANSWER = encode_frame(ExecutionOutcome.success("j", "r", {"done": True}))


class Tap:
    """A `tap` process.

    Attributes:
        port: where tap listens.
        output: what tap has printed so far, if it is read.
        marker: an environment variable, by which tap and its child processes are found.
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
        """Starts to read what tap prints, in a thread.

        Arguments:
            descriptor: of a terminal; by default that of tap's stdout.
        """
        if descriptor is None:
            descriptor = self.process.stdout.fileno()

        def read():
            # Reading from a terminal fails once the other side is closed.
            with contextlib.suppress(OSError):
                while data := os.read(descriptor, 65536):
                    self.output += data.decode()

        self._reader = threading.Thread(target=read)
        self._reader.start()

    def says(self, *words: str) -> str:
        """Waits for a line of the output that has all the words, and returns it."""

        def line():
            lines = self.output.split("\n")[:-1]
            return next((one for one in lines if all(word in one for word in words)), None)

        return until(line)

    def ends(self, number: int | None = None) -> int:
        """Waits for the end of tap, after a signal if one is given. Returns the exit status.

        Checks that tap has printed nothing to stderr.
        """
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(WAIT_SECONDS)
        if self._reader is not None:
            self._reader.join(WAIT_SECONDS)
        assert self.process.stderr.read() == b""
        return status

    def close(self) -> None:
        kill(self.process)
        if self._reader is not None:
            self._reader.join(WAIT_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS)


class Wire(Tap):
    """A `tap --listen --to`. The test plays both the orchestrator and the runner."""

    def __init__(self, *options: str, read=True, stdout=subprocess.PIPE, prefix=()) -> None:
        self.runner = socket.create_server(("127.0.0.1", 0))
        self.runner.settimeout(WAIT_SECONDS)
        port = free_port()
        to = f"127.0.0.1:{self.runner.getsockname()[1]}"
        super().__init__(
            *("--listen", f"127.0.0.1:{port}", "--to", to, *options),
            port=port,
            stdout=stdout,
            prefix=prefix,
        )
        if read:
            self.read()
            self.says("is passed on to")

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """A new connection through tap: its socket in the orchestrator, and that in the runner."""
        orchestrator = self.connect()
        runner, _ = self.runner.accept()
        runner.settimeout(WAIT_SECONDS)
        return orchestrator, runner

    def close(self) -> None:
        super().close()
        self.runner.close()


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(min(size - len(data), 1 << 20))):
        data += more
    return data


def passes(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    """Sends bytes, and checks that they arrive at the other side of tap."""
    with ThreadPoolExecutor(1) as pool:  # sockets cannot buffer all of the larger payloads
        sending = pool.submit(sender.sendall, data)
        assert receive(receiver, len(data)) == data
        sending.result()


def reset(connection: socket.socket) -> None:
    """Closes a connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def on_a_terminal(start, *options: str) -> Wire:
    """Starts a Wire whose stdout is a terminal."""
    terminal, end = os.openpty()
    tap = start(*options, read=False, stdout=end)
    os.close(end)
    tap.read(terminal)
    tap.says("is passed on to")
    return tap
