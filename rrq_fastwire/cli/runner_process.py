"""A runner in a process of its own, on a free port of loopback."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from contextlib import ExitStack, asynccontextmanager, suppress
from glob import iglob
from pathlib import Path

from ..client import RunnerClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from typing import BinaryIO

# What a runner has to start, and to end after SIGTERM.
_START_SECONDS = 30.0
_END_SECONDS = 5.0

# What it takes to see that a process has ended.
_MOMENT_SECONDS = 0.3

# A descriptor: stdout is for what a command prints itself.
_STDERR = 2


class RunnerError(RuntimeError):
    """A runner did not start, or did not do what was asked of it."""


class RunnerProcess:
    """A runner of any kind in a process of its own, with a connection to it.

    Attributes:
        client: the connection.
        port: where it listens on 127.0.0.1.
        pid: the process that listens, or the one that was started if that is not known.
    """

    def __init__(
        self, client: RunnerClient, port: int, process: asyncio.subprocess.Process
    ) -> None:
        self.client = client
        self.port = port
        self.pid = listening_pid(port) or process.pid
        self._process = process

    def cpu_seconds(self) -> float | None:
        """Return the CPU time of the process so far, or None if it is not known."""
        return cpu_seconds(self.pid)

    async def ended(self) -> str | None:
        """Return how the process has ended, or None if it still runs after a moment."""
        try:
            status = await asyncio.wait_for(self._process.wait(), _MOMENT_SECONDS)
        except TimeoutError:
            return None
        return f"exit status {status}"


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process so far, or None if it is not known.

    It comes from Linux's /proc/PID/task/TID/schedstat.
    """
    nanoseconds = []
    for schedstat in iglob(f"/proc/{pid}/task/*/schedstat"):
        try:
            nanoseconds.append(int(Path(schedstat).read_text().split()[0]))
        except OSError:  # the thread has just ended
            continue
    return sum(nanoseconds) / 1e9 if nanoseconds else None


def listening_pid(port: int) -> int | None:
    """Return the process that listens on a TCP port here, or None if it is not known.

    It comes from Linux's /proc, which shows a user only their own processes.
    """
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{inode}]")
    for descriptor in iglob("/proc/[0-9]*/fd/*") if inodes else ():
        try:
            if os.readlink(descriptor) in inodes:
                return int(descriptor.split("/")[2])
        except OSError:  # it has just been closed, or is another user's
            continue
    return None


def free_port(number: int = 1) -> int:
    """Return the first of some successive TCP ports of loopback on which no process listens.

    They are outside of the range that systems take ports for outgoing connections from. Otherwise
    such a connection could take the port before it is listened on.
    """
    for _ in range(1000):
        first = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), ExitStack() as probes:
            for port in range(first, first + number):
                probes.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise RunnerError("no free port from 10000 to 32000")


@asynccontextmanager
async def runner_process(
    command: Sequence[str], output: BinaryIO | None = None
) -> AsyncGenerator[RunnerProcess]:
    """Start a runner on a free port of loopback, connect, and end it afterwards.

    Arguments:
        command: the runner, to which `--tcp-socket HOST:PORT` is added.
        output: takes what the runner prints. If None, it goes to stderr.

    Raises RunnerError if it cannot be started, ends, or does not listen within half a minute.
    """
    port = free_port()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            "--tcp-socket",
            f"127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output or _STDERR,
            stderr=output,
        )
    except OSError as error:
        raise RunnerError(f"cannot start {command[0]!r}: {error.strerror}") from None
    try:
        async with await _connect(process, port) as client:
            yield RunnerProcess(client, port, process)
    finally:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal, if the process is still there.

    Process.send_signal() asks first whether there is, and of one that has just ended takes the exit
    status that asyncio waits for.
    """
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


async def _connect(process: asyncio.subprocess.Process, port: int) -> RunnerClient:
    give_up = time.monotonic() + _START_SECONDS
    while process.returncode is None and time.monotonic() < give_up:
        try:
            return await RunnerClient.connect("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
    if process.returncode is None:
        raise RunnerError(f"the runner does not listen within {_START_SECONDS:.0f} s")
    raise RunnerError(f"the runner ended with exit status {process.returncode} and did not listen")
