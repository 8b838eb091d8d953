"""`tap`: what passes between orchestrator and runner, as it passes."""

from __future__ import annotations

import asyncio
import io
import math
import os
import sys
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, NamedTuple

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import (
    FRAME_HEADER_LEN,
    CancelRequest,
    ExecutionOutcome,
    ExecutionRequest,
    FrameDecoder,
    FrameError,
    MessageError,
    OutcomeStatus,
    OutcomeType,
    decode_frame,
    pack_frame,
)
from ..runner import ending_signals, parse_tcp_socket
from .proxy import Proxy
from .showing import coloured, duration, printable, redact_option, redacted_text, title
from .target import Target, parse_address, reason
from .wire import members, on_one_line
from .wrapping import wrapped_runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .. import RunnerMessage

# Lines, and bytes of payload in them, that wait for a slow terminal. What passes while there are
# more is not printed.
_MOST_WAITING = 500
_MOST_HELD = 32 * 1024 * 1024

# Bytes of the longest payload that is printed: nobody reads on, and colouring it takes its time.
_LONGEST_PAYLOAD = 64 * 1024

# Seconds of printing at a stretch, for which bytes may have to wait.
_TURN_SECONDS = 0.001

# Seconds at the end: for what is under way to be handed over, and for the lines to be printed.
_END_SECONDS = 1.0
_PRINT_SECONDS = 5.0

# Latencies are counted in steps of one percent.
_STEP = math.log(1.01)

_SIDES = {True: "to-runner", False: "from-runner"}
_BUSY = "Runner busy"


class _Line(NamedTuple):
    """Something to print: a message, what is wrong with one, or only a remark.

    Attributes:
        moment: when it passed.
        where: the connection and direction.
        remark: gives what stands behind it, when it is printed.
        payload: the frame's, of which the envelope's payload is printed below.
    """

    moment: float
    where: str
    message: RunnerMessage | MessageError | None
    remark: Callable[[], Text]
    payload: bytes


class _Printer(threading.Thread):
    """Prints in a thread of its own, so that a slow terminal holds up no byte.

    Attributes:
        view: what is shown all the time, below the lines.
        failed: called, in that thread, when nothing can be printed any more.
    """

    def __init__(self, console: Console, redact: frozenset[str]) -> None:
        super().__init__(daemon=True)
        self.console = console
        self.view: AbstractContextManager[object] = nullcontext()
        self.failed: Callable[[], object] = lambda: None
        self._redact = redact
        self._queue: SimpleQueue[_Line | Table | None] = SimpleQueue()
        self._given = self._taken = 0  # bytes: each counter is written by one thread
        self._left_out = 0
        self._lock = threading.Lock()  # for that count
        self._finishing = threading.Event()
        self._rested = 0.0  # the thread's CPU time at its last rest

    def put(self, line: _Line) -> None:
        """Prints a line, unless too many wait already."""
        waiting, held = self._queue.qsize(), self._given - self._taken
        # What is left out is left out in long runs, so that what is printed is in long runs, too.
        most = 1 if self._left_out == 0 else 0.2
        if waiting >= most * _MOST_WAITING or held > most * _MOST_HELD:
            with self._lock:
                self._left_out += 1
            return
        self._queue_left_out()
        self._given += len(line.payload)
        self._queue.put(line)

    def _queue_left_out(self) -> None:
        with self._lock:
            count, self._left_out = self._left_out, 0
        if count:
            text = f"{count} lines are left out: they came faster than they are printed"
            self._queue.put(_Line(time.time(), "", None, partial(Text, text, "yellow"), b""))

    def finish(self, table: Table | None) -> bool:
        """Prints what waits, and a table behind it; False if that takes too long."""
        self._queue_left_out()
        if table is not None:
            self._queue.put(table)
        self._queue.put(None)
        self._finishing.set()
        self.join(_PRINT_SECONDS)
        return not self.is_alive()

    def run(self) -> None:
        try:
            with self.view:
                while (item := self._queue.get()) is not None:
                    if isinstance(item, Table):
                        self.console.print(item)
                        continue
                    self._print(item)
                    self._taken += len(item.payload)
                    if self._queue.empty():
                        self._queue_left_out()  # nothing may follow for a long time
                    self._rest()
        except (OSError, SystemExit):  # a terminal that is gone; rich's way to end at a closed pipe
            with suppress(RuntimeError):  # the event loop has ended before
                self.failed()

    def _rest(self) -> None:
        """Leaves the interpreter to those who pass bytes on, nine tenths of the time."""
        spent = time.thread_time() - self._rested
        if spent > _TURN_SECONDS:
            self._finishing.wait(9 * spent)
            self._rested = time.thread_time()

    def _print(self, line: _Line) -> None:
        moment = datetime.fromtimestamp(line.moment).time().isoformat("milliseconds")
        text = Text.assemble((f"{moment}  {line.where}", "dim"))
        if isinstance(line.message, MessageError):
            # The reason may quote a value.
            wrong = (line.message.path or "the document") if self._redact else str(line.message)
            text.append(f"no message: {wrong}", "red")
        elif line.message is not None:
            text.append_text(title(line.message, datetime.fromtimestamp(line.moment, timezone.utc)))
        text.append_text(line.remark())
        if len(line.payload) > _LONGEST_PAYLOAD:
            text.append(f"\n  {_size(len(line.payload))}: too long to show", "dim")
        elif line.payload:
            text.append("\n  ").append_text(self._payload(line.payload))
        self.console.print(text)

    def _payload(self, payload: bytes) -> Text:
        try:
            document = redacted_text(
                on_one_line(members(payload.decode())["payload"]), self._redact
            )
        except RecursionError:
            return Text("nested too deep to show", "dim")
        # Finding out what to colour takes three times as long as all the rest.
        return coloured(document) if self.console.color_system else Text(document)


