"""The runner of tap --wrap: it gets the signals of this process, and ends with this process.

POSIX only, because of the process groups.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress

import click

from ...runner.process import ending_signals
from ..runner_process import free_port
from ..target import reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

# How often to check whether the runner listens, and whether the parent still runs.
_LISTEN_POLL_SECONDS = 0.02
_PARENT_POLL_SECONDS = 0.2

# How long a runner may take to end after its orchestrator has ended.
_ORPHAN_SECONDS = 0.6

# A program that kills the runner's process group when its standard input ends. That is when this
# process has ended, even if it was killed.
_KEEPER = "import os, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), 9)"


class WrappedRunner:
    """A runner on a port of its own. If the parent of this process ends, the runner is ended.

    Attributes:
        pid: the id of the process that was started.
        port: the port of 127.0.0.1.
    """

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.pid = process.pid
        self.port = port
        self._ended = asyncio.ensure_future(process.wait())
        self._watch = asyncio.create_task(self._end_as_orphan(os.getppid()))

    def signal(self, number: int) -> None:
        """Send a signal to the runner's process group, as the orchestrator does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def listens(self) -> bool:
        """Wait until the runner listens. Return False if it ends first."""
        while not self._ended.done():
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return True
            await asyncio.sleep(_LISTEN_POLL_SECONDS)
        return False

    async def ended(self) -> int:
        """Wait until the runner ends, and return its exit status as a shell does."""
        status = await self._ended
        self._watch.cancel()
        return 128 - status if status < 0 else status

    async def _end_as_orphan(self, parent: int) -> None:
        while os.getppid() == parent:
            await asyncio.sleep(_PARENT_POLL_SECONDS)
        self.signal(signal.SIGTERM)
        await asyncio.wait((self._ended,), timeout=_ORPHAN_SECONDS)
        self.signal(signal.SIGKILL)


@asynccontextmanager
async def wrapped_runner(command: Sequence[str]) -> AsyncGenerator[WrappedRunner]:
    """Start a runner, pass SIGTERM and SIGINT on to it, and end it afterwards.

    A second signal kills this process, and the runner with it.

    Arguments:
        command: the command line of the runner. `--tcp-socket HOST:PORT` is added to it.

    Raises ClickException if the runner cannot be started.
    """
    port = free_port()
    runner: WrappedRunner | None = None
    early: list[int] = []

    def signalled(number: int) -> None:
        if runner is None:
            early.append(number)
        else:
            runner.signal(number)

    with ending_signals(signalled):
        try:
            # In a process group of its own: otherwise a signal to this process's group would reach
            # the runner twice, and the second signal kills a runner.
            process = await asyncio.create_subprocess_exec(
                *command,
                "--tcp-socket",
                f"127.0.0.1:{port}",
                stdin=asyncio.subprocess.DEVNULL,
                process_group=0,
            )
            keeper = await _start_keeper(process)
        except OSError as error:
            raise click.ClickException(f"cannot start {command[0]!r}: {reason(error)}") from None
        runner = WrappedRunner(process, port)
        for number in early:
            runner.signal(number)
        try:
            yield runner
        finally:
            assert keeper.stdin is not None
            keeper.stdin.close()
            await keeper.wait()
            await process.wait()


async def _start_keeper(process: asyncio.subprocess.Process) -> asyncio.subprocess.Process:
    """Start the keeper of a runner. If that fails, kill the runner. Raises OSError."""
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-ISc",
            _KEEPER,
            str(process.pid),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
