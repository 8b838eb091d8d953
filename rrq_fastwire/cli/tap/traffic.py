"""Record, decode and count what passes, and pair each answer with its request."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import BinaryIO

from rich.text import Text

from ... import (
    FRAME_HEADER_LEN,
    CancelRequest,
    ExecutionOutcome,
    ExecutionRequest,
    FrameDecoder,
    FrameError,
    MessageError,
    OutcomeStatus,
    decode_payload,
)
from ..formatting import duration
from ..message_lines import (
    FROM_RUNNER,
    LONGEST_PAYLOAD,
    TO_RUNNER,
    Row,
    cancel_row,
    invalid_row,
    request_row,
    response_row,
)
from ..target import reason
from .printer import Line
from .statistics import FunctionCounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..message_lines import Payload
    from ..redaction import Redaction

_SIDES = {True: "to-runner", False: "from-runner"}

# A reminder of an unanswered request is printed when this share of the time to its deadline is
# over, or after _REMIND_SECONDS if it has no deadline, but not before _REMIND_LEAST seconds.
_REMIND_SHARE = 0.8
_REMIND_SECONDS = 10.0
_REMIND_LEAST = 1.0


@dataclass(slots=True)
class Pending:
    """A request without an answer.

    Attributes:
        message: the request, without its params.
        start: when the request passed, in time.monotonic().
        remind: when to print a reminder, in time.monotonic().
        line: the request's own line, if it has not been printed yet.
    """

    message: ExecutionRequest
    start: float
    remind: float
    line: Line | None

    def row(self, *parts: str) -> Callable[[Payload, Redaction], Row]:
        """Return a function that makes the row about the missing answer, with some remarks."""
        waited = duration(time.monotonic() - self.start)
        content = ", ".join(filter(None, parts))

        def row(_payload: Payload, redaction: Redaction) -> Row:
            job = redaction.field("job_id", self.message.job_id)
            name = redaction.field("function_name", self.message.function_name)
            return Row("  ", "waiting", "bold red", job, waited, name, content)

        return row

    def deadline(self) -> str:
        """Return how far away the deadline is, or "" if there is none."""
        deadline = self.message.context.deadline
        if deadline is None:
            return ""
        seconds = (deadline - datetime.now(timezone.utc)).total_seconds()
        if seconds > 0:
            return f"deadline in {duration(seconds)}"
        return f"deadline passed {duration(-seconds)} ago"


class Traffic:
    """The connections through the proxy, and what is printed and counted of them.

    Arguments:
        put: prints a line.
        record: the folder for raw captures, or None.
        slow: milliseconds; only requests whose answer takes longer are printed. None prints all.
        only_errors: whether to print only requests that do not succeed.
        live: whether to print no messages at all.
        process: the process id to print in every line, or None. It is for terminals to which
            several processes print.
    """

    def __init__(
        self,
        put: Callable[[Line], None],
        *,
        record: Path | None,
        slow: float | None,
        only_errors: bool,
        live: bool,
        process: int | None,
    ) -> None:
        self.functions: dict[str, FunctionCounts] = {}
        self.slow = slow
        self.only_errors = only_errors
        self.filtering = slow is not None or only_errors
        self._put = put
        self._live = live
        self._prefix = "" if process is None else str(process)
        self._connections: set[Connection] = set()
        start = datetime.now().strftime("%Y%m%dT%H%M%S")
        self._record = record and record / f"{start}-{os.getpid()}"

    def watch(self, number: int) -> Connection:
        """Return the watcher of a new connection."""
        connection = Connection(self, number, self._record)
        self._connections.add(connection)
        return connection

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed."""
        self._connections.discard(connection)

    def cancelled_by(self, cancel: CancelRequest) -> Iterator[Pending]:
        """Yield the requests that a cancel refers to, on any connection."""
        for connection in self._connections:
            if cancel.request_id is None:
                requests = list(connection.pending.values())
                yield from (one for one in requests if one.message.job_id == cancel.job_id)
            elif cancel.request_id in connection.pending:
                yield connection.pending[cancel.request_id]

    def line(
        self, row: Callable[[Payload, Redaction], Row], frame: bytes = b"", moment: float = 0.0
    ) -> Line:
        """Return the line of a message.

        Arguments:
            moment: when the message passed, in time.time(); 0 is now.
        """
        size = len(frame)
        if size > LONGEST_PAYLOAD:
            frame = b""  # a line may be held back for long, and shows only the size
        return Line(moment or time.time(), self._prefix, row, frame, size)

    def show(self, line: Line) -> None:
        """Print the line of a message, unless no messages are printed."""
        if not self._live:
            self._put(line)

    def say(self, text: str, style: str = "") -> None:
        """Print a remark, even if no messages are printed."""
        self._put(Line(time.time(), self._prefix, Text(text, style)))

    def say_row(self, row: Callable[[Payload, Redaction], Row]) -> None:
        """Print a row about a missing message, even if no messages are printed."""
        self._put(self.line(row))

    def remind(self) -> None:
        """Print the requests whose answer is overdue, once each."""
        if self.only_errors:
            return
        now = time.monotonic()
        for connection in self._connections:
            for request in connection.pending.values():
                late = self.slow is None or (now - request.start) * 1000 > self.slow
                if now >= request.remind and late:
                    request.remind = math.inf
                    self.show_request(request)
                    self.show(self.line(request.row(request.deadline(), "no answer yet")))

    def show_request(self, request: Pending) -> None:
        """Print the line of a request, if that has not been done yet."""
        if request.line is not None:
            self.show(request.line)
            request.line = None

    def finish(self) -> None:
        """Print the requests that have no answer at the end."""
        for connection in list(self._connections):
            connection.over()


