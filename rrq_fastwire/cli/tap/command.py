"""The command `tap`: its options, and its life from the first connection to the last line."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from ...runner.arguments import parse_tcp_socket
from ...runner.process import ending_signals
from ..redaction import Redaction, redact_option
from ..target import Number, Target, parse_address, reason
from .printer import Printer
from .proxy import Proxy
from .statistics import function_table
from .traffic import Traffic
from .wrapped_runner import wrapped_runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

# How long the last bytes may take at the end to reach their side.
_END_SECONDS = 1.0

_REMIND_POLL_SECONDS = 0.2


def _read_by(parse: Callable[[str], Target]) -> Callable[..., Target | None]:
    def read(_context: click.Context, _option: click.Parameter, text: str | None) -> Target | None:
        return None if text is None else parse(text)

    return read


def _loopback(text: str) -> Target:
    """Parse an address to listen on, by the rules of a runner. Raises UsageError."""
    try:
        return Target(*parse_tcp_socket(text), None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


# Options after the runner's command belong to that command.
@click.command("tap", context_settings={"allow_interspersed_args": False})
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=_read_by(_loopback),
    help="The address to listen on: a loopback one.",
)
@click.option(
    "--to", metavar="HOST:PORT", callback=_read_by(parse_address), help="The runner's address."
)
@click.option("--wrap", is_flag=True, help="Start the runner given as arguments (POSIX only).")
@click.option(
    "--record",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write raw captures to this folder, for `decode`.",
)
@click.option(
    "--slow",
    metavar="MS",
    type=Number(),
    help="Show only requests whose answer takes longer.",
)
@click.option("--only-errors", is_flag=True, help="Show only requests that do not succeed.")
@click.option("--live", is_flag=True, help="Show the table of functions instead of messages.")
@click.option("--verbose", is_flag=True, help="Also show whole payloads, indented.")
@redact_option
@click.argument("runner", nargs=-1, type=click.UNPROCESSED, metavar="[RUNNER...]")
def command(
    listen: Target | None,
    to: Target | None,
    wrap: bool,
    record: Path | None,
    slow: float | None,
    only_errors: bool,
    live: bool,
    verbose: bool,
    redact: Redaction,
    runner: tuple[str, ...],
) -> int:
    """Show the messages between orchestrator and runner.

    No byte is changed. Each message is one line. A request is shown with its function, job id,
    attempt and params; a response with its status, job id, time taken, function and result, or the
    reason why the job did not succeed; a cancel with what it cancels. On a terminal, lines are cut
    to its width, and ids to eight characters.

    Requests that wait long for an answer, or never get one, are marked. At the end, after Ctrl-C or
    SIGTERM, a table of the functions is printed; retries count as failed.

    Params in a payload of more than 64 KB are not shown. Messages are skipped while more arrive
    than tap can print without delaying the connections. The table counts all of them, and --record
    writes everything, to one file for each connection and direction. These files hold the raw
    bytes: --redact hides nothing there.

    To use --wrap, change the command in rrq.toml to

    \b
    cmd = ["rrq-fastwire", "tap", "--wrap", "--",
           "rrq-runner", "--settings", "app.settings"]

    Then tap listens on the orchestrator's --tcp-socket and starts the runner on another port. It
    passes SIGTERM and SIGINT on to the runner, and ends when the runner ends, with the same exit
    status. If its own parent ends, tap ends the runner.

    Example: rrq-fastwire tap --listen 127.0.0.1:9000 --to 127.0.0.1:9001 --redact password
    """
    if wrap:
        if listen is not None or to is not None:
            raise click.UsageError("--wrap takes both addresses from --tcp-socket")
        if sys.platform == "win32":
            raise click.UsageError("--wrap needs the signals and process groups of POSIX")
    elif runner:
        raise click.UsageError(f"unexpected argument {runner[0]!r}; use --wrap to start a runner")
    elif listen is None or to is None:
        raise click.UsageError("give --listen and --to, or --wrap and a runner")
    # The callback of --listen has replaced localhost already.
    elif listen == to._replace(host="127.0.0.1" if to.host == "localhost" else to.host):
        raise click.UsageError("--listen and --to are the same address")
    if record is not None:
        try:
            record.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"cannot make {str(record)!r}: {reason(error)}") from None

    printer = Printer(Console(highlight=False, soft_wrap=True), redact, verbose=verbose)
    traffic = Traffic(
        printer.put,
        record=record,
        slow=slow,
        only_errors=only_errors,
        live=live,
        # With --wrap, several of these processes may print to the orchestrator's terminal.
        process=os.getpid() if wrap else None,
    )
    table = partial(function_table, traffic.functions, redact)
    if live:
        printer.view = Live(get_renderable=table, console=printer.console)
    if listen is None or to is None:
        work = _run_wrapped(printer, traffic, *_take_tcp_socket(runner))
    else:
        work = _run_proxy(printer, traffic, listen, to)
    status = asyncio.run(work)
    if printer.ident is not None:
        traffic.finish()
        if not printer.finish(None if live else table()):
            os._exit(status)  # Python would wait for the lock of stdout, which the thread holds
        if printer.error is not None:
            raise printer.error
    return status


async def _run_proxy(printer: Printer, traffic: Traffic, listen: Target, to: Target) -> int:
    """Pass connections on until Ctrl-C or SIGTERM, and return the exit status."""
    status = 1  # if output fails, for example because the pipe is closed

    def signalled(number: int) -> None:
        nonlocal status
        status = 128 + number

    with ending_signals(signalled) as ended:
        proxy = await _start_proxy(traffic, listen, to)
        printer.failed = partial(asyncio.get_running_loop().call_soon_threadsafe, ended.set)
        printer.start()
        traffic.say(f"{listen} is passed on to {to}")
        async with _reminders(traffic):
            await ended.wait()
            await proxy.close(_END_SECONDS)
    return status


async def _run_wrapped(
    printer: Printer, traffic: Traffic, command: list[str], listen: Target
) -> int:
    """Pass connections on to a runner until it ends, and return its exit status."""
    async with wrapped_runner(command) as runner:
        # Listen only after the runner does: the orchestrator takes a runner that listens for ready.
        if not await runner.listens():
            return await runner.ended()
        to = Target("127.0.0.1", runner.port, None)
        proxy = await _start_proxy(traffic, listen, to)
        printer.start()
        traffic.say(f"{listen} is passed on to process {runner.pid}")
        async with _reminders(traffic):
            status = await runner.ended()
            await proxy.runner_finished(_END_SECONDS)
            await proxy.close(_END_SECONDS)
    return status


@asynccontextmanager
async def _reminders(traffic: Traffic) -> AsyncGenerator[None]:
    async def remind() -> None:
        while True:
            await asyncio.sleep(_REMIND_POLL_SECONDS)
            traffic.remind()

    task = asyncio.create_task(remind())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _start_proxy(traffic: Traffic, listen: Target, to: Target) -> Proxy:
    """Return a proxy that listens. Raises ClickException."""
    proxy = Proxy((to.host, to.port), traffic.watch)
    try:
        await proxy.listen(listen.host, listen.port)
    except OSError as error:
        advice = (
            "; choose another address, or stop what listens there"
            if error.errno == errno.EADDRINUSE
            else ""
        )
        raise click.ClickException(f"cannot listen on {listen}: {reason(error)}{advice}") from None
    return proxy


def _take_tcp_socket(arguments: tuple[str, ...]) -> tuple[list[str], Target]:
    """Return the runner's command and the address of --tcp-socket. Raises UsageError."""
    if len(arguments) < 3 or arguments[-2] != "--tcp-socket":
        raise click.UsageError("--wrap needs a runner's command, and --tcp-socket HOST:PORT last")
    return list(arguments[:-2]), _loopback(arguments[-1])