class _Latencies:
    """Any number of latencies, in the memory of a few, to a percent."""

    def __init__(self) -> None:
        self._steps: Counter[int] = Counter()
        self._count = 0
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        self._steps[math.ceil(math.log(max(seconds, 1e-9)) / _STEP)] += 1
        self._count += 1
        self._longest = max(self._longest, seconds)

    def at(self, share: float) -> str:
        """The milliseconds within which a share of them lies."""
        if not self._count:
            return "-"
        seconds = self._longest
        left = share * self._count
        for step, count in sorted(self._steps.copy().items()):
            left -= count
            if left <= 0:
                seconds = min(math.exp(step * _STEP), self._longest)
                break
        return f"{seconds * 1000:,.1f}"


class _Function:
    """What is counted of the requests of one function."""

    def __init__(self) -> None:
        self.requests = self.answers = self.failures = 0
        self.bytes_to = self.bytes_from = 0
        self.latencies = _Latencies()


class _Pending(NamedTuple):
    """A request without an answer.

    Attributes:
        line: what is to be printed of it once its answer is known.
    """

    start: float
    message: ExecutionRequest
    line: _Line | None


class Traffic:
    """Everything that passes.

    Arguments:
        put: prints a line.
        record: the folder for raw captures.
        slow: milliseconds; only requests whose answer takes longer are printed.
        only_errors: whether to print only requests whose outcome is no success.
        live: whether not to print messages at all.
        process: names this process in every line, where several may print to one terminal.
    """

    def __init__(
        self,
        put: Callable[[_Line], None],
        *,
        record: Path | None,
        slow: float | None,
        only_errors: bool,
        live: bool,
        process: int | None = None,
    ) -> None:
        self.functions: dict[str, _Function] = {}
        self._put = put
        self.prefix = "" if process is None else str(process)
        self.slow = slow
        self.only_errors = only_errors
        self.filtering = slow is not None or only_errors
        self.show = put if not live else _show_nothing
        self._connections: set[_Connection] = set()
        start = datetime.now().strftime("%Y%m%dT%H%M%S")
        self._record = record and record / f"{start}-{os.getpid()}"

    def watch(self, number: int) -> _Connection:
        connection = _Connection(self, number, self._record)
        self._connections.add(connection)
        return connection

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def cancelled_by(self, cancel: CancelRequest) -> Iterator[_Pending]:
        """The requests that a cancel means, on whichever connections."""
        for connection in self._connections:
            if cancel.request_id is None:
                requests = list(connection.pending.values())
                yield from (one for one in requests if one.message.job_id == cancel.job_id)
            elif cancel.request_id in connection.pending:
                yield connection.pending[cancel.request_id]

    def say(self, text: str, where: str = "", style: str = "") -> None:
        """Prints a remark, also where no messages are printed."""
        self._put(_Line(time.time(), where or self.prefix, None, partial(Text, text, style), b""))

    def finish(self) -> None:
        """Tells what has not ended."""
        for connection in list(self._connections):
            connection.over()

    def table(self) -> Table:
        table = Table(
            *("function", "requests", "failed", "no\nanswer"),
            *("p50\nms", "p95\nms", "p99\nms", "max\nms", "to\nrunner", "from\nrunner"),
            box=SIMPLE_HEAD,
            padding=0,
        )
        for column in table.columns[1:]:
            column.justify = "right"
            column.no_wrap = True
        for name, function in sorted(self.functions.items()):
            table.add_row(
                Text(printable(name)),
                f"{function.requests:,}",
                f"{function.failures:,}",
                f"{function.requests - function.answers:,}",
                *map(function.latencies.at, (0.5, 0.95, 0.99, 1.0)),
                _size(function.bytes_to),
                _size(function.bytes_from),
            )
        return table


