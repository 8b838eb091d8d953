"""`tap` in a process of its own, between an orchestrator and a runner that the tests play."""

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
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    encode_frame,
)
from rrq_fastwire.cli.runner_process import free_port

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


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def on_a_terminal(start, *options: str) -> Wire:
    terminal, end = os.openpty()
    tap = start(*options, read=False, stdout=end)
    os.close(end)
    tap.read(terminal)
    tap.says("is passed on to")
    return tap
