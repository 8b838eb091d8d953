"""Start a runner in a process of its own, on a free port of loopback."""

from __future__ import annotations

import asyncio
import itertools
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

# How long a runner may take to start, and to end after SIGTERM.
_START_SECONDS = 30.0
_END_SECONDS = 5.0

# How long it may take to notice that a process has ended.
_NOTICE_SECONDS = 0.3

# free_port() looks from 10000 to 31999, in the part that the process id selects.
_PARTS = 100
_PORTS_IN_PART = 220
_places = itertools.count(random.SystemRandom().randrange(_PORTS_IN_PART))

# The runner prints to this file descriptor, because stdout is for the command's own output.
_STDERR = 2


class RunnerError(RuntimeError):
    """A runner did not start, or did not do what was asked of it."""


class RunnerProcess:
    """A runner of any kind in a process of its own, with a connection to it.

    Attributes:
        client: the connection.
        port: the port on 127.0.0.1 where it listens.
        pid: the id of the process that listens; of the one that was started if that is not known.
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
        """Return how the process has ended; None if it still runs after 0.3 seconds."""
        try:
            status = await asyncio.wait_for(self._process.wait(), _NOTICE_SECONDS)
        except TimeoutError:
            return None
        return f"exit status {status}"


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process so far in seconds; None if it is not known.

    It is read from /proc/PID/task/TID/schedstat, so it is known only on Linux.
    """
    nanoseconds = []
    for schedstat in iglob(f"/proc/{pid}/task/*/schedstat"):
        try:
            nanoseconds.append(int(Path(schedstat).read_text().split()[0]))
        except OSError:  # the thread has just ended
            continue
    return sum(nanoseconds) / 1e9 if nanoseconds else None


def listening_pid(port: int) -> int | None:
    """Return the id of the process that listens on a local TCP port; None if it is not known.

    It is read from Linux's /proc, which shows a user only their own processes.
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
        except OSError:  # it has just been closed, or belongs to another user
            continue
    return None


def free_port(number: int = 1) -> int:
    """Return the first of `number` successive TCP ports of loopback on which no process listens.

    They are outside the range from which systems choose ports for outgoing connections. So no such
    connection can take a port before the runner listens on it. Processes that call this at the same
    time usually have successive ids. They get different ports, because each has its own part.
    """
    part = 10_000 + os.getpid() % _PARTS * _PORTS_IN_PART
    for _ in range(_PORTS_IN_PART):
        place, *_ = [next(_places) % _PORTS_IN_PART for _ in range(number)]
        if place + number > _PORTS_IN_PART:  # the last ones are in another part
            continue
        first = part + place
        with suppress(OSError), ExitStack() as probes:
            for port in range(first, first + number):
                probes.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise RunnerError(f"no free port from {part} to {part + _PORTS_IN_PART - 1}: try again")


@asynccontextmanager
async def runner_process(
    command: Sequence[str], output: BinaryIO | None = None
) -> AsyncGenerator[RunnerProcess]:
    """Start a runner on a free port of loopback, connect to it, and end it afterwards.

    Arguments:
        command: the command line of the runner. `--tcp-socket HOST:PORT` is added to it.
        output: the file for what the runner prints; None is stderr.

    Raises RunnerError if the runner cannot be started, or ends before it listens, or does not
    listen within half a minute.
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
            # A command such as a shell script may have started the runner as its child.
            for pid in {process.pid, listening_pid(port) or process.pid}:
                _signal(pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process if it still runs.

    This is not Process.send_signal(), which checks that by itself. If the process has just ended,
    its check takes the exit status, and asyncio would then wait for it forever.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, number)


async def _connect(process: asyncio.subprocess.Process, port: int) -> RunnerClient:
    give_up = time.monotonic() + _START_SECONDS
    while process.returncode is None and time.monotonic() < give_up:
        try:
            return await RunnerClient.connect("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
    if process.returncode is None:
        raise RunnerError(f"the runner did not listen within {_START_SECONDS:.0f} s")
    raise RunnerError(f"the runner ended with exit status {process.returncode} before it listened")