class Side:
    """One direction of a connection.

    Attributes:
        decoder: splits the stream into frames; None once the stream is broken.
        offset: how many bytes of the stream precede the next frame.
        path: where the raw capture is written; None if there is none, or no longer one.
        file: the raw capture; None before the first byte, and once it is closed.
    """

    def __init__(self, path: Path | None) -> None:
        self.decoder: FrameDecoder | None = FrameDecoder()
        self.offset = 0
        self.path = path
        self.file: BinaryIO | None = None

    def close(self) -> None:
        """Close the capture. Its last bytes may be lost, which must not end the connection."""
        if self.file is not None:
            with suppress(OSError):  # it writes what is still buffered, and the disk may be full
                self.file.close()
            self.file = None


class Connection:
    """Watch one connection: record and decode what passes, and pair requests with answers."""

    def __init__(self, traffic: Traffic, number: int, record: Path | None) -> None:
        self.pending: dict[str, Pending] = {}
        self._traffic = traffic
        self._number = number
        self._sides = {
            to_runner: Side(record and record.with_name(f"{record.name}-{number}.{side}.bin"))
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
                f"broken at offset {side.offset}: {error}; still passed on, but no longer shown",
                to_runner,
            )

    def _record(self, side: Side, data: bytes, to_runner: bool) -> None:
        if side.path is None:
            return
        try:
            if side.file is None:
                side.file = side.path.open("xb")
            side.file.write(data)
            side.file.flush()
        except OSError as error:
            side.path = None
            side.close()
            self._say(f"no longer recorded: {reason(error)}", to_runner)

    def _frame(self, payload: bytes, now: float, to_runner: bool) -> None:
        try:
            message = decode_payload(payload)
        except MessageError as error:
            arrow = TO_RUNNER if to_runner else FROM_RUNNER
            self._traffic.show(self._traffic.line(_invalid(arrow, error), moment=now))
            return
        if isinstance(message, ExecutionRequest):
            self._requested(message, payload, now)
        elif isinstance(message, ExecutionOutcome):
            self._answered(message, payload, now)
        elif self._traffic.slow is None:
            self._traffic.show(self._traffic.line(self._cancelled(message), payload, now))

    def _requested(self, request: ExecutionRequest, frame: bytes, now: float) -> None:
        request.params = {}  # shown from the frame; here they would be kept until the answer
        traffic = self._traffic
        function = traffic.functions.setdefault(request.function_name, FunctionCounts())
        function.requests += 1
        function.bytes_to += FRAME_HEADER_LEN + len(frame)
        if request.request_id in self.pending:
            self._never_answered(self.pending[request.request_id])
        start, deadline = time.monotonic(), request.context.deadline
        remind = _REMIND_SECONDS
        if deadline is not None:
            remind = max(_REMIND_LEAST, _REMIND_SHARE * (deadline.timestamp() - now))
        line = traffic.line(lambda payload, _: request_row(request, payload), frame, now)
        pending = Pending(request, start, start + remind, line)
        self.pending[request.request_id] = pending
        if not traffic.filtering:
            traffic.show_request(pending)

    def _answered(self, outcome: ExecutionOutcome, frame: bytes, now: float) -> None:
        traffic = self._traffic
        request = self.pending.pop(outcome.request_id or "", None)
        if request is None:
            traffic.show(traffic.line(partial(_stray_row, outcome), frame, now))
            return
        seconds = time.monotonic() - request.start
        failed = outcome.status is not OutcomeStatus.SUCCESS
        function = traffic.functions[request.message.function_name]
        function.answers += 1
        function.failures += failed
        function.bytes_from += FRAME_HEADER_LEN + len(frame)
        function.latencies.add(seconds)
        if traffic.slow is not None and seconds * 1000 <= traffic.slow:
            return
        if traffic.only_errors and not failed:
            return
        traffic.show_request(request)
        answered = request.message
        traffic.show(
            traffic.line(
                lambda payload, _: response_row(outcome, payload, answered, seconds),
                frame,
                now,
            )
        )

    def _cancelled(self, cancel: CancelRequest) -> Callable[[Payload, Redaction], Row]:
        now = time.monotonic()
        cancelled = [
            (request.message.function_name, duration(now - request.start))
            for request in self._traffic.cancelled_by(cancel)
        ]

        def row(_payload: Payload, redaction: Redaction) -> Row:
            each = [f"{redaction.field('function_name', name)} after {t}" for name, t in cancelled]
            content = f"cancels {', '.join(each) or 'nothing in flight'}"
            return cancel_row(cancel, content, redaction)

        return row

    def _never_answered(self, request: Pending) -> None:
        self._traffic.show_request(request)
        self._traffic.say_row(request.row("never answered", request.deadline()))

    def ended(self, *, by_runner: bool) -> None:
        side = self._sides[not by_runner]
        side.close()
        try:
            if side.decoder is not None:
                side.decoder.feed_eof()
        except FrameError as error:
            self._say(f"ended within a frame, at offset {side.offset}: {error}", not by_runner)

    def was_reset(self, *, by_runner: bool) -> None:
        self._say(f"reset by the {'runner' if by_runner else 'other side'}", not by_runner)

    def was_refused(self, error: OSError) -> None:
        self._say(f"closed, the runner cannot be reached: {reason(error)}", True)

    def over(self) -> None:
        self._traffic.forget(self)
        for request in self.pending.values():
            self._never_answered(request)
        self.pending.clear()

    def _say(self, text: str, to_runner: bool) -> None:
        arrow = TO_RUNNER if to_runner else FROM_RUNNER
        self._traffic.say(f"#{self._number} {arrow} {text}", "red")


def _invalid(arrow: str, error: MessageError) -> Callable[[Payload, Redaction], Row]:
    return lambda _payload, redaction: invalid_row(arrow, error, redaction)


def _stray_row(outcome: ExecutionOutcome, payload: Payload, _redaction: Redaction) -> Row:
    row = response_row(outcome, payload)
    return row._replace(content=f"answers no request: {row.content}", is_json=False)