class _Side:
    """One direction of a connection.

    Attributes:
        decoder: None once the stream is broken.
        file: the raw capture; None before the first byte, and if it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.decoder: FrameDecoder | None = FrameDecoder()
        self.offset = 0
        self.path = path
        self.file: BinaryIO | None = None


class _Connection:
    """One connection: records and decodes what passes, and pairs requests with answers."""

    def __init__(self, traffic: Traffic, number: int, record: Path | None) -> None:
        self.pending: dict[str, _Pending] = {}
        self._traffic = traffic
        self._number = number
        self._sides = {
            to_runner: _Side(record and record.with_name(f"{record.name}-{number}.{side}.bin"))
            for to_runner, side in _SIDES.items()
        }

    def passed(self, data: bytes, *, to_runner: bool) -> None:
        now = time.time()
        side = self._sides[to_runner]
        self._record(side, data, to_runner)
        if side.decoder is None:
            return
        try:
            for payload in side.decoder.feed(data):
                self._frame(payload, now, to_runner)
                side.offset += FRAME_HEADER_LEN + len(payload)
        except FrameError as error:
            side.decoder = None
            self._say(
                f"broken at offset {side.offset}: {error}; passed on, and not shown from here on",
                to_runner,
            )

    def _record(self, side: _Side, data: bytes, to_runner: bool) -> None:
        if side.path is None:
            return
        try:
            if side.file is None:
                side.file = side.path.open("xb")
            side.file.write(data)
            side.file.flush()
        except OSError as error:
            side.path = None
            self._say(f"not recorded from here on: {reason(error)}", to_runner)

    def _frame(self, payload: bytes, now: float, to_runner: bool) -> None:
        message: RunnerMessage | MessageError
        try:
            message = decode_frame(pack_frame(payload))
        except MessageError as error:
            message = error
        traffic = self._traffic
        line = _Line(now, self._where(to_runner), message, Text, payload)
        if isinstance(message, ExecutionRequest):
            self._requested(message, line)
        elif isinstance(message, ExecutionOutcome):
            self._answered(message, line)
        elif isinstance(message, CancelRequest):
            if traffic.slow is None:
                traffic.show(line._replace(remark=partial(Text, self._cancels(message), "yellow")))
        else:
            traffic.show(line._replace(payload=b""))

    def _requested(self, request: ExecutionRequest, line: _Line) -> None:
        traffic = self._traffic
        function = traffic.functions.get(request.function_name)
        if function is None:
            function = traffic.functions[request.function_name] = _Function()
        function.requests += 1
        function.bytes_to += FRAME_HEADER_LEN + len(line.payload)
        if request.request_id in self.pending:
            self._never_answered(self.pending[request.request_id])
        if not traffic.filtering:
            traffic.show(line)
        self.pending[request.request_id] = _Pending(
            time.perf_counter(), request, line if traffic.filtering else None
        )

    def _answered(self, outcome: ExecutionOutcome, line: _Line) -> None:
        traffic = self._traffic
        request = self.pending.pop(outcome.request_id or "", None)
        if request is None:
            traffic.show(line._replace(remark=partial(Text, "  answers no request", "red")))
            return
        seconds = time.perf_counter() - request.start
        name = request.message.function_name
        failed = outcome.status is not OutcomeStatus.SUCCESS
        function = traffic.functions[name]
        function.answers += 1
        function.failures += failed
        function.bytes_from += FRAME_HEADER_LEN + len(line.payload)
        function.latencies.add(seconds)
        if traffic.slow is not None and seconds * 1000 <= traffic.slow:
            return
        if traffic.only_errors and not failed:
            return
        if request.line is not None:
            traffic.show(request.line)
        traffic.show(line._replace(remark=partial(_took, name, seconds, outcome)))

    def _cancels(self, cancel: CancelRequest) -> str:
        now = time.perf_counter()
        meant = [
            f"{printable(request.message.function_name)} after {duration(now - request.start)}"
            for request in self._traffic.cancelled_by(cancel)
        ]
        return f"  cancels {', '.join(meant) or 'nothing in flight'}"

    def _never_answered(self, request: _Pending) -> None:
        message = request.message
        if request.line is not None:
            self._traffic.show(request.line)
        self._say(
            f"never answered: {printable(message.function_name)}"
            f"  job {printable(message.job_id)}  request {printable(message.request_id)}"
            f", sent {duration(time.perf_counter() - request.start)} ago",
            False,
        )

    def ended(self, *, by_runner: bool) -> None:
        side = self._sides[not by_runner]
        if side.file is not None:
            side.file.close()
        try:
            if side.decoder is not None:
                side.decoder.feed_eof()
        except FrameError as error:
            self._say(f"ended within a frame, at offset {side.offset}: {error}", not by_runner)

    def was_reset(self, error: OSError, *, by_runner: bool) -> None:
        self._say(f"reset by the {'runner' if by_runner else 'other side'}", not by_runner)

    def was_refused(self, error: OSError) -> None:
        self._say(f"closed, the runner cannot be reached: {reason(error)}", True)

    def over(self) -> None:
        self._traffic.forget(self)
        for request in self.pending.values():
            self._never_answered(request)
        self.pending.clear()

    def _where(self, to_runner: bool) -> str:
        return f"{self._traffic.prefix}#{self._number} {'->' if to_runner else '<-'} "

    def _say(self, text: str, to_runner: bool) -> None:
        self._traffic.say(text, self._where(to_runner), "red")


def _took(name: str, seconds: float, outcome: ExecutionOutcome) -> Text:
    """What is said of an answer: whose it is, how long it took, and what is special about it."""
    text = Text.assemble("  ", (printable(name), "bold"), f" took {duration(seconds)}")
    if outcome.error is not None and outcome.error.message.startswith(_BUSY):
        text.append("  busy", "bold red")
    elif outcome.type not in (OutcomeType.SUCCESS, OutcomeType.FAILURE):
        text.append(f"  {outcome.type.value.replace('_', ' ')}", "bold yellow")
    return text


def _show_nothing(_line: _Line) -> None:
    """With --live there is the table alone."""


def _size(count: int) -> str:
    return decimal(count).replace("bytes", "B")


def _read_by(parse: Callable[[str], Target]) -> Callable[..., Target | None]:
    def read(_context: click.Context, _option: click.Parameter, text: str | None) -> Target | None:
        return None if text is None else parse(text)

    return read


def _loopback(text: str) -> Target:
    """An address to listen on, for which the rules are a runner's. Raises UsageError."""
    try:
        return Target(*parse_tcp_socket(text), None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


# Options behind the wrapped command are its own.
@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=_read_by(_loopback),
    help="Where to listen: a loopback address.",
)
@click.option(
    "--to", metavar="HOST:PORT", callback=_read_by(parse_address), help="Where the runner listens."
)
@click.option("--wrap", is_flag=True, help="Start the runner that the arguments say (POSIX only).")
@click.option(
    "--record",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep raw captures for `decode`, one a connection and direction.",
)
@click.option(
    "--slow",
    metavar="MS",
    type=click.FloatRange(min=0),
    help="Print only requests whose answer takes longer.",
)
@click.option("--only-errors", is_flag=True, help="Print only requests that do not succeed.")
@click.option("--live", is_flag=True, help="Show the table all the time, and no messages.")
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
    redact: frozenset[str],
    runner: tuple[str, ...],
) -> int:
    """Print what passes between orchestrator and runner, and change no byte of it.

    Each answer is printed with the time that it took; cancels, errors, a busy runner and requests
    that are never answered are marked. At the end, by Ctrl-C or SIGTERM, stands a table of the
    functions. It counts as failed what is no success: retries, too. A payload of more than 64 KB is
    not printed, nor is what passes while the terminal cannot keep up; --record keeps all of it.
    Captures hold the raw bytes: --redact hides nothing there.

    With --wrap the command in rrq.toml becomes

    \b
    cmd = ["rrq-fastwire", "tap", "--wrap", "--", "rrq-runner", "--settings", "app.settings"]

    and tap listens where the orchestrator's --tcp-socket says, runs the runner on another port,
    passes SIGTERM and SIGINT on to it, ends with it and with its exit status, and ends it when its
    own parent is gone.

    Example: rrq-fastwire tap --listen 127.0.0.1:9000 --to 127.0.0.1:9001 --redact password
    """
    if wrap:
        if listen is not None or to is not None:
            raise click.UsageError("--wrap takes both addresses from --tcp-socket")
        if sys.platform == "win32":
            raise click.UsageError("--wrap needs the signals and process groups of POSIX")
    elif runner:
        raise click.UsageError(f"what is {runner[0]!r}? a runner is started only with --wrap")
    elif listen is None or to is None:
        raise click.UsageError("give --listen and --to, or --wrap and a runner")
    if record is not None:
        try:
            record.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"cannot make {str(record)!r}: {reason(error)}") from None

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an odd locale must not end the printing
    printer = _Printer(Console(highlight=False, soft_wrap=True), redact)
    traffic = Traffic(
        printer.put,
        record=record,
        slow=slow,
        only_errors=only_errors,
        live=live,
        # The orchestrator's runners share its terminal.
        process=os.getpid() if wrap else None,
    )
    if live:
        printer.view = Live(get_renderable=traffic.table, console=printer.console)
    if listen is None or to is None:
        work = _wrap(printer, traffic, *_take_tcp_socket(runner))
    else:
        work = _stand_between(printer, traffic, listen, to)
    status = asyncio.run(work)
    if printer.ident is not None:
        traffic.finish()
        if not printer.finish(None if live else traffic.table()):
            os._exit(status)  # Python would wait for what the thread holds
    return status


