"""Starting a runner and sending it jobs: what `demo` and the benchmarks of the runner share."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from pathlib import Path

from ..client import RunnerClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from typing import Any

# What a runner has to start, and to end after SIGTERM.
_START_SECONDS = 30.0
_END_SECONDS = 5.0


class RunnerProcess:
    """A runner of any kind in a process of its own, with a connection to it.

    Attributes:
        client: the connection.
        pid: the process.
    """

    def __init__(self, client: RunnerClient, pid: int) -> None:
        self.client = client
        self.pid = pid

    def cpu_seconds(self) -> float | None:
        """The CPU time of the process so far, to the nanosecond; None where that is not known.

        It comes from Linux's /proc/PID/task/TID/schedstat.
        """
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        nanoseconds = [int(task.read_text().split()[0]) for task in tasks]
        return sum(nanoseconds) / 1e9 if nanoseconds else None


@asynccontextmanager
async def runner_process(command: list[str]) -> AsyncGenerator[RunnerProcess]:
    """Starts a runner on a free port of loopback, connects, and ends it afterwards.

    Arguments:
        command: the runner, to which `--tcp-socket HOST:PORT` is added.

    Raises RuntimeError if it ends, or does not listen within half a minute.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(*command, "--tcp-socket", f"127.0.0.1:{port}")
    try:
        async with await _connect(process, port) as client:
            yield RunnerProcess(client, process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _connect(process: asyncio.subprocess.Process, port: int) -> RunnerClient:
    give_up = time.monotonic() + _START_SECONDS
    while process.returncode is None and time.monotonic() < give_up:
        try:
            return await RunnerClient.connect("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
    state = "does not listen" if process.returncode is None else f"ended: {process.returncode}"
    raise RuntimeError(f"the runner {state}")


async def drive(
    client: RunnerClient,
    function_name: str,
    params: dict[str, Any],
    *,
    in_flight: int,
    requests: int,
    timeout: float,
    answered: Callable[[], object] = lambda: None,
) -> list[float]:
    """Runs a function many times, and returns the seconds that each answer took.

    Arguments:
        in_flight: how many requests are under way at a time.
        requests: how many there are in all.
        timeout: seconds until the deadline of each.
        answered: called after each answer.

    Raises RuntimeError for an outcome that is no success.
    """
    seconds: list[float] = []
    left = iter(range(requests))

    async def lane() -> None:
        for _ in left:
            start = time.perf_counter()
            outcome = await client.execute(function_name, params, timeout=timeout)
            seconds.append(time.perf_counter() - start)
            if outcome.error is not None:
                raise RuntimeError(f"{function_name}: {outcome.error.message}")
            answered()

    async with asyncio.TaskGroup() as lanes:
        for _ in range(in_flight):
            lanes.create_task(lane())
    return seconds
