"""The runner that a command talks to: one at HOST:PORT, or one that the command starts itself."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import click

from .. import FastwireError
from ..client import RunnerClient
from .address import join_address, split_address
from .runner_process import RunnerError, RunnerProcess, cpu_seconds, listening_pid, runner_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
    from typing import Any, BinaryIO, TypeVar

    T = TypeVar("T")

_LOCAL = {"127.0.0.1", "localhost", "::1"}


class Target(NamedTuple):
    """A runner that listens.

    Attributes:
        process: its process, if the command has started it; else None.
    """

    host: str
    port: int
    process: RunnerProcess | None

    def cpu_seconds(self) -> float | None:
        """Return the CPU time of the runner so far in seconds; None if it is not known."""
        if self.process is not None:
            return self.process.cpu_seconds()
        pid = listening_pid(self.port) if self.host in _LOCAL else None
        return None if pid is None else cpu_seconds(pid)

    async def connect(self) -> RunnerClient:
        """Return a new connection. Raises RunnerError."""
        try:
            return await RunnerClient.connect(self.host, self.port)
        except OSError as error:
            raise RunnerError(f"cannot connect to {self}: {reason(error)}") from None

    def __str__(self) -> str:
        return join_address(self.host, self.port)


@asynccontextmanager
async def running_target(
    source: Target | Sequence[str], output: BinaryIO | None = None
) -> AsyncGenerator[Target]:
    """Yield a runner that runs already, or one that is started, and ended afterwards.

    Arguments:
        source: the runner, or the command line that starts it.
        output: the file for what a runner that is started prints; None is stderr.
    """
    if isinstance(source, Target):
        yield source
    else:
        async with runner_process(source, output) as process:
            yield Target("127.0.0.1", process.port, process)


def parse_address(text: str, alternative: str = "") -> Target:
    """Return the runner at "HOST:PORT" or "[IPv6]:PORT". Raises UsageError.

    Arguments:
        alternative: see split_address().
    """
    try:
        return Target(*split_address(text, alternative), None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def parse_command(text: str) -> list[str]:
    """Return the words of a command line. Raises UsageError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"cannot split {text!r} into words: {error}") from None
    if not words:
        raise click.UsageError("the command that starts the runner is empty")
    return words


def runner_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--runner "CMD..."`, which replaces HOST:PORT."""
    return click.option(
        "--runner",
        metavar='"CMD..."',
        help="Start this runner instead of using HOST:PORT, and stop it at the end;"
        " --tcp-socket is added to the command.",
    )(command)


def split_target(
    arguments: Sequence[str], runner: str | None
) -> tuple[Target | list[str], list[str]]:
    """Return the runner, and the arguments after its address. Raises UsageError."""
    if runner is not None:
        return parse_command(runner), list(arguments)
    if not arguments:
        raise click.UsageError("no runner given; use HOST:PORT, or --runner and its command")
    return parse_address(arguments[0], ", or --runner"), list(arguments[1:])


class Number(click.types.FloatParamType):
    """The type of an option: a number from `least` to ten million."""

    def __init__(self, least: float = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not self.least <= number <= 1e7:
            self.fail(f"{value!r} is not from {self.least:g} to 10,000,000.", param, ctx)
        return number


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that talks to a runner, and turn its errors into one sentence each.

    At SIGTERM, the coroutine is cancelled before the process ends, so that it ends its runners.

    Raises ClickException, and Abort at Ctrl-C.
    """
    terminated = False

    async def terminable() -> T:
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            with suppress(NotImplementedError):  # on Windows
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await work

    try:
        return asyncio.run(terminable())
    except KeyboardInterrupt:
        raise click.Abort from None  # click itself would print an empty line
    except (RunnerError, FastwireError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"the connection is lost: {reason(error)}") from None
    finally:
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)  # asyncio has put the default back


def reason(error: OSError) -> str:
    """Return the reason that the operating system gives for an error."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # asyncio's own text would repeat the address
    return error.strerror or str(error)