async def _stand_between(printer: _Printer, traffic: Traffic, listen: Target, to: Target) -> int:
    """Passes connections on until Ctrl-C or SIGTERM, and returns the exit status."""
    status = 1  # of a closed pipe

    def signalled(number: int) -> None:
        nonlocal status
        status = 128 + number

    with ending_signals(signalled) as ended:
        proxy = await _listening(traffic, listen, to)
        printer.failed = partial(asyncio.get_running_loop().call_soon_threadsafe, ended.set)
        printer.start()
        traffic.say(f"{listen} is passed on to {to}")
        await ended.wait()
        await proxy.close(_END_SECONDS)
    return status


async def _wrap(printer: _Printer, traffic: Traffic, command: list[str], listen: Target) -> int:
    """Passes connections on to a runner until that ends, and returns its exit status."""
    async with wrapped_runner(command) as runner:
        # The orchestrator takes a runner that listens for one that is ready.
        if not await runner.listens():
            return await runner.ended()
        to = Target("127.0.0.1", runner.port, None)
        proxy = await _listening(traffic, listen, to)
        printer.start()
        traffic.say(f"{listen} is passed on to {command[0]} at {to}")
        status = await runner.ended()
        await proxy.runner_finished(_END_SECONDS)
        await proxy.close(_END_SECONDS)
    return status


async def _listening(traffic: Traffic, listen: Target, to: Target) -> Proxy:
    proxy = Proxy((to.host, to.port), traffic.watch)
    try:
        await proxy.listen(listen.host, listen.port)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen}: {reason(error)}") from None
    return proxy


def _take_tcp_socket(arguments: tuple[str, ...]) -> tuple[list[str], Target]:
    """The runner's command, and the address that the orchestrator appends. Raises UsageError."""
    if len(arguments) < 3 or arguments[-2] != "--tcp-socket":
        raise click.UsageError("--wrap needs a runner, and --tcp-socket HOST:PORT behind it")
    return list(arguments[:-2]), _loopback(arguments[-1])
